/**
 * LoftQ: a quantised base and a LoRA that are found together, so that both are near the weights as they were.
 *
 * Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", ICLR 2024,
 * arXiv:2310.08659, algorithm 1.
 *
 *   A_0 = 0, B_0 = 0, and for t = 1 … T
 *   Q_t = q(W - s B_{t-1} A_{t-1})                 what is left, quantised
 *   s B_t A_t = the first r singular directions of W - Q_t, A and B alike in size
 *
 *   q → `quantizeWeight`, blocks of 4 or 8 bits with a scale    s → scale, alpha / r    T → iterations
 *
 * The base that is trained beside is Q_T. What is kept in the end is a LoRA of rank 2r on the weights as they were,
 * s [B, -B_T] [A; A_T]: it differs from what was trained by what LoftQ leaves, W - Q_T - s B_T A_T.
 *
 * Differs: our blocks in place of NormalFloat; A and B are divided by √s, which the authors' code leaves to
 * alpha = r; decompositions of large weights are found from a drawn subspace (`niter`), as the remainder has no
 * directions that stand out. Cost: T decompositions a layer, and the weights as floats while it is made.
 */
import type { PrepareScene } from "../../adapters/adapter.ts";
import type { LoraOptions } from "../../adapters/lora.ts";
import { OptionError } from "../../errors.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { dequantizeWeight, quantizeWeight } from "../../nn/quantize.ts";
import type { OptionSpecs } from "../../options.ts";
import { type Matrix, matrix, multiply, randomSvd, topSvd } from "../../tensor/linalg/index.ts";
import type { Rng } from "../../tensor/rng.ts";
import { defineMethod, type Initialised, type Method } from "../method.ts";
import {
  asKept,
  balanced,
  energyOf,
  type Factors,
  factoredLora,
  firstFactors,
  minus,
  outputsFirst,
  times,
} from "./shared/first-factors.ts";

export interface LoftqOptions {
  /** T: times that base and LoRA are found in turns; the paper uses 5. */
  readonly iterations?: number;
  /** Turns of a drawn subspace for each decomposition; 0 is exact. */
  readonly niter?: number;
}

/** What LoftQ makes of a weight. */
export interface LoftqWeight extends Factors {
  /** Q_T (out, in), floats that quantise to themselves. */
  readonly base: Matrix;
  /** ‖W - Q_t - s B_t A_t‖ / ‖W‖ after each turn. */
  readonly errors: readonly number[];
  /** The same of the weight quantised alone. */
  readonly plainError: number;
}

/** The numbers that a weight's quantised form stands for. @param weight (out, in) */
function rounded(weight: Matrix, bits: 4 | 8): Matrix {
  const { rows, columns, data } = weight;
  const numbers = dequantizeWeight(
    quantizeWeight(Float32Array.from(data), [rows, columns], { bits }),
  );
  return matrix(rows, columns, Float64Array.from(numbers));
}

/**
 * Quantises a weight and approximates what is lost, in turns.
 * @param weight (out, in), rows of a multiple of 32
 * @param rank r, at most min(out, in) @param scale s
 */
export function loftqWeight(
  weight: Matrix,
  rank: number,
  scale: number,
  { bits, iterations, niter }: { readonly bits: 4 | 8 } & Required<LoftqOptions>,
  rng: Rng,
): LoftqWeight {
  const size = Math.max(Number.MIN_VALUE, Math.sqrt(energyOf(weight)));
  const errors: number[] = [];
  let base = rounded(weight, bits);
  const plainError = Math.sqrt(energyOf(minus(weight, base))) / size;
  for (let t = 0; ; t++) {
    const rest = minus(weight, base);
    const decomposed = niter === 0 ? topSvd(rest, rank) : randomSvd(rest, rank, niter, rng.fold(t));
    const { a, b } = balanced(decomposed, rank, scale);
    const product = times(multiply(b, a), scale);
    errors.push(Math.sqrt(energyOf(minus(rest, product))) / size);
    if (t + 1 === iterations) return { base, a, b, errors, plainError };
    base = rounded(minus(weight, product), bits);
  }
}

function initialise(
  scene: PrepareScene,
  options: LoraOptions,
  { iterations = 5, niter = 3 }: LoftqOptions,
): Initialised {
  const { bits } = scene;
  if (bits === undefined) {
    throw new OptionError(
      "loftq: finds a base in 4 or 8 bits together with LoRA, and none is asked for — add --load-in-4bit, or take --init pissa.",
    );
  }
  const adapter = factoredLora("loftq", scene, options);
  const quantized: TensorRecord = {};
  const [before, after]: Record<string, number>[] = [{}, {}];
  const params = firstFactors(scene, "LoftQ", adapter, ({ path, layer, rank, scale }) => {
    const name = `${path}.weight`;
    const weight = outputsFirst(layer, scene.base[name]!);
    const rng = scene.rng.fold("loftq").fold(path);
    const found = loftqWeight(weight, rank, scale, { bits, iterations, niter }, rng);
    quantized[name] = asKept(layer, found.base);
    before![path] = found.plainError;
    after![path] = found.errors.at(-1)!;
    return found;
  });
  return {
    lora: options,
    params,
    isTakenFromBase: true,
    quantized,
    report: { bits, iterations, error: after, errorOfPlain: before },
  };
}

const options = {
  iterations: {
    type: "integer",
    default: 5,
    range: [1, 100],
    about: "times that base and LoRA are found in turns",
  },
  niter: {
    type: "integer",
    default: 3,
    range: [0, 100],
    about: "turns of a drawn subspace for each decomposition; 0 is exact and slow",
  },
} as const satisfies OptionSpecs<LoftqOptions>;

export const loftq: Method<LoftqOptions> = defineMethod<LoftqOptions>({
  id: "loftq",
  number: null,
  title: "LoftQ",
  capability: "adapt",
  summary:
    "Quantises the base and starts LoRA in turns, so that both together are near the model as it was.",
  paper: {
    title: "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
    year: 2023,
    url: "https://arxiv.org/abs/2310.08659",
  },
  implementation: "faithful",
  options,
  isChangedAtFirst: true,
  roles: { initialiser: { readsData: false, choosesBits: true, initialise } },
  tiny: { iterations: 2 },
});
