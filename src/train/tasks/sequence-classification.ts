/**
 * The class of a text or of a pair: cross-entropy of the head's logits at the first token, at the last one
 * of a causal model; a yes or no for each of several classes; or a number.
 */
import type { ClassExample } from "../../data/task-examples.ts";
import { OptionError } from "../../errors.ts";
import { cast, equal, mul, square, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape } from "../../ir/layout.ts";
import { argMax, mean, sum } from "../../ir/reduce.ts";
import type { EncoderHead, EncoderModel, HeadTask } from "../../models/model.ts";
import { bceWithLogits, crossEntropy } from "../../nn/losses.ts";
import type { Context, ValueRecord } from "../../nn/module.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective } from "../objective.ts";
import { exampleWeights, textBatch } from "./text-batch.ts";

export interface ClassificationOptions {
  /** Share of the target spread over all classes, in [0, 1); default 0. One class of several only. */
  readonly labelSmoothing?: number;
}

/** @throws OptionError when the model has another head, or none. */
export function headOf(model: EncoderModel, task: HeadTask): EncoderHead {
  if (model.head?.task === task) return model.head;
  throw new OptionError(
    `${task}: the ${model.family} has ${model.head ? `a head for ${model.head.task}` : "no head"} — give it one by headedModel.`,
  );
}

/** The head's logits at the batch's `rows`. */
export function headLogits(
  model: EncoderModel,
  context: Context,
  { ids, mask, types, rows }: ValueRecord,
): Value {
  const { hidden } = model.forward(context, ids!, {
    mask: cast(mask!, "bool"),
    tokenTypes: types!,
    rows: rows!,
  });
  return model.head!.forward(context, hidden);
}

/**
 * A batch has `ids`, `mask`, `types` (B, T), `rows` (B,) of (B·T), `targets` (B,) classes or numbers or
 * (B, classes), and `weights` (B,).
 * @throws OptionError when the model has no such head.
 */
export function sequenceClassification(
  model: EncoderModel,
  options: ClassificationOptions = {},
): Objective<EncoderModel, ClassExample> {
  const { reads, problem, labels } = headOf(model, "sequence-classification");
  const { labelSmoothing = 0 } = options;
  const lossOf = (logits: Value, targets: Value): Value => {
    if (problem === "single_label_classification") {
      return crossEntropy(logits, targets, { reduction: "none", labelSmoothing });
    }
    if (problem === "multi_label_classification") {
      return mean(bceWithLogits(logits, targets, "none"), 1);
    }
    return square(sub(reshape(logits, [-1]), targets));
  };
  return {
    name: "sequence-classification",
    learningRate: { adapter: 1e-3, full: 5e-5 },
    batch: (examples, shape) => {
      const texts = textBatch(examples, shape.rows, shape);
      const length = texts.ids.shape[1]!;
      const rows = Int32Array.from({ length: shape.rows }, (_, row) =>
        reads === "last" ? row * length + (examples[row]?.ids.length ?? 1) - 1 : row * length,
      );
      return {
        ...texts,
        rows: new Tensor("int32", [shape.rows], rows),
        targets: targetsOf(examples, shape.rows, problem, labels.length),
        weights: exampleWeights(examples.length, shape.rows),
      };
    },
    loss: ({ model: m, context }, batch) => {
      const logits = headLogits(m, context, batch);
      const { targets, weights } = batch;
      const losses = lossOf(logits, targets!);
      if (problem !== "single_label_classification") return { sum: sum(mul(losses, weights!)) };
      const hits = cast(equal(argMax(logits, 1), targets!), "float32");
      return { sum: sum(mul(losses, weights!)), metrics: { correct: sum(mul(hits, weights!)) } };
    },
    inspect: ({ model: m, context }, batch) => ({ logits: headLogits(m, context, batch) }),
  };
}

function targetsOf(
  examples: readonly ClassExample[],
  rows: number,
  problem: EncoderHead["problem"],
  classes: number,
): Tensor {
  if (problem === "multi_label_classification") {
    const data = new Float32Array(rows * classes);
    examples.forEach(({ target }, row) => {
      data.set(target as Float32Array, row * classes);
    });
    return new Tensor("float32", [rows, classes], data);
  }
  const numbers = Array.from({ length: rows }, (_, row) => (examples[row]?.target ?? 0) as number);
  return problem === "regression"
    ? new Tensor("float32", [rows], Float32Array.from(numbers))
    : new Tensor("int32", [rows], Int32Array.from(numbers));
}
