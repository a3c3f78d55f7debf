/**
 * Which singular triplets of all layers stay, by their importance and a budget that falls with training.
 *
 * Zhang et al., "AdaLoRA", ICLR 2023, arXiv:2303.10512, section 3.2 and algorithm 1; as PEFT's allocator has it:
 *
 *   I(w)  = |w ∂L/∂w|                                     sensitivity                         eq. 8
 *   Ī(w)  ← β₁ Ī(w) + (1 - β₁) I(w)                       smoothed                            eq. 9
 *   Ū(w)  ← β₂ Ū(w) + (1 - β₂) |I(w) - Ī(w)|              uncertainty                         eq. 10
 *   s(w)  = Ī(w) Ū(w)                                                                         eq. 11
 *   S_i   = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)      of triplet i                        eq. 7
 *   b(t)  = b_end + (b_start - b_end) (1 - (t - t_i) / (T - t_i - t_f))³                      eq. 12
 *
 * After a step the Σ r - b(t) triplets of lowest S have their λ set to 0; they may come back while the schedule
 * runs. At T - t_f the choice is made for good.
 */
import type { StepHook, StepMade } from "../../../adapters/hook.ts";
import { OptionError } from "../../../errors.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { Tensor } from "../../../tensor/tensor.ts";

/** One layer's triplets: names of Q (rank, width), Λ (rank, 1) and P (out, rank). */
export interface Triplets {
  readonly a: string;
  readonly e: string;
  readonly b: string;
  readonly rank: number;
  readonly out: number;
  readonly width: number;
}

export interface BudgetOptions {
  readonly targetR: number;
  readonly tinit: number;
  readonly tfinal: number;
  readonly deltaT: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly totalStep?: number;
}

export const maskName = "adalora.mask";
export const stepsName = "adalora.steps";
const sensitivityName = "adalora.sensitivity";
const uncertaintyName = "adalora.uncertainty";

const countOf = ({ rank, width, out }: Triplets): number => rank * (width + 1 + out);

/** The state at first, which checkpoints hold: smoothed scores of all numbers, layer after layer; the mask. */
export function budgetBuffers(
  layers: readonly Triplets[],
  mask: Float32Array<ArrayBuffer>,
): TensorRecord {
  const count = layers.reduce((total, layer) => total + countOf(layer), 0);
  return {
    [sensitivityName]: Tensor.zeros([count], "float32"),
    [uncertaintyName]: Tensor.zeros([count], "float32"),
    [maskName]: new Tensor("float32", [mask.length], mask.slice()),
    [stepsName]: Tensor.zeros([1], "float32"),
  };
}

/** Ranks in all that may stay after a step, and whether they are chosen then. */
export function budgetAt(
  step: number,
  total: number,
  first: number,
  last: number,
  { tinit, tfinal, deltaT }: Pick<BudgetOptions, "tinit" | "tfinal" | "deltaT">,
): { readonly budget: number; readonly isChosen: boolean } {
  if (step <= tinit) return { budget: first, isChosen: false };
  if (step > total - tfinal) return { budget: last, isChosen: true };
  const left = 1 - (step - tinit) / (total - tfinal - tinit);
  return {
    budget: Math.trunc((first - last) * left ** 3 + last),
    isChosen: step % deltaT === 0,
  };
}

/** Moves smoothed scores on by a step, in place. */
function smooth(
  layers: readonly Triplets[],
  { params, gradients }: Pick<StepMade, "params" | "gradients">,
  sensitivity: Float32Array,
  uncertainty: Float32Array,
  { beta1, beta2 }: Pick<BudgetOptions, "beta1" | "beta2">,
): void {
  let at = 0;
  for (const { a, e, b } of layers) {
    for (const name of [a, e, b]) {
      const [weights, slopes] = [params[name]!.numbers(), gradients[name]!.numbers()];
      for (let i = 0; i < weights.length; i++, at++) {
        const now = Math.abs(Math.fround(weights[i]! * slopes[i]!));
        sensitivity[at] = beta1 * sensitivity[at]! + (1 - beta1) * now;
        const off = Math.abs(now - sensitivity[at]!);
        uncertainty[at] = beta2 * uncertainty[at]! + (1 - beta2) * off;
      }
    }
  }
}

