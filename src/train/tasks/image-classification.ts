/** The class of a picture: cross-entropy of a classifier's logits, with a full training or an adapter. */
import { type Adapter, newNumbers } from "../../adapters/adapter.ts";
import { withModules } from "../../adapters/saved-modules.ts";
import type { Backend } from "../../backend/backend.ts";
import { type Preprocessing, pixelsOf } from "../../data/images.ts";
import type { PictureExample } from "../../data/picture-set.ts";
import type { ExampleSet } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import {
  type ClassificationScores,
  classificationScores,
} from "../../infer/metrics/classification.ts";
import { cast, equal, less, mul } from "../../ir/elementwise.ts";
import { gatherElements } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import { argMax, sum } from "../../ir/reduce.ts";
import type { VisionModel } from "../../models/model.ts";
import { crossEntropy } from "../../nn/losses.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import type { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective, Scene } from "../objective.ts";
import { type Trainee, TrainProgram } from "../program.ts";
import { withAdapter } from "../trainee.ts";

export interface ImageClassificationOptions {
  /** Share of the target spread over all classes, in [0, 1); default 0. */
  readonly labelSmoothing?: number;
  /**
   * What batch norm does in training: "running" keeps the statistics of the checkpoint, "batch" takes those
   * of each batch; then `updateStatistics` sets the running ones afterwards. Default "running".
   */
  readonly statistics?: "running" | "batch";
}

/**
 * A batch has `pixels` (B, 3, H, W), `targets` (B,) int32 and `weights` (B,). Rows without an example
 * repeat the others with weight 0, so that the statistics of a batch are those of pictures.
 * @throws OptionError for a model without a head of single labels.
 */
export function imageClassification(
  model: VisionModel,
  preprocessing: Preprocessing,
  options: ImageClassificationOptions = {},
): Objective<VisionModel, PictureExample> {
  const { labelSmoothing = 0, statistics = "running" } = options;
  const classes = classesOf(model);
  const logitsOf = ({ model: seen, context }: Scene<VisionModel>, batch: ValueRecord) =>
    seen.forward(context, batch["pixels"]!, {
      statistics: context.training ? statistics : "running",
    }).logits!;
  return {
    name: "image-classification",
    learningRate: { adapter: 2e-3, full: 1e-4 },
    batch: (examples, { rows }) => {
      const filled = Array.from({ length: rows }, (_, i) => examples[i % examples.length]!);
      return {
        pixels: pixelsOf(
          filled.map(({ picture }) => picture),
          preprocessing,
        ),
        targets: Tensor.from(
          filled.map(({ label }) => label),
          [rows],
          "int32",
        ),
        weights: Tensor.from(filled.map((_, i) => (i < examples.length ? 1 : 0))),
      };
    },
    loss: (scene, batch) => {
      const { targets, weights } = batch;
      const logits = logitsOf(scene, batch);
      const losses = crossEntropy(logits, targets!, { reduction: "none", labelSmoothing });
      const hits = cast(equal(argMax(logits, 1), targets!), "float32");
      // Among the first five is whom fewer than five others surpass.
      const own = gatherElements(logits, reshape(targets!, [-1, 1]), 1);
      const above = sum(cast(less(own, logits), "float32"), 1);
      const among = cast(less(above, Math.min(5, classes)), "float32");
      return {
        sum: sum(mul(losses, weights!)),
        metrics: { correct: sum(mul(hits, weights!)), top5: sum(mul(among, weights!)) },
      };
    },
    inspect: (scene, batch) => ({ logits: logitsOf(scene, batch) }),
  };
}

/** Outputs of the head. */
function classesOf({ head, family }: VisionModel): number {
  if (!head) {
    throw new OptionError(
      `image-classification: the ${family} has no head — give it one by withLabels.`,
    );
  }
  if (head.problem !== "single_label_classification" || head.labels.length < 2) {
    throw new OptionError(
      `image-classification: needs a head for one of several classes, this one is for ${head.problem} with ${head.labels.length} outputs.`,
    );
  }
  return head.labels.length;
}

