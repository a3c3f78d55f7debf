/** What a task is: data of its own, a head, an objective, and measures on held-out examples. */
import type { Adapter, LoadedAdapter } from "../../adapters/adapter.ts";
import { withModules } from "../../adapters/saved-modules.ts";
import type { Backend } from "../../backend/backend.ts";
import type { Augmentation } from "../../data/augment.ts";
import type { LocatedRecord } from "../../data/records.ts";
import type { AnyExampleSet } from "../../data/set.ts";
import { type SplitOptions, splitBound, splitHash } from "../../data/split.ts";
import { type ReadTaskOptions, readTask } from "../../data/tasks.ts";
import type { Tokenizer } from "../../data/tokenizer.ts";
import { OptionError } from "../../errors.ts";
import type { Files } from "../../host/host.ts";
import type { Images } from "../../host/images.ts";
import type {
  EncoderModel,
  PretrainedModel,
  Seq2SeqModel,
  VisionModel,
} from "../../models/model.ts";
import type { Pooling } from "../../models/pooling.ts";
import type { SentenceConfig } from "../../models/sentence-folder.ts";
import type { Module, TensorRecord } from "../../nn/module.ts";
import type { Rng } from "../../tensor/rng.ts";
import { scoreExamples } from "../finetune.ts";
import type { AnyObjective } from "../objective.ts";
import type { Trainee } from "../program.ts";
import { partsOf, type TraineeOptions, unpackedParams } from "../trainee.ts";

export interface TaskOptions extends ReadTaskOptions, SplitOptions {
  /** A file to judge by; without it a share of the data is held out by hash. */
  readonly heldOutPath?: string;
  /** All examples are held out and the head must be there: for judging alone. Default false. */
  readonly judgeOnly?: boolean;
  /** Tokens of a text, or a pair, at most; default 256, and the model's positions at most. */
  readonly maxLength?: number;
  /** Names of the classes or tags, in the order of their numbers; default: those found, or the head's. */
  readonly labels?: readonly string[];
  /** In [0, 1); default 0. */
  readonly labelSmoothing?: number;
  /** Of masked-lm: the share of tokens hidden; default 0.15. */
  readonly maskShare?: number;
  /** Of sentence-embedding: mnrl, triplet, cosine, contrastive, cosent. Default by the data. */
  readonly loss?: string;
  /** Of sentence-embedding: what cosines are multiplied by; default 20. */
  readonly scale?: number;
  /** Of sentence-embedding; default: what the folder says, else mean. */
  readonly pooling?: Pooling;
  /** Of sentence-embedding: sizes of vectors that may be cut; default none. */
  readonly dims?: readonly number[];
  /** What the folder says of vectors. */
  readonly sentence?: SentenceConfig;
  /** Most answers written when a seq2seq model is measured; default 200. */
  readonly answerLimit?: number;
  /** Of seq2seq: how answers are searched for when the model is measured; default 1 beam. */
  readonly numBeams?: number;
  /** Of seq2seq, with beams; default 1. */
  readonly lengthPenalty?: number;
  /** Of image-classification: the model's folder, which says how it wants its pictures. */
  readonly folder?: string;
  /** Of image-classification: random changes in training; default parts and mirroring. */
  readonly augmentation?: Augmentation | false;
  /** The source of a new head's numbers. */
  readonly rng: Rng;
}

export interface MeasureOptions {
  /** Examples together; default 32. */
  readonly batchSize?: number;
  /** Ends with a StateError. */
  readonly signal?: AbortSignal;
}

/** A task on a model and its data. */
export interface OpenedTask {
  readonly model: EncoderModel | Seq2SeqModel | VisionModel;
  readonly params: TensorRecord;
  /** Modules that are trained whole beside an adapter. */
  readonly modules: readonly string[];
  /** As PEFT names the task. */
  readonly taskType: string | undefined;
  readonly objective: AnyObjective;
  readonly train: AnyExampleSet;
  readonly heldOut: AnyExampleSet;
  /** Texts that were cut to maxLength. */
  readonly cut: number;
  /** A sentence on the data: classes, tags, the loss that was chosen. */
  readonly about: string;
  /** Further files of a model's folder, by path. */
  readonly files: Readonly<Record<string, string>>;
  /** Measures on held-out examples by name, the one that counts most first. */
  measure(
    trainee: Trainee<Module>,
    backend: Backend,
    options?: MeasureOptions,
  ): Promise<Readonly<Record<string, number>>>;
}

