/** What the options of `finetune` stand for, opened: model, data, engine, adapter. */
import type { OptionValues } from "./command.ts";
import { pairsOf, promptOptions, sourceOf } from "./finetune-data.ts";
import {
  type Adapter,
  checkFinetune,
  type FinetuneOptions,
  type Host,
  type LossOn,
  lora,
  OptionError,
  type OrtBackend,
  type PreparedData,
  type PretrainedModel,
  type PromptOptions,
  prepareData,
  type Question,
  quantizedAsRead,
  questionOf,
  type ReadExamplesOptions,
  Rng,
  type Trainee,
  traineeOf,
} from "./library.ts";
import { countParameters, type OpenedModel, openBackend, openModel } from "./models.ts";
import { type ObjectiveJob, openObjective } from "./objective-job.ts";
import { type ChosenObjective, chooseObjective } from "./objectives.ts";
import { type Output, showCount } from "./output.ts";

/** Everything that options stand for, opened. */
export interface Job {
  readonly opened: OpenedModel;
  readonly backend: OrtBackend;
  readonly threads: number;
  readonly data: PreparedData;
  /** Of the data, as the user named it. */
  readonly dataName: string;
  readonly dataPath: string;
  readonly read: ReadExamplesOptions;
  readonly prompts: PromptOptions;
  readonly questions: readonly Question[];
  /** Held-out prompts that the model has no positions for. */
  readonly unanswered: number;
  readonly adapter: Adapter | undefined;
  readonly objective: ChosenObjective;
  /** What a run judges by while training. */
  readonly judged: ObjectiveJob["judged"];
  readonly makeTuner: ObjectiveJob["makeTuner"];
  readonly trainee: Trainee;
  readonly settings: FinetuneOptions;
  /** Longest example in tokens. */
  readonly maxLength: number;
  readonly lossOn: LossOn;
}

/** Settings of the training as options name them. */
export function settingsOf(options: OptionValues): FinetuneOptions {
  const number = (name: string): number | undefined => options[name] as number | undefined;
  const some = <K extends string>(key: K, value: number | undefined): { [P in K]?: number } =>
    (value === undefined ? {} : { [key]: value }) as { [P in K]?: number };
  return {
    ...some("steps", number("steps")),
    ...some("learningRate", number("learning-rate")),
    ...some("warmup", number("warmup")),
    ...some("decay", number("decay")),
    epochs: number("epochs")!,
    batchSize: number("batch-size")!,
    accumulate: number("accumulate")!,
    optimizer: options["optimizer"] as string,
    schedule: options["schedule"] as string,
    weightDecay: number("weight-decay")!,
    clipNorm: number("clip-norm")!,
    checkpoint: options["gradient-checkpointing"] === true,
    seed: number("seed")!,
  };
}

const numbersOf = (option: string, options: OptionValues): Record<string, number> =>
  Object.fromEntries(
    Object.entries(pairsOf(option, (options[option] as readonly string[] | undefined) ?? [])).map(
      ([layer, text]) => {
        const value = Number(text);
        if (Number.isFinite(value) && value > 0) return [layer, value];
        throw new OptionError(
          `finetune: --${option} ${layer} must be a number above 0, got "${text}".`,
        );
      },
    ),
  );

/** LoRA as options describe it; none with --full. */
export function adapterOf(
  opened: { readonly model: PretrainedModel },
  options: OptionValues,
): Adapter | undefined {
  if (options["full"] === true) return undefined;
  const targets = options["targets"] as string;
  return lora(opened.model, {
    rank: options["rank"] as number,
    ...(options["alpha"] !== undefined && { alpha: options["alpha"] as number }),
    rankPattern: numbersOf("rank-pattern", options),
    alphaPattern: numbersOf("alpha-pattern", options),
    dropout: options["dropout"] as number,
    targetModules: targets === "all-linear" ? targets : targets.split(","),
  });
}

function bitsOf(options: OptionValues): 4 | 8 | undefined {
  const [four, eight] = [options["load-in-4bit"] === true, options["load-in-8bit"] === true];
  if (four && eight) {
    throw new OptionError("finetune: --load-in-4bit and --load-in-8bit exclude each other.");
  }
  if ((four || eight) && options["full"] === true) {
    throw new OptionError(
      "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
    );
  }
  return four ? 4 : eight ? 8 : undefined;
}

/**
 * Opens model, data and engine, and checks that they go together.
 * @param spillFolder for data that memory does not hold
 */
