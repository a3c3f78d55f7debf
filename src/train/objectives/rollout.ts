/** What a policy did, as examples: answers with the numbers that their update needs, token by token. */
import type { Example } from "../../data/example.ts";
import { div, exp, maximum, mul, stopGradient, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import type { BatchShape } from "../batches.ts";
import type { Batch, Scene } from "../objective.ts";
import { perItem, sequenceTensors, tokenLogProbs } from "./sequences.ts";

/** An answer that a policy gave. Numbers "a token" are one for each token that carries loss. */
export interface Rollout {
  readonly example: Example;
  /** How much better than expected: of the whole answer, or a token. */
  readonly advantage: number | Float32Array;
  /** log π of the policy that answered, a token; absent: the policy's own, as before its first update. */
  readonly old?: Float32Array;
  /** log π_ref, a token; absent: computed in the step where it is needed. */
  readonly reference?: Float32Array;
  /** What a value head expected, a token (PPO). */
  readonly values?: Float32Array;
  /** What its values should be, a token (PPO). */
  readonly returns?: Float32Array;
}

type PerToken = "old" | "reference" | "values" | "returns";

/**
 * Rollouts as tensors of N tokens: those of `sequenceTensors`, `advantages`, and of `old`, `reference`,
 * `values` and `returns` those that the rollouts have.
 */
export function rolloutTensors(
  rollouts: readonly Rollout[],
  shape: BatchShape,
): Omit<Batch, "weights"> {
  const tensors = sequenceTensors(
    rollouts.map(({ example }) => example),
    shape.rows,
    shape,
  );
  const size = tensors.items.size;
  const counts = tensors.counts.data;
  const joined = (of: (rollout: Rollout) => number | Float32Array): Batch[string] => {
    const numbers = rollouts.flatMap((rollout, i) => {
      const value = of(rollout);
      return typeof value === "number"
        ? new Array<number>(counts[i] as number).fill(value)
        : [...value];
    });
    return perItem(size, (i) => numbers[i] ?? 0);
  };
  const extra: Record<string, Batch[string]> = {};
  for (const name of ["old", "reference", "values", "returns"] as readonly PerToken[]) {
    if (rollouts.every((rollout) => rollout[name])) extra[name] = joined((one) => one[name]!);
  }
  return { ...tensors, advantages: joined(({ advantage }) => advantage), ...extra };
}

/** log π and log π_ref of every token with the policy as it is, (N,) each. */
export function inspectRollouts(
  scene: Scene<LanguageModel>,
  batch: ValueRecord,
  { temperature, withReference }: { readonly temperature: number; readonly withReference: boolean },
): Record<string, Value> {
  const { model, context } = scene;
  const old = tokenLogProbs(model, context, batch, temperature);
  if (!withReference) return { old };
  return { old, reference: tokenLogProbs(model, scene.reference(), batch, temperature) };
}

/** log π_ref of every token, recorded or computed, without gradient. */
export function referenceOf(
  scene: Scene<LanguageModel>,
  batch: ValueRecord,
  temperature: number,
): Value {
  const known = batch["reference"];
  if (known) return known;
  return stopGradient(tokenLogProbs(scene.model, scene.reference(), batch, temperature));
}

/** e^(b - a) - (b - a) - 1: an estimate of KL(a ‖ b) that is never negative (Schulman's k3). */
export function klTokens(own: Value, reference: Value): Value {
  const gap = sub(reference, own);
  return sub(sub(exp(gap), gap), 1);
}

/** The mean over tokens, times Σ weights: as sums that judging divides by the weights are. */
export function tokenMetric(values: Value, { items, weights }: ValueRecord): Value {
  const mean = div(sum(mul(values, items!)), maximum(sum(items!), 1));
  return mul(mean, sum(weights!));
}