/** A task by name. */
export interface TaskKind {
  readonly name: string;
  /** What it learns, for help. */
  readonly about: string;
  /** The records it reads, for help. */
  readonly data: string;
  /** Texts, which need a tokenizer. */
  readonly reads?: undefined;
  /**
   * @throws OptionError when model, data and options do not go together; FormatError for broken data.
   */
  open(
    files: Files,
    loaded: { readonly model: PretrainedModel; readonly params: TensorRecord },
    tokenizer: Tokenizer,
    path: string,
    options: TaskOptions,
  ): Promise<OpenedTask>;
}

/** A task on pictures, which needs what decodes them in place of a tokenizer. */
export interface PictureTaskKind extends Omit<TaskKind, "open" | "reads"> {
  readonly reads: "pictures";
  /** @throws as a `TaskKind`. */
  open(
    files: Files,
    loaded: { readonly model: PretrainedModel; readonly params: TensorRecord },
    images: Images,
    path: string,
    options: TaskOptions,
  ): Promise<OpenedTask>;
}

export type AnyTaskKind = TaskKind | PictureTaskKind;

/** Records to train on and to judge by. */
export interface Sides<T> {
  readonly train: readonly T[];
  readonly heldOut: readonly T[];
}

/**
 * Reads records and holds some out, by the hash of their text.
 * @throws OptionError when nothing is left on a side that is needed.
 */
export async function readSides<T>(
  files: Files,
  path: string,
  fields: readonly string[],
  make: (found: LocatedRecord) => T,
  textOf: (record: T) => string,
  options: TaskOptions,
): Promise<Sides<T>> {
  const { map, format, heldOutPath, judgeOnly = false } = options;
  const how = { ...(map && { map }), ...(format && { format }) };
  const all = await readTask(files, path, fields, make, how);
  if (judgeOnly) return { train: [], heldOut: all };
  if (heldOutPath !== undefined) {
    return { train: all, heldOut: await readTask(files, heldOutPath, fields, make, how) };
  }
  const hashes = Float64Array.from(all, (record) => splitHash(textOf(record)));
  const bound = splitBound(hashes, options);
  const train = all.filter((_, i) => hashes[i]! >= bound);
  const heldOut = all.filter((_, i) => hashes[i]! < bound);
  if (train.length > 0 && heldOut.length > 0) return { train, heldOut };
  throw new OptionError(
    `${path}: has ${all.length} examples, too few to hold some back — give a file to judge by (--held-out <file>).`,
  );
}

/** The objective's loss on held-out examples, and its share of right answers where it has one. */
export async function lossOf(
  trainee: Trainee<Module>,
  set: AnyExampleSet,
  backend: Backend,
  { batchSize = 32, signal }: MeasureOptions,
): Promise<{ readonly loss: number; readonly accuracy: number }> {
  const score = signal
    ? await scoreExamples(trainee, set, backend, { batchSize, signal })
    : await scoreExamples(trainee, set, backend, { batchSize });
  return { loss: score?.nll ?? Number.NaN, accuracy: score?.accuracy ?? Number.NaN };
}

/** A trainee's weights as a model and an adapter beside it, for running. */
export function weightsOf({ model, adapter, frozen, trained }: Trainee<Module>): {
  readonly params: TensorRecord;
  readonly adapter?: LoadedAdapter;
} {
  if (!adapter) return { params: { ...frozen, ...trained } };
  const buffers = Object.fromEntries(
    Object.keys(adapter.initBuffers?.() ?? {}).flatMap((name) =>
      // A folder may hold fewer of them than a training changes.
      Object.hasOwn(frozen, name) ? [[name, frozen[name]!]] : [],
    ),
  );
  return {
    params: unpackedParams(model as PretrainedModel, frozen),
    adapter: { adapter, params: trained, buffers },
  };
}

/** The adapter with the task's own modules beside it. */
export function taskAdapter(task: OpenedTask, adapter: Adapter): Adapter {
  const { model, params, modules, taskType } = task;
  return withModules(adapter, model, modules, {
    params,
    ...(taskType !== undefined && { taskType }),
  });
}

/**
 * What a task trains: an adapter and the task's modules, or all parameters.
 * @param adapter by `taskAdapter`
 * @throws OptionError as `traineeOf`.
 */
export function taskTrainee(
  task: OpenedTask,
  adapter?: LoadedAdapter,
  options: TraineeOptions = {},
): Trainee<Module> {
  const { model, params, objective } = task;
  return {
    model,
    objective,
    ...("maxPositions" in model.sizes && { maxLength: model.sizes.maxPositions }),
    ...partsOf(model, params, adapter, options),
  };
}
