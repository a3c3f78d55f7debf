/** Vectors of sentences that are near where the sentences belong together. */
import type { SentenceExample } from "../../data/task-examples.ts";
import { OptionError } from "../../errors.ts";
import { cast, mul } from "../../ir/elementwise.ts";
import { split } from "../../ir/layout.ts";
import { sum } from "../../ir/reduce.ts";
import type { EncoderModel } from "../../models/model.ts";
import { type Pooling, poolTokens } from "../../models/pooling.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective } from "../objective.ts";
import type { SentenceLoss } from "./sentence-loss.ts";
import { exampleWeights, textBatch } from "./text-batch.ts";

export interface SentenceEmbeddingOptions {
  readonly loss: SentenceLoss;
  /** Default "mean". */
  readonly pooling?: Pooling;
}

/**
 * A batch has `ids`, `mask`, `types` (S·B, T): all anchors, then all positives, then each place of
 * negatives; `scores` and `weights` (B,). Negatives of one batch are those of one part of a step.
 * @throws OptionError when an example has other texts than the loss reads.
 */
export function sentenceEmbedding(
  options: SentenceEmbeddingOptions,
): Objective<EncoderModel, SentenceExample> {
  const { loss, pooling = "mean" } = options;
  const [least, most] = loss.texts;
  return {
    name: "sentence-embedding",
    learningRate: { adapter: 1e-3, full: 5e-5 },
    batch: (examples, shape) => {
      // Examples of one batch may have different numbers of negatives; all have the least.
      const places = Math.min(most, ...examples.map(({ texts }) => texts.length));
      if (places < least) {
        throw new OptionError(
          `sentence-embedding: ${loss.name} reads ${least} texts of each example, one has ${places}.`,
        );
      }
      const rows = shape.rows;
      const texts = Array.from({ length: places * rows }, (_, i) => {
        return examples[i % rows]?.texts[Math.floor(i / rows)];
      });
      const scores = Float32Array.from({ length: rows }, (_, i) => examples[i]?.score ?? 0);
      return {
        ...textBatch(texts, places * rows, shape),
        scores: new Tensor("float32", [rows], scores),
        weights: exampleWeights(examples.length, rows),
      };
    },
    loss: ({ model, context }, { ids, mask, types, scores, weights }) => {
      const { hidden } = model.forward(context, ids!, {
        mask: cast(mask!, "bool"),
        tokenTypes: types!,
      });
      const vectors = poolTokens(hidden, mask!, pooling);
      const rows = weights!.shape[0] as number;
      const places = (ids!.shape[0] as number) / rows;
      const losses = loss.rows({
        vectors: split(vectors, new Array<number>(places).fill(rows), 0),
        scores: scores!,
        weights: weights!,
      });
      return { sum: sum(mul(losses, weights!)) };
    },
  };
}
