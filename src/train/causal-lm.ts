/** The next token from those before it: cross-entropy where the loss mask says so. */
import type { Example } from "../data/example.ts";
import { cast, equal, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape } from "../ir/layout.ts";
import { argMax, sum } from "../ir/reduce.ts";
import type { ForwardOptions, LanguageModel } from "../models/model.ts";
import { crossEntropy } from "../nn/losses.ts";
import type { ValueRecord } from "../nn/module.ts";
import { type BatchShape, makeBatch } from "./batches.ts";
import type { Objective } from "./objective.ts";

/**
 * A batch has `ids` (B, T) int32; `targets` (R,) int32, the next tokens at `rows` (R,) of (B·T), or
 * everywhere without `rows`; `weights` (R,); and of packed rows `segments` and `positions` (B, T) int32.
 */
export const causalLm: Objective<LanguageModel, Example> = {
  name: "causal-lm",
  canPack: true,
  batch: (examples: readonly Example[], shape: BatchShape) => makeBatch(examples, shape),
  loss: ({ model, context }, batch) => {
    const { ids, targets, weights } = batch;
    const { logits } = model.forward(context, ids!, packedOptions(batch));
    const losses = crossEntropy(logits, targets!, { reduction: "none" });
    const hits = cast(equal(argMax(logits, 1), targets!), "float32");
    return {
      sum: sum(mul(losses, weights!)),
      metrics: { correct: sum(mul(hits, weights!)) },
    };
  },
};

/** Which logits a batch asks for, and that packed examples do not see each other. */
export function packedOptions({ rows, positions, segments }: ValueRecord): ForwardOptions {
  return {
    ...(rows && { rows }),
    ...(positions && { positions }),
    ...(segments && { mask: sameSegment(segments) }),
  };
}

/** Pairs of tokens of one example: (B, T) → (B, 1, T, T) bool. */
function sameSegment(segments: Value): Value {
  const [batch, length] = segments.shape as [number, number];
  return equal(reshape(segments, [batch, 1, length, 1]), reshape(segments, [batch, 1, 1, length]));
}