export async function openJob(
  host: Host,
  output: Output,
  options: OptionValues,
  spillFolder: string,
): Promise<Job> {
  const bits = bitsOf(options);
  if (options["early-stopping"] !== undefined && options["eval-every"] === undefined) {
    throw new OptionError("finetune: --early-stopping needs --eval-every — how often to judge.");
  }
  const objective = chooseObjective(options);
  const source = sourceOf(options);
  const opened = await openModel(
    host,
    options["model"] as string,
    bits !== undefined ? { keep: quantizedAsRead({ bits }) } : {},
  );
  const { model, tokenizer } = opened;
  const { maxPositions } = model.sizes;
  const prompts = await promptOptions(host, opened.path, options);
  // A token is predicted from the one before it, so one more fits than the model has positions.
  const maxLength =
    Math.min(options["max-length"] as number, maxPositions) + (objective.readsLast ? 0 : 1);
  const lossOn = options["loss-on"] as LossOn;
  const evalLimit = options["eval-limit"] as number;
  const data = await prepareData(host.files, source.path, tokenizer, {
    ...prompts,
    ...source.read,
    ...objective.reading,
    ...(source.heldOutPath !== undefined && { heldOutPath: source.heldOutPath }),
    maxLength,
    lossOn,
    keepRaw: Math.max(1, evalLimit),
    spillFolder,
  });
  const packing = options["packing"] === true;
  const settings = { ...settingsOf(options), ...(packing && { packing: maxLength }) };
  checkFinetune(settings, data.train.count);
  const adapter = objective.adapted(adapterOf(opened, options), model);
  const freeze = (options["freeze"] as readonly string[] | undefined) ?? [];
  const plain = traineeOf(
    model,
    opened.params,
    adapter && { adapter, params: adapter.init(new Rng(settings.seed ?? 0).fold("adapter")) },
    { freeze, ...(bits !== undefined && { quantize: { bits } }) },
  );
  // A reward model judges answers and is not asked for any.
  const asked = (objective.readsLast ? [] : data.heldOutRaw)
    .flatMap((example) => questionOf(example, tokenizer, prompts) ?? [])
    .slice(0, evalLimit);
  const questions = asked.filter(({ ids }) => ids.length < maxPositions);
  const threads = options["threads"] as number | undefined;
  const backend = await openBackend(output, threads);
  const { trainee, train, heldOut, judged, makeTuner } = await openObjective(
    host,
    output,
    options,
    objective,
    {
      opened,
      adapter,
      trainee: plain,
      data,
      backend,
      settings,
      prompts,
      read: source.read,
      maxLength,
      spillFolder,
    },
  );
  return {
    objective,
    judged,
    makeTuner,
    opened,
    backend,
    threads: threads ?? backend.binding.maxThreads,
    data: { ...data, train, heldOut },
    dataName: source.name,
    dataPath: source.path,
    read: { ...source.read, keepsLabels: objective.reading.keepsLabels },
    prompts,
    questions,
    unanswered: asked.length - questions.length,
    adapter,
    trainee,
    settings,
    maxLength,
    lossOn,
  };
}

/** What a person wants to know before it starts. */
export function introduce(output: Output, job: Job): void {
  const { opened, data, adapter, trainee } = job;
  const { train, heldOut, report, kinds } = data;
  const trained = Object.values(trainee.trained).reduce((sum, { size }) => sum + size, 0);
  const how = adapter
    ? `${adapter.title} on ${adapter.targets.length} layers`
    : Object.keys(trainee.frozen).length > 0
      ? "the rest is frozen"
      : "all";
  const head = (word: string): string => output.style(word.padEnd(8), "bold");
  output.line(
    `${head("Model")} ${opened.name}: ${opened.model.family}, ${showCount(countParameters(opened.model))} parameters; trained: ${showCount(trained)} (${how})`,
  );
  output.line(
    `${head("Data")} ${job.dataName}: ${train.count} examples, ${showCount(train.tokens)} tokens, ${showCount(train.lossTokens)} with loss; ${heldOut.count} held out`,
  );
  output.line(`${head("Engine")} ${job.backend.name}, ${job.threads} threads`);
  const { cut, empty } = report.train;
  if (cut > 0) output.warn(`${cut} examples were cut to fit the model or --max-length.`);
  if (empty > 0) output.warn(`${empty} examples were left out: nothing in them carries loss.`);
  if (kinds.preference > 0 && !["preference", "judged"].includes(job.objective.data)) {
    output.warn(
      `Of ${kinds.preference} preferences the chosen answer is learnt, the rejected one is not used.`,
    );
  }
  if (job.unanswered > 0) {
    output.warn(
      `${job.unanswered} held-out prompts are longer than the model takes and are not answered.`,
    );
  }
}

/** `--preview`: the first example of each layout, and which of its tokens carry loss. */
export async function previewJob(output: Output, job: Job): Promise<void> {
  const { previewLegend, showPreview } = await import("./preview.ts");
  output.line(previewLegend(output));
  output.line();
  const reports = showPreview(output, job.data.samples, job.opened.tokenizer);
  output.json({ data: job.dataName, samples: reports });
}