/** Parameters that take a gradient, and the rest: running statistics, and what is frozen. */
function parted(
  model: VisionModel,
  params: TensorRecord,
  isTrained: (path: string) => boolean,
): { trained: TensorRecord; frozen: TensorRecord } {
  const trained: TensorRecord = {};
  const frozen: TensorRecord = {};
  for (const [path, slot] of model.slots()) {
    (slot.kind === "parameter" && isTrained(path) ? trained : frozen)[path] = params[path]!;
  }
  return { trained, frozen };
}

/**
 * What is trained of a model of pictures: all parameters, or of some modules alone (`only`, as
 * `["classifier"]`).
 * @throws OptionError when nothing is left to train.
 */
export function pictureTrainee(
  model: VisionModel,
  params: TensorRecord,
  objective: Objective<VisionModel, PictureExample>,
  only?: readonly string[],
): Trainee<VisionModel> {
  const isTrained = (path: string): boolean =>
    !only || only.some((name) => `${path}.`.startsWith(`${name}.`));
  const parts = parted(model, params, isTrained);
  if (Object.keys(parts.trained).length === 0) {
    throw new OptionError(`image-classification: ${only?.join(", ")} names no parameters.`);
  }
  return { model, objective, ...parts };
}

/**
 * The same with an adapter beside the frozen body, and the head trained with it; PEFT keeps the head in the
 * adapter's folder (`modules_to_save`).
 * @returns the adapter to save, and its first numbers among what is trained
 */
export function pictureAdapterTrainee(
  model: VisionModel,
  params: TensorRecord,
  objective: Objective<VisionModel, PictureExample>,
  inner: Adapter,
  rng: Rng,
): { readonly trainee: Trainee<VisionModel>; readonly adapter: Adapter } {
  const adapter = withModules(inner, model, model.head?.modules ?? [], { params });
  const loaded = { adapter, ...newNumbers(adapter, rng) };
  return { adapter, trainee: { model, objective, ...withAdapter(model, params, loaded) } };
}

/** The trained model's parameters whole: of a full training, or with the adapter written in. */
export function mergedParams(
  { frozen, adapter }: Trainee<VisionModel>,
  trained: TensorRecord,
  buffers: TensorRecord = {},
): TensorRecord {
  if (!adapter) return { ...frozen, ...trained };
  const all = { ...frozen, ...buffers };
  const own = new Set(Object.keys(adapter.initBuffers?.() ?? {}));
  const base = Object.fromEntries(Object.entries(all).filter(([path]) => !own.has(path)));
  return { ...base, ...adapter.merge(base, trained, all) };
}

export interface PictureScores extends ClassificationScores {
  /** How often the right class is among the five likeliest. */
  readonly top5: number;
  /** Mean cross-entropy. */
  readonly loss: number;
}

/** Judges a trained model: accuracy, top-5, and the table of truth and answer. */
export async function scorePictures(
  trainee: Trainee<VisionModel>,
  set: ExampleSet<PictureExample>,
  backend: Backend,
  options: { readonly batchSize?: number; readonly signal?: AbortSignal } = {},
): Promise<PictureScores> {
  const { batchSize = 16, signal } = options;
  const { model, objective } = trainee;
  const classes = classesOf(model);
  const program = new TrainProgram(trainee, backend);
  const truth: number[] = [];
  const answers: number[] = [];
  let [loss, top5] = [0, 0];
  try {
    for (let start = 0; start < set.count; start += batchSize) {
      signal?.throwIfAborted();
      const count = Math.min(batchSize, set.count - start);
      const examples = await set.get(Array.from({ length: count }, (_, i) => start + i));
      const batch = objective!.batch(examples as never, { rows: batchSize });
      const logits = (await program.inspect(batch, trainee.trained))["logits"]!.numbers();
      examples.forEach(({ label }, row) => {
        const scores = Array.from({ length: classes }, (_, k) => logits[row * classes + k]!);
        const best = Math.max(...scores);
        truth.push(label);
        answers.push(scores.indexOf(best));
        if (scores.filter((x) => x > scores[label]!).length < 5) top5++;
        const total = scores.reduce((z, x) => z + Math.exp(x - best), 0);
        loss += best + Math.log(total) - scores[label]!;
      });
    }
  } finally {
    await program.release();
  }
  return {
    ...classificationScores(truth, answers, classes),
    top5: top5 / set.count,
    loss: loss / set.count,
  };
}
