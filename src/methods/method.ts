/**
 * What a method is: the facts of a published system or a well-known technique, its options, and the roles it
 * plays. Roles compose in one loop; shared code reads what a role declares and never asks for an id.
 */
import type { Adapter, AdapterKind, PrepareScene } from "../adapters/adapter.ts";
import type { LoraOptions } from "../adapters/lora.ts";
import type { DataKind } from "../data/encode.ts";
import type { AnyExampleSet } from "../data/set.ts";
import { OptionError } from "../errors.ts";
import type { Drafter } from "../infer/drafter.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { OptionSpec, OptionSpecs } from "../options.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { AnyObjective } from "../train/objective.ts";
import type { PolicyOptions } from "../train/policy.ts";

export const capabilities = [
  "adapt",
  "experts",
  "merge",
  "compress",
  "elastic",
  "distill",
  "curriculum",
  "search",
  "route",
  "continual",
  "test-time",
  "sequence",
  "generate",
  "decode",
  "memory",
  "robust",
  "reinforce",
  "agents",
  "vision",
  "forecast",
  "science",
  "lifecycle",
  "align",
] as const;

export type Capability = (typeof capabilities)[number];

/** Where a published system or technique comes from. */
export interface Paper {
  readonly title: string;
  readonly year: number;
  readonly url: string;
}

/**
 * faithful: follows the paper with all its named parts and is tested for what it promises; parity: equals an
 * independent implementation's recorded numbers as well.
 */
export type Implementation = "planned" | "sketch" | "faithful" | "parity";

/** What the committed experiment says. */
export type Claim = "notRun" | "holds" | "doesNotHold" | "undecided";

/** A model that an objective compares with or learns from. */
export interface OtherModel {
  readonly model: LanguageModel;
  readonly params: TensorRecord;
}

/** What objectives of all kinds say of themselves. */
interface Learning<O> {
  /** What examples it needs. */
  readonly data: DataKind;
  /** Other models it takes, by name: `teacher` is an option `--teacher`. */
  readonly models?: readonly string[];
  /** Compares with the model as it was before training; where options decide, with these. Default false. */
  readonly hasReference?: boolean | ((options: O) => boolean);
}

/** What an objective is made for. */
export interface ObjectiveScene {
  readonly model: LanguageModel;
  /** One model for each name in `models`. */
  readonly others: Readonly<Record<string, OtherModel>>;
}

/** What is learnt. */
export interface ObjectiveRole<O> extends Learning<O> {
  /** What the reference says of an example may be recorded once, before training. Default false. */
  readonly isRecordable?: boolean;
  /** Reads an example with its last token, so that one token less fits the model. Default false. */
  readonly readsLast?: boolean;
  /** The adapter with what this objective trains beside it, as it is saved; needs one then. */
  adapt?(adapter: Adapter, model: LanguageModel): Adapter;
  /** @throws OptionError for options that do not fit. */
  make(scene: ObjectiveScene, options: O): AnyObjective;
}

/** What a model learns from its own answers, and how it gives them. */
export interface PolicyRole<O> extends Learning<O> {
  /** Answers are judged by a reward. */
  readonly usesReward: boolean;
  /** @throws OptionError for options that do not fit. */
  make(
    scene: ObjectiveScene,
    options: O,
  ): Pick<PolicyOptions, "method"> &
    Required<Pick<PolicyOptions, "iterations" | "maxNewTokens" | "temperature">>;
}

/** Which examples are learnt from, and when. */
export interface DataPolicyRole<O> {
  /** Further files of examples, by the name of the option that gives them: `replay` is `--replay`. */
  readonly files?: readonly string[];
  /**
   * @param scene `files` has a set for each name in `files`
   * @throws OptionError for options that do not fit.
   */
  apply(
    scene: {
      readonly train: AnyExampleSet;
      readonly files: Readonly<Record<string, AnyExampleSet>>;
      readonly rng: Rng;
    },
    options: O,
  ): AnyExampleSet | Promise<AnyExampleSet>;
}

/** First numbers of a LoRA, from weights or data. */
export interface InitialiserRole<O> {
  /** Needs the training data. */
  readonly readsData: boolean;
  /** Needs the base's weights as floats: 4 or 8 bits do not do. Default false. */
  readonly readsWeights?: boolean;
  /** Finds a base in 4 or 8 bits itself, from its weights as floats: needs such bits. Default false. */
  readonly choosesBits?: boolean;
  initialise(
    scene: PrepareScene,
    lora: LoraOptions,
    options: O,
  ): Promise<Initialised> | Initialised;
}

export interface Initialised {
  /** LoRA as the initialiser wants it: ranks of layers may be others. */
  readonly lora: LoraOptions;
  /** First numbers of that LoRA. */
  readonly params: TensorRecord;
  /**
   * The base less scale · B A, so that the model is unchanged at first; the trained adapter is then kept as
   * one of twice the rank on the base as it was. Default false.
   */
  readonly isTakenFromBase?: boolean;
  /**
   * Of one that chooses the base's bits: weights in place of the base's, floats that quantise to themselves.
   * The trained adapter is then kept near, not exactly, as it was trained. Default: none.
   */
  readonly quantized?: TensorRecord;
  /** What is told of it: ranks, explained variance, batches used. */
  readonly report: Readonly<Record<string, unknown>>;
}

