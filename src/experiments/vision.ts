/** Models of pictures held as numbers: examples, the objective, training, accuracy. */
import type { Backend } from "../backend/backend.ts";
import { DataHash } from "../data/data-hash.ts";
import { checkIndex, type ExampleSet } from "../data/set.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast, equal, mul } from "../ir/elementwise.ts";
import { argMax, sum } from "../ir/reduce.ts";
import type { VisionModel } from "../models/model.ts";
import { crossEntropy } from "../nn/losses.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type FinetuneOptions, type FinetuneStep, finetune } from "../train/finetune.ts";
import type { Objective } from "../train/objective.ts";
import { type Trainee, TrainProgram } from "../train/program.ts";
import { type ImageSet, sizeOfImage } from "./data/image-set.ts";
import type { ExperimentContext } from "./experiment.ts";

/** One picture: (C·H·W) numbers as the model reads them, and its class. */
export interface PixelExample {
  readonly pixels: Float32Array;
  readonly label: number;
}

/** Pictures as examples; pixels become 2x - 1, which is centred. */
export function pixelSet(set: ImageSet): ExampleSet<PixelExample> {
  const size = sizeOfImage(set);
  const pixels = set.pixels.map((x) => 2 * x - 1);
  const hash = new DataHash();
  hash.bytes(new Uint8Array(pixels.buffer));
  hash.bytes(new Uint8Array(set.labels.buffer));
  return {
    count: set.count,
    lengths: new Int32Array(set.count).fill(1),
    tokens: set.count,
    lossTokens: set.count,
    dataHash: hash.digest(),
    get: async (indices) =>
      Array.from(indices, (index) => {
        checkIndex(index, set.count);
        return {
          pixels: pixels.subarray(index * size, (index + 1) * size),
          label: set.labels[index]!,
        };
      }),
    close: async () => {},
  };
}

/**
 * The class of a picture: cross-entropy of the head's logits. A batch has `pixels` (B, C, H, W), `targets` (B,)
 * int32 and `weights` (B,); `inspect` gives `logits` and `pooled`.
 */
export function pixelClassification(
  model: VisionModel,
  options: { readonly labelSmoothing?: number } = {},
): Objective<VisionModel, PixelExample> {
  const { labelSmoothing = 0 } = options;
  const { channels, imageSize } = model.sizes;
  const size = channels * imageSize[0] * imageSize[1];
  if (!model.head) throw new OptionError(`pixels: the ${model.family} has no head for classes.`);
  return {
    name: "pixel-classification",
    learningRate: { adapter: 2e-3, full: 1e-3 },
    batch: (examples, { rows }) => {
      const pixels = new Float32Array(rows * size);
      const targets = new Int32Array(rows);
      const weights = new Float32Array(rows);
      examples.forEach((example, row) => {
        if (example.pixels.length !== size) {
          throw new OptionError(
            `pixels: a picture has ${example.pixels.length} numbers, the model reads ${channels} × ${imageSize.join(" × ")}.`,
          );
        }
        pixels.set(example.pixels, row * size);
        targets[row] = example.label;
        weights[row] = 1;
      });
      return {
        pixels: new Tensor("float32", [rows, channels, ...imageSize], pixels),
        targets: new Tensor("int32", [rows], targets),
        weights: new Tensor("float32", [rows], weights),
      };
    },
    loss: ({ model: seen, context }, { pixels, targets, weights }) => {
      const { logits } = seen.forward(context, pixels!);
      const losses = crossEntropy(logits!, targets!, { reduction: "none", labelSmoothing });
      const hits = cast(equal(argMax(logits!, 1), targets!), "float32");
      return { sum: sum(mul(losses, weights!)), metrics: { correct: sum(mul(hits, weights!)) } };
    },
    inspect: ({ model: seen, context }, { pixels }) => {
      const { logits, pooled } = seen.forward(context, pixels!);
      return { logits: logits!, ...(pooled && { pooled }) };
    },
  };
}

/** All parameters trained; running statistics stay. */
export function visionTrainee(
  model: VisionModel,
  params: TensorRecord,
  options: { readonly labelSmoothing?: number; readonly only?: (path: string) => boolean } = {},
): Trainee<VisionModel> {
  const { only = () => true } = options;
  const [trained, frozen]: [TensorRecord, TensorRecord] = [{}, {}];
  for (const [path, { kind }] of model.slots()) {
    (kind === "parameter" && only(path) ? trained : frozen)[path] = params[path]!;
  }
  return { model, trained, frozen, objective: pixelClassification(model, options) };
}

