import { describe, expect, it } from "vitest";
import { starts } from "../../../test/support/lora-start.ts";
import { weightsScene } from "../../adapters/adapter.ts";
import { lora as bindLora } from "../../adapters/lora.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { OptionError } from "../../errors.ts";
import { compareLogits, probeInputs, probeLogits } from "../../infer/verify.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import { Llama } from "../../models/llama.ts";
import type { LanguageModel } from "../../models/model.ts";
import { matrix, multiply } from "../../tensor/linalg/index.ts";
import { Rng } from "../../tensor/rng.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { quantizeModel, unpackedParams } from "../../train/trainee.ts";
import { onWholeBase } from "../initialise.ts";
import type { Initialised } from "../method.ts";
import { loftq, loftqWeight } from "./loftq.ts";

const backend = await nodeOrt({ threads: 1 });
const models: readonly (readonly [string, LanguageModel])[] = [
  [
    "llama",
    new Llama({
      ...{ vocabSize: 20, dModel: 32, dFeedForward: 64, nLayers: 2, nHeads: 2 },
      ...{ maxPositions: 24, initializerRange: 0.2 },
    }),
  ],
  // Weights lie (in, out).
  ["gpt2", new Gpt2({ vocabSize: 20, dModel: 32, nLayers: 1, nHeads: 2, maxPositions: 24 })],
];
const lora = { rank: 8, alpha: 6, targetModules: "all-linear" } as const;

const begin = (model: LanguageModel, bits: 4 | 8 | undefined, options = {}): Initialised => {
  const scene = { ...weightsScene(model, model.init(new Rng(1)).params, new Rng(2)), bits };
  return loftq.roles.initialiser!.initialise(scene, lora, options) as Initialised;
};

describe("LoftQ", () => {
  it("is the loop of peft with its decomposition, on our blocks", () => {
    const { weight, rank, turns, base, a, b, error, plainError } = starts.loftq;
    const [rows, columns] = weight.shape as [number, number];
    const found = loftqWeight(
      matrix(rows, columns, Float64Array.from(weight.data)),
      rank,
      1,
      { bits: 4, iterations: turns, niter: 0 },
      new Rng(0),
    );
    expect(found.plainError).toBeCloseTo(plainError, 6);
    expect(found.errors.at(-1)).toBeCloseTo(error, 5);
    found.base.data.forEach((x, i) => {
      expect(Math.abs(x - base.data[i]!)).toBeLessThan(1e-6);
    });
    const theirs = multiply(
      matrix(rows, rank, Float64Array.from(b.data)),
      matrix(rank, columns, Float64Array.from(a.data)),
    );
    multiply(found.b, found.a).data.forEach((x, i) => {
      expect(Math.abs(x - theirs.data[i]!)).toBeLessThan(1e-5);
    });
  });

  it("is nearer the weight after every turn than quantising alone, at any scale", () => {
    const weight = matrix(40, 64, Float64Array.from(new Rng(3).normals(2560, 0.5)));
    for (const niter of [0, 8]) {
      const options = { bits: 4, iterations: 5, niter } as const;
      const { errors, plainError, base, a, b } = loftqWeight(weight, 8, 2.5, options, new Rng(1));
      expect(errors).toHaveLength(5);
      for (const error of errors) expect(error).toBeLessThan(plainError);
      expect(errors.at(-1)).toBeLessThan(errors[0]!);
      const product = multiply(b, a);
      let [left, all] = [0, 0];
      weight.data.forEach((x, i) => {
        left += (x - base.data[i]! - 2.5 * product.data[i]!) ** 2;
        all += x * x;
      });
      expect(Math.sqrt(left / all)).toBeCloseTo(errors.at(-1)!, 10);
    }
  });

  it.each(models)("finds a base of a %s that quantises to itself", (_, model) => {
    const { quantized } = begin(model, 4);
    const floats = { ...model.init(new Rng(1)).params, ...quantized };
    const again = unpackedParams(model, quantizeModel(model, floats, { bits: 4 }).params);
    for (const [name, tensor] of Object.entries(quantized!)) {
      expect(Array.from(again[name]!.numbers())).toEqual(Array.from(tensor.numbers()));
    }
  });

  it.each(models)(
    "gives a %s logits nearer the float model's than plain 4 bits",
    async (_, model) => {
      const params = model.init(new Rng(1)).params;
      const { quantized, params: first } = begin(model, 4);
      const ids = probeInputs(model.sizes, { length: 12 });
      const plain = await probeLogits(backend, model, params, ids);
      const bare = unpackedParams(model, quantizeModel(model, params, { bits: 4 }).params);
      const adapter = bindLora(model, lora);
      const rms = (other: Tensor): number => {
        const [one, two] = [plain.numbers(), other.numbers()];
        let sum = 0;
        for (let i = 0; i < plain.size; i++) sum += (one[i]! - two[i]!) ** 2;
        return Math.sqrt(sum / plain.size);
      };
      const alone = await probeLogits(backend, model, bare, ids);
      const both = await probeLogits(backend, model, { ...params, ...quantized }, ids, {
        adapter,
        params: first,
      });
      expect(rms(both)).toBeLessThan(0.9 * rms(alone));
      // As it is kept, on the base as it was: an adapter that nothing has trained does nothing.
      const kept = onWholeBase(adapter, lora, first, first);
      const whole = { adapter: bindLora(model, kept.lora), params: kept.params };
      const unchanged = compareLogits(plain, await probeLogits(backend, model, params, ids, whole));
      expect(unchanged.maxRelative).toBeLessThan(1e-5);
    },
  );

  it("is nearer with 8 bits than with 4", () => {
    const worst = (bits: 4 | 8): number => {
      const { report } = begin(models[0]![1], bits, { iterations: 1 });
      return Math.max(...Object.values(report["error"] as Record<string, number>));
    };
    expect(worst(8)).toBeLessThan(0.2 * worst(4));
  });

  it("asks for bits", () => {
    expect(() => begin(models[0]![1], undefined)).toThrow(
      new OptionError(
        "loftq: finds a base in 4 or 8 bits together with LoRA, and none is asked for — add --load-in-4bit, or take --init pissa.",
      ),
    );
  });
});
