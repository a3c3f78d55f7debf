/** The class of each word: cross-entropy at the first token of each, as for names of persons and places. */
import type { TokenClassExample } from "../../data/task-examples.ts";
import { cast, equal, mul } from "../../ir/elementwise.ts";
import { argMax, sum } from "../../ir/reduce.ts";
import type { EncoderModel } from "../../models/model.ts";
import { crossEntropy } from "../../nn/losses.ts";
import type { Objective } from "../objective.ts";
import { type ClassificationOptions, headLogits, headOf } from "./sequence-classification.ts";
import { placedTargets, textBatch } from "./text-batch.ts";

/**
 * A batch has `ids`, `mask`, `types` (B, T), and for the tokens that carry loss `rows` (R,) of (B·T),
 * `targets` and `weights` (R,).
 * @throws OptionError when the model has no such head.
 */
export function tokenClassification(
  model: EncoderModel,
  options: ClassificationOptions = {},
): Objective<EncoderModel, TokenClassExample> {
  headOf(model, "token-classification");
  const { labelSmoothing = 0 } = options;
  return {
    name: "token-classification",
    learningRate: { adapter: 1e-3, full: 5e-5 },
    batch: (examples, shape) => {
      const texts = textBatch(examples, shape.rows, shape);
      const length = texts.ids.shape[1]!;
      const rows: number[] = [];
      const targets: number[] = [];
      examples.forEach(({ labels }, row) => {
        labels.forEach((label, i) => {
          if (label < 0) return;
          rows.push(row * length + i);
          targets.push(label);
        });
      });
      return { ...texts, ...placedTargets(rows, targets, Math.max(32, shape.rows * 4)) };
    },
    loss: ({ model: m, context }, batch) => {
      const logits = headLogits(m, context, batch);
      const { targets, weights } = batch;
      const losses = crossEntropy(logits, targets!, { reduction: "none", labelSmoothing });
      const hits = cast(equal(argMax(logits, 1), targets!), "float32");
      return { sum: sum(mul(losses, weights!)), metrics: { correct: sum(mul(hits, weights!)) } };
    },
    inspect: ({ model: m, context }, batch) => ({ logits: headLogits(m, context, batch) }),
  };
}