/**
 * `finetune` inside an experiment: ends with the signal, shows its steps, and copies what it trained.
 * @throws what the signal's reason is when it was aborted
 */
export async function train(
  context: Pick<ExperimentContext, "backend" | "signal" | "progress">,
  trainee: Trainee<Module>,
  examples: Parameters<typeof finetune>[1],
  options: FinetuneOptions = {},
): Promise<{ readonly params: TensorRecord; readonly losses: readonly number[] }> {
  const { backend, signal, progress } = context;
  const { params, losses, isStopped } = await finetune(trainee, examples, backend, {
    ...options,
    signal,
    onStep: (info: FinetuneStep) => {
      if (info.step % 10 === 0 || info.step === info.steps) {
        progress(`step ${info.step}/${info.steps}, loss ${info.loss.toFixed(3)}`);
      }
      options.onStep?.(info);
    },
  });
  signal.throwIfAborted();
  if (isStopped) throw new StateError("train: ended before its last step.");
  const copies = Object.entries(params).map(([path, tensor]) => [path, tensor.clone()]);
  return { params: Object.fromEntries(copies), losses };
}

/** What a trained model says of pictures. */
export interface Answers {
  /** (N, classes) */
  readonly logits: Float32Array;
  /** (N,) */
  readonly predicted: Int32Array;
  /** Share of right answers. */
  readonly accuracy: number;
  /** Mean cross-entropy, in nats. */
  readonly loss: number;
  /** What the head reads, (N, D). */
  readonly pooled: Float32Array;
}

/**
 * Runs a trained model over pictures.
 * @param trainee with the trained parameters, as `{ ...trainee, trained: params }`
 */
export async function answers(
  trainee: Trainee<VisionModel>,
  set: ImageSet,
  backend: Backend,
  options: { readonly batchSize?: number; readonly signal?: AbortSignal } = {},
): Promise<Answers> {
  const { batchSize = 250, signal } = options;
  const examples = pixelSet(set);
  const program = new TrainProgram(trainee, backend);
  const objective = trainee.objective ?? pixelClassification(trainee.model);
  const predicted = new Int32Array(set.count);
  let [right, loss, classes, width] = [0, 0, 0, 0];
  let [logits, pooled] = [new Float32Array(0), new Float32Array(0)];
  try {
    for (let start = 0; start < set.count; start += batchSize) {
      signal?.throwIfAborted();
      const count = Math.min(batchSize, set.count - start);
      const rows = await examples.get(Array.from({ length: count }, (_, i) => start + i));
      const batch = objective.batch(rows as never, { rows: batchSize });
      const found = await program.inspect(batch, trainee.trained);
      const scores = found["logits"]!.data as Float32Array;
      if (start === 0) {
        [classes, width] = [found["logits"]!.shape[1]!, found["pooled"]?.shape[1] ?? 0];
        logits = new Float32Array(set.count * classes);
        pooled = new Float32Array(set.count * width);
      }
      logits.set(scores.subarray(0, count * classes), start * classes);
      const read = found["pooled"]?.data as Float32Array | undefined;
      if (read) pooled.set(read.subarray(0, count * width), start * width);
    }
  } finally {
    await program.release();
  }
  for (let i = 0; i < set.count; i++) {
    const row = logits.subarray(i * classes, (i + 1) * classes);
    let best = 0;
    for (let k = 1; k < classes; k++) if (row[k]! > row[best]!) best = k;
    predicted[i] = best;
    const label = set.labels[i]!;
    if (best === label) right++;
    const total = row.reduce((sum, x) => sum + Math.exp(x - row[best]!), 0);
    loss += row[best]! + Math.log(total) - row[label]!;
  }
  return { logits, predicted, accuracy: right / set.count, loss: loss / set.count, pooled };
}

/** Share of right answers. */
export async function accuracy(
  trainee: Trainee<VisionModel>,
  set: ImageSet,
  backend: Backend,
  options: { readonly batchSize?: number; readonly signal?: AbortSignal } = {},
): Promise<number> {
  return (await answers(trainee, set, backend, options)).accuracy;
}