/** S of every triplet, layer after layer. */
function scores(
  layers: readonly Triplets[],
  sensitivity: Float32Array,
  uncertainty: Float32Array,
): Float64Array {
  const found: number[] = [];
  let start = 0;
  const s = (at: number): number => sensitivity[at]! * uncertainty[at]!;
  for (const layer of layers) {
    const { rank, width, out } = layer;
    const [e, b] = [start + rank * width, start + rank * (width + 1)];
    for (let i = 0; i < rank; i++) {
      let [right, left] = [0, 0];
      for (let j = 0; j < width; j++) right += s(start + i * width + j);
      for (let j = 0; j < out; j++) left += s(b + j * rank + i);
      found.push(s(e + i) + right / width + left / out);
    }
    start += countOf(layer);
  }
  return Float64Array.from(found);
}

/** Zero for as many of the lowest scores as there are to go, and for those equal to the last of them. */
export function keepHighest(all: Float64Array, masked: number): Float32Array<ArrayBuffer> {
  if (masked <= 0) return new Float32Array(all.length).fill(1);
  const limit = all.slice().sort()[masked - 1]!;
  return Float32Array.from(all, (score) => (score > limit ? 1 : 0));
}

/** Chooses triplets after each step and zeroes the λ of the others. */
export function budgetHook(layers: readonly Triplets[], options: BudgetOptions): StepHook {
  const ranks = layers.reduce((total, { rank }) => total + rank, 0);
  const last = options.targetR * layers.length;
  return {
    changes: [sensitivityName, uncertaintyName, maskName, stepsName],
    reads: { params: true, gradients: true },
    after: (made) => {
      const { step, steps, params, buffers } = made;
      const { tinit, tfinal, totalStep: total = steps } = options;
      if (tinit >= total - tfinal) {
        throw new OptionError(
          `adalora: ${tinit} steps before and ${tfinal} after leave none of ${total} to choose ranks in — train longer, or lower tinit and tfinal.`,
        );
      }
      const sensitivity = Float32Array.from(buffers[sensitivityName]!.numbers());
      const uncertainty = Float32Array.from(buffers[uncertaintyName]!.numbers());
      let mask = Float32Array.from(buffers[maskName]!.numbers());
      const end = total - tfinal;
      const { budget, isChosen } = budgetAt(step, total, ranks, last, options);
      if (step < end) smooth(layers, made, sensitivity, uncertainty, options);
      if (step === end || (step < end && isChosen)) {
        mask = keepHighest(scores(layers, sensitivity, uncertainty), ranks - budget);
      }
      if (step === end) {
        sensitivity.fill(0);
        uncertainty.fill(0);
      }
      const isMasked = step >= end || isChosen;
      const vector = (numbers: Float32Array<ArrayBuffer>): Tensor =>
        new Tensor("float32", [numbers.length], numbers);
      return {
        ...(isMasked && { params: maskedValues(layers, params, mask) }),
        buffers: {
          [sensitivityName]: vector(sensitivity),
          [uncertaintyName]: vector(uncertainty),
          [maskName]: vector(mask),
          [stepsName]: vector(Float32Array.of(total)),
        },
        metrics: { ranks: mask.reduce((count, x) => count + x, 0) },
      };
    },
  };
}

/** Λ of each layer with what is masked set to 0. */
function maskedValues(
  layers: readonly Triplets[],
  params: Readonly<Record<string, Tensor>>,
  mask: Float32Array,
): TensorRecord {
  let at = 0;
  return Object.fromEntries(
    layers.map(({ e, rank }) => {
      const numbers = Float32Array.from(params[e]!.numbers(), (x) => x * mask[at++]!);
      return [e, new Tensor("float32", [rank, 1], numbers)];
    }),
  );
}
