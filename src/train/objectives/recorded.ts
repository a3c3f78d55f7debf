/**
 * Distillation from a recording: the teacher's likeliest tokens at every place, taken down once, so that the
 * teacher is not in memory while the student learns.
 *
 *   L = Σ_{v ∈ top k} p_v (log p_v - log q_v) + p_r (log p_r - log q_r)
 *
 *   p → the teacher's, q → the student's probabilities; r → all other tokens together
 *
 * That is the forward KL of distributions in which the tokens outside the top k are one: never more than
 * that over the whole vocabulary, and equal to it where k is the vocabulary. Memory: 8 k bytes for each token
 * that carries loss; with k = 32 the top of a trained model holds most of its mass.
 */
import type { Backend } from "../../backend/backend.ts";
import { place, releaseAll } from "../../backend/place.ts";
import type { Example } from "../../data/example.ts";
import type { ExampleSet } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import { add, cast, div, equal, exp, log, maximum, mul, sub } from "../../ir/elementwise.ts";
import { logSoftmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { gatherElements } from "../../ir/indexing.ts";
import { argMax, sum, topK } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { makeBatch } from "../batches.ts";
import type { Objective } from "../objective.ts";
import { TrainProgram } from "../program.ts";
import type { Teacher } from "./distill.ts";
import { checkIn } from "./preference.ts";

/** An example with what a teacher expected at each of its tokens that carry loss, in order. */
export interface TaughtExample extends Example {
  /** The likeliest tokens, k for each. */
  readonly topIds: Int32Array;
  /** Their log-probabilities. */
  readonly topLogProbs: Float32Array;
}

export interface RecordOptions {
  /** Tokens kept, from 1; default 32. */
  readonly k?: number;
  /** Divides the teacher's logits, above 0; default 1. The student's must have the same. */
  readonly temperature?: number;
  /** Examples together; default 16. */
  readonly batchSize?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number) => void;
}

function recorder(k: number, temperature: number): Objective<LanguageModel, Example> {
  return {
    name: "record",
    batch: (examples: readonly Example[], shape) => makeBatch(examples, shape),
    loss: () => {
      throw new OptionError("record: a teacher is not trained.");
    },
    inspect: ({ model, context }, { ids, rows }) => {
      const { logits } = model.forward(context, ids!, { rows: rows! });
      const top = topK(logSoftmax(temperature === 1 ? logits : div(logits, temperature), -1), k);
      return { values: top.values, indices: top.indices };
    },
  };
}

/**
 * Examples with what a teacher says to them, in memory; `undefined` when the signal ended it. Packed rows
 * are not recorded.
 * @throws OptionError when k is not from 1 to the teacher's vocabulary.
 */
export async function recordTeacher(
  { model, params }: Teacher,
  set: ExampleSet,
  backend: Backend,
  options: RecordOptions = {},
): Promise<ExampleSet<TaughtExample> | undefined> {
  const { k = 32, temperature = 1, batchSize = 16, signal, onProgress } = options;
  const { vocabSize, maxPositions } = model.sizes;
  if (!Number.isInteger(k) || k < 1 || k > vocabSize) {
    throw new OptionError(`record: k must be a whole number in [1, ${vocabSize}], got ${k}.`);
  }
  checkIn("record: temperature", temperature, 1e-3, 1e3);
  const objective = recorder(k, temperature);
  const frozen = await place(params, backend.device);
  const program = new TrainProgram({ model, frozen, trained: {}, objective }, backend);
  const taught: TaughtExample[] = [];
  const order = Uint32Array.from({ length: set.count }, (_, i) => i);
  order.sort((a, b) => set.lengths[a]! - set.lengths[b]! || a - b);
  try {
    for (let start = 0; start < order.length; start += batchSize) {
      if (signal?.aborted) return undefined;
      const indices = order.subarray(start, start + batchSize);
      const examples = await set.get(indices);
      const batch = objective.batch(examples, { rows: batchSize, maxLength: maxPositions });
      const { values, indices: ids } = await program.inspect(batch, {});
      let at = 0;
      examples.forEach((example, i) => {
        const end = at + k * example.mask.reduce((a, b) => a + b, 0);
        taught[indices[i]!] = {
          ...example,
          topIds: Int32Array.from((ids!.data as Int32Array).subarray(at, end)),
          topLogProbs: Float32Array.from((values!.data as Float32Array).subarray(at, end)),
        };
        at = end;
      });
      onProgress?.(start + indices.length);
    }
  } finally {
    await program.release();
    releaseAll(Object.values(frozen));
  }
  return { ...set, get: async (indices) => Array.from(indices, (index) => taught[index]!) };
}

/**
 * The divergence of rows from a recording.
 * @param student logits (N, V), already over the temperature
 * @param ids (N, k) int32 @param logProbs (N, k), the teacher's
 * @returns (N,)
 */
export function recordedRows(student: Value, ids: Value, logProbs: Value): Value {
  const own = gatherElements(logSoftmax(student, -1), ids, 1);
  const known = sum(mul(exp(logProbs), sub(logProbs, own)), -1);
  // What is left of one: never so little that its logarithm has no number.
  const rest = (top: Value): Value => maximum(sub(1, sum(exp(top), -1)), 1e-6);
  const [taught, left] = [rest(logProbs), rest(own)];
  return add(known, mul(taught, sub(log(taught), log(left))));
}

/**
 * Learns from examples that `recordTeacher` made.
 * @param options temperature: that of the recording
 */
export function distillRecorded(
  options: Pick<RecordOptions, "temperature"> = {},
): Objective<LanguageModel, TaughtExample> {
  const { temperature = 1 } = options;
  checkIn("distill: temperature", temperature, 1e-3, 1e3);
  return {
    name: "distill",
    batch: (examples: readonly TaughtExample[], shape) => {
      const batch = makeBatch(examples, shape);
      const [{ topIds, mask }] = examples as [TaughtExample];
      const k = topIds.length / mask.reduce((a, b) => a + b, 0);
      const count = batch.weights.size;
      const ids = new Int32Array(count * k);
      const logProbs = new Float32Array(count * k);
      let at = 0;
      for (const example of examples) {
        ids.set(example.topIds, at);
        logProbs.set(example.topLogProbs, at);
        at += example.topIds.length;
      }
      return {
        ...batch,
        topIds: new Tensor("int32", [count, k], ids),
        topLogProbs: new Tensor("float32", [count, k], logProbs),
      };
    },
    loss: ({ model, context }, { ids, rows, targets, weights, topIds, topLogProbs }) => {
      const { logits } = model.forward(context, ids!, { rows: rows! });
      const scaled = temperature === 1 ? logits : div(logits, temperature);
      const losses = recordedRows(scaled, topIds!, topLogProbs!);
      const hits = cast(equal(argMax(logits, 1), targets!), logits.dtype);
      return {
        sum: sum(mul(losses, weights!)),
        metrics: { correct: sum(mul(hits, weights!)) },
      };
    },
  };
}
