/** Objectives by name: what data each needs, which options are its own, and how it is made from them. */
import type { OptionValues } from "./command.ts";
import {
  type Adapter,
  type AnyObjective,
  causalLm,
  type DataKind,
  type DistillOptions,
  type Divergence,
  distill,
  dpo,
  gkdPolicy,
  grpoPolicy,
  ipo,
  kto,
  type LanguageModel,
  OptionError,
  orpo,
  type PolicyMethod,
  partsOf,
  ppoPolicy,
  type RawExample,
  rewardAdapter,
  rewardModel,
  simpo,
  type Teacher,
} from "./library.ts";
import { objectiveOptions } from "./objective-options.ts";

/** What an objective is made from. */
interface Making {
  readonly model: LanguageModel;
  readonly teacher: Teacher | undefined;
  /** Numbers and words that were given, under the names of the objective's own options. */
  readonly take: (names: Readonly<Record<string, string>>) => Record<string, never>;
}

interface Entry {
  readonly data: DataKind;
  /** Options that are its own. */
  readonly takes: readonly string[];
  /** Compares with the model as it was. */
  readonly hasReference?: boolean;
  readonly hasTeacher?: boolean;
  /** Reads an example with its last token, so that it is one shorter. */
  readonly readsLast?: boolean;
  /** Learns from a fixed set of examples. */
  readonly make?: (making: Making) => AnyObjective;
  /** Learns from its own answers. */
  readonly policy?: (making: Making) => PolicyMethod;
}

function teacherOf(name: string, teacher: Teacher | undefined): Teacher {
  if (teacher) return teacher;
  throw new OptionError(
    `finetune: --objective ${name} needs --teacher <folder>, a model to learn from.`,
  );
}

const divergenceNames = {
  divergence: "divergence",
  beta: "beta",
  alpha: "skew",
  nllWeight: "sft-weight",
};
const divergenceTakes = ["teacher", "divergence", "beta", "skew", "sft-weight", "temperature"];
const ownAnswers = ["temperature", "max-new-tokens"];
const rewarded = ["reward", "reward-schema", "reward-length", "group-size", "iterations", "clip"];

const table: Readonly<Record<string, Entry>> = {
  sft: { data: "any", takes: ["replay", "replay-share"], make: () => causalLm },
  dpo: {
    data: "preference",
    takes: ["beta", "loss", "label-smoothing", "sft-weight", "reference"],
    hasReference: true,
    make: ({ take }) =>
      dpo(
        take({
          beta: "beta",
          loss: "loss",
          labelSmoothing: "label-smoothing",
          sftWeight: "sft-weight",
        }),
      ),
  },
  ipo: {
    data: "preference",
    takes: ["beta", "reference"],
    hasReference: true,
    make: ({ take }) => ipo(take({ beta: "beta" })),
  },
  orpo: { data: "preference", takes: ["beta"], make: ({ take }) => orpo(take({ beta: "beta" })) },
  simpo: {
    data: "preference",
    takes: ["beta", "gamma", "label-smoothing", "sft-weight"],
    make: ({ take }) =>
      simpo(
        take({
          beta: "beta",
          gamma: "gamma",
          labelSmoothing: "label-smoothing",
          sftWeight: "sft-weight",
        }),
      ),
  },
  kto: {
    data: "judged",
    takes: ["beta", "desirable-weight", "undesirable-weight", "reference"],
    hasReference: true,
    make: ({ take }) =>
      kto(
        take({
          beta: "beta",
          desirableWeight: "desirable-weight",
          undesirableWeight: "undesirable-weight",
        }),
      ),
  },
  reward: {
    data: "preference",
    takes: ["margin", "center"],
    readsLast: true,
    make: ({ take, model }) =>
      rewardModel({ dModel: model.sizes.dModel, ...take({ margin: "margin", center: "center" }) }),
  },
  distill: {
    data: "any",
    takes: divergenceTakes,
    hasTeacher: true,
    make: ({ take, teacher }) =>
      distill({
        teacher: teacherOf("distill", teacher),
        ...(take({ ...divergenceNames, temperature: "temperature" }) as Omit<
          DistillOptions,
          "teacher"
        >),
      }),
  },
  grpo: {
    data: "answered",
    takes: [...ownAnswers, ...rewarded, "beta", "normalize", "advantage-scale", "reference"],
    hasReference: true,
    policy: ({ take }) =>
      grpoPolicy({
        ...take({
          groupSize: "group-size",
          beta: "beta",
          clipLow: "clip",
          normalize: "normalize",
          scale: "advantage-scale",
          temperature: "temperature",
        }),
        maxLength: (take({ n: "max-new-tokens" })["n"] as number | undefined) ?? 64,
      }),
  },
  ppo: {
    data: "answered",
    takes: [...ownAnswers, ...rewarded, "gamma", "lambda", "kl-weight", "reference"],
    hasReference: true,
    policy: ({ take, model }) =>
      ppoPolicy({
        dModel: model.sizes.dModel,
        ...take({
          groupSize: "group-size",
          clip: "clip",
          gamma: "gamma",
          lambda: "lambda",
          klWeight: "kl-weight",
          temperature: "temperature",
        }),
      }),
  },
  gkd: {
    data: "answered",
    takes: [...divergenceTakes, "max-new-tokens", "on-policy"],
    hasTeacher: true,
    policy: ({ take, teacher }) =>
      gkdPolicy({
        teacher: teacherOf("gkd", teacher),
        ...(take({ ...divergenceNames, onPolicy: "on-policy" }) as {
          readonly divergence?: Divergence;
        }),
      }),
  },
};

/** An objective as options name it, before anything is opened. */
export interface ChosenObjective extends Entry {
  readonly name: string;
  /** What `prepareData` is to do for it. */
  readonly reading: {
    readonly parts: (raw: RawExample) => readonly RawExample[];
    readonly keepsLabels: boolean;
  };
  making(model: LanguageModel, teacher: Teacher | undefined): Making;
  /** The adapter as this objective saves it. */
  adapted(adapter: Adapter | undefined, model: LanguageModel): Adapter | undefined;
}

/**
 * The objective that options name.
 * @throws OptionError when an option is given that the objective does not have.
 */
export function chooseObjective(options: OptionValues): ChosenObjective {
  const name = options["objective"] as string;
  const entry = table[name]!;
  for (const option of Object.keys(objectiveOptions)) {
    if (option === "objective" || options[option] === undefined) continue;
    if (entry.takes.includes(option)) continue;
    const others = Object.keys(table).filter((other) => table[other]!.takes.includes(option));
    throw new OptionError(
      `finetune: --${option} is not of --objective ${name} — it is of ${others.join(", ")}.`,
    );
  }
  if (name === "reward" && options["full"] === true) {
    throw new OptionError(
      "finetune: --objective reward trains a head beside an adapter — leave --full out.",
    );
  }
  if (entry.policy && options["packing"] === true) {
    throw new OptionError(`finetune: --objective ${name} packs no answers — leave --packing out.`);
  }
  return {
    ...entry,
    name,
    reading: {
      parts: (raw) => partsOf(raw, entry.data, name),
      keepsLabels: entry.data === "judged",
    },
    making: (model, teacher) => ({
      model,
      teacher,
      take: (names) =>
        Object.fromEntries(
          Object.entries(names).flatMap(([key, option]) =>
            options[option] === undefined ? [] : [[key, options[option]]],
          ),
        ) as Record<string, never>,
    }),
    adapted: (adapter, model) =>
      name === "reward" && adapter ? rewardAdapter(adapter, model.sizes.dModel) : adapter,
  };
}
