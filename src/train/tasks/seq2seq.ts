/** An answer from a source: cross-entropy of each of its tokens after those before it, and of its end. */
import type { Seq2SeqExample } from "../../data/task-examples.ts";
import { cast, equal, mul } from "../../ir/elementwise.ts";
import { argMax, sum } from "../../ir/reduce.ts";
import type { Seq2SeqModel } from "../../models/model.ts";
import { crossEntropy } from "../../nn/losses.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective } from "../objective.ts";
import { paddedLength, placedTargets, textBatch } from "./text-batch.ts";

export interface Seq2SeqTaskOptions {
  /** Share of the target spread over all words, in [0, 1); default 0. */
  readonly labelSmoothing?: number;
}

/**
 * A batch has `ids` and `mask` (B, S) of the sources, `inputs` (B, T) of the answers, which begin with
 * the model's first token, and `rows` (R,) of (B·T), `targets` and `weights` (R,).
 */
export function seq2seq(
  model: Seq2SeqModel,
  options: Seq2SeqTaskOptions = {},
): Objective<Seq2SeqModel, Seq2SeqExample> {
  const { labelSmoothing = 0 } = options;
  return {
    name: "seq2seq",
    learningRate: { adapter: 1e-3, full: 1e-4 },
    batch: (examples, shape) => {
      const sources = textBatch(
        examples.map(({ source }) => ({ ids: source })),
        shape.rows,
        shape,
      );
      const length = paddedLength(
        examples.map(({ target }) => target.length),
        shape,
      );
      const inputs = new Int32Array(shape.rows * length).fill(model.padId);
      const rows: number[] = [];
      const targets: number[] = [];
      for (let row = 0; row < shape.rows; row++) inputs[row * length] = model.startId;
      examples.forEach(({ target }, row) => {
        inputs.set(target.subarray(0, -1), row * length + 1);
        target.forEach((token, i) => {
          rows.push(row * length + i);
          targets.push(token);
        });
      });
      return {
        ids: sources.ids,
        mask: sources.mask,
        inputs: new Tensor("int32", [shape.rows, length], inputs),
        ...placedTargets(rows, targets, Math.max(32, shape.rows * 4)),
      };
    },
    loss: ({ model: m, context }, { ids, mask, inputs, rows, targets, weights }) => {
      const kept = cast(mask!, "bool");
      const hidden = m.encode(context, ids!, { mask: kept });
      const [batch, length] = ids!.shape as [number, number];
      const source = m.crossed(context, hidden, batch, length);
      const { logits } = m.decode(context, inputs!, source, { mask: kept, rows: rows! });
      const losses = crossEntropy(logits, targets!, { reduction: "none", labelSmoothing });
      const hits = cast(equal(argMax(logits, 1), targets!), "float32");
      return { sum: sum(mul(losses, weights!)), metrics: { correct: sum(mul(hits, weights!)) } };
    },
  };
}