/** One tensor of all models that are merged. */
export interface MergeInput {
  /** The parameter's name. */
  readonly name: string;
  /** The base's tensor, where a base is given. */
  readonly base: Tensor<"float32"> | undefined;
  /** One per model, all of one shape. */
  readonly tensors: readonly Tensor<"float32">[];
  /** By (seed, name): the same bits in whatever order tensors come. */
  readonly rng: Rng;
}

/** Combines trained weights, one tensor at a time. */
export interface MergeRole<O> {
  /** Works on differences from a base. */
  readonly needsBase: boolean;
  readonly models: { readonly least: number; readonly most?: number };
  /** Options that each model has of its own, as its weight or density. */
  readonly perModel: readonly (keyof O & string)[];
  /**
   * Each element of the result depends on that element of the inputs alone, and on no random numbers:
   * tensors too large for memory may come in parts. Default false.
   */
  readonly isElementwise?: boolean;
  /** Whether models that are all the same are merged into that model; default: they are. */
  readonly keepsEqual?: (options: readonly O[]) => boolean;
  /**
   * @param options of each model, those that are not `perModel` alike in all
   * @returns a tensor of the same shape
   */
  merge(input: MergeInput, options: readonly O[]): Tensor<"float32">;
}

/** Proposes tokens that the model then checks, many in one pass. */
export interface DecoderRole<O> {
  /** Whether it reads a corpus before it begins. */
  readonly corpus: "needed" | "used" | "unused";
  /** @throws OptionError for options that do not fit, or a corpus that is needed and not there. */
  make(
    scene: { readonly vocabSize: number; readonly rng: Rng; readonly corpus?: Int32Array },
    options: O,
  ): Drafter;
}

export interface Roles<O> {
  readonly adapter?: AdapterKind<O>;
  readonly initialiser?: InitialiserRole<O>;
  readonly objective?: ObjectiveRole<O>;
  readonly policy?: PolicyRole<O>;
  readonly dataPolicy?: DataPolicyRole<O>;
  readonly merge?: MergeRole<O>;
  readonly decoder?: DecoderRole<O>;
}

export type RoleName = keyof Roles<never>;

/** Roles that methods play, here or one day. */
export type PlannedRole =
  | RoleName
  | "transform"
  | "model"
  | "router"
  | "searcher"
  | "streamLearner"
  | "agent"
  | "simulator"
  | "analysis";

export const roleNames: readonly PlannedRole[] = [
  "adapter",
  "initialiser",
  "objective",
  "policy",
  "dataPolicy",
  "merge",
  "decoder",
  "transform",
  "model",
  "router",
  "searcher",
  "streamLearner",
  "agent",
  "simulator",
  "analysis",
];

/** Of a method that has none. */
export type NoOptions = Readonly<Record<never, never>>;

export interface Method<O extends object = NoOptions> {
  /** The name of its file, and of everything else about it. */
  readonly id: string;
  /** In the list of published systems; null for a well-known technique. */
  readonly number: number | null;
  /** Other words that people ask for it by; default none. */
  readonly aliases?: readonly string[];
  /** As its authors write it. */
  readonly title: string;
  readonly capability: Capability;
  readonly summary: string;
  readonly paper?: Paper;
  readonly implementation: Implementation;
  /** Default "notRun". */
  readonly claim?: Claim;
  /** Ids of methods that it stands on. */
  readonly buildsOn?: readonly string[];
  readonly options: OptionSpecs<O>;
  /** Those that are there; a planned one has none yet. */
  readonly roles: Roles<O>;
  /** What a planned one is going to be. */
  readonly plannedRoles?: readonly PlannedRole[];
  /** As an adapter or initialiser: the model gives other numbers before the first step already. Default false. */
  readonly isChangedAtFirst?: boolean;
  /** Of an adapter: the option by which the number of trained parameters is set; default none. */
  readonly sizedBy?: keyof O & string;
  /** Options for a run on a tiny model, where the defaults are too large for one. */
  readonly tiny?: Partial<O>;
}

/** A method whose options are settled elsewhere. */
export interface AnyMethod extends Omit<Method<never>, "options" | "roles" | "tiny" | "sizedBy"> {
  readonly options: Readonly<Record<string, OptionSpec>>;
  // biome-ignore lint/suspicious/noExplicitAny: options are read by their description.
  readonly roles: Roles<any>;
  readonly sizedBy?: string;
  readonly tiny?: Readonly<Record<string, unknown>>;
}

/**
 * A method, checked: an id of small letters, digits and dashes, a paper where it has a number.
 * @throws OptionError when the record contradicts itself.
 */
export function defineMethod<O extends object>(method: Method<O>): Method<O> {
  const wrong = (what: string): OptionError => new OptionError(`method "${method.id}": ${what}.`);
  if (!/^[a-z0-9]+(-[a-z0-9]+)*$/.test(method.id)) {
    throw wrong("its id must be small letters, digits and single dashes");
  }
  if (method.number !== null && !method.paper) throw wrong("has a number and no paper");
  const isPlanned = method.implementation === "planned";
  if (isPlanned !== (Object.keys(method.roles).length === 0)) {
    throw wrong(isPlanned ? "is planned and has roles" : "has no role");
  }
  return method;
}
