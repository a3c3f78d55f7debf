/** What the options of `finetune` stand for, opened: model, data, engine, adapter. */

import {
  adaptedBy,
  type ChosenMethods,
  type ChosenObjective,
  chooseMethods,
} from "./choose-methods.ts";
import type { OptionValues } from "./command.ts";
import { promptOptions, sourceOf } from "./finetune-data.ts";
import {
  type Adapter,
  checkFinetune,
  type FinetuneOptions,
  type Host,
  type LossOn,
  OptionError,
  type OrtBackend,
  type PreparedData,
  type PromptOptions,
  positionsBeside,
  prepareData,
  prepareScene,
  type Question,
  quantizedAsRead,
  quantizeModel,
  questionOf,
  type ReadExamplesOptions,
  type Run,
  type Trainee,
  traineeOf,
} from "./library.ts";
import { countParameters, type OpenedModel, openBackend, openModel } from "./models.ts";
import { type ObjectiveJob, openObjective } from "./objective-job.ts";
import { loadStart, type OpenedAdapter, openAdapter } from "./open-adapter.ts";
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
  /** With its first numbers. */
  readonly openedAdapter: OpenedAdapter | undefined;
  readonly methods: ChosenMethods;
  readonly objective: ChosenObjective;
  /** What a run judges by while training. */
  readonly judged: ObjectiveJob["judged"];
  readonly makeTuner: ObjectiveJob["makeTuner"];
  readonly policy: ObjectiveJob["policy"];
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

/** Bits of the frozen weights; none where they stay as they are. */
export function bitsOf(options: OptionValues): 4 | 8 | undefined {
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
 * @param run that goes on, whose first numbers are taken again
 */
export async function openJob(
  host: Host,
  output: Output,
  options: OptionValues,
  spillFolder: string,
  { run, signal }: { readonly run?: Run | undefined; readonly signal?: AbortSignal } = {},
): Promise<Job> {
  const bits = bitsOf(options);
  if (options["early-stopping"] !== undefined && options["eval-every"] === undefined) {
    throw new OptionError("finetune: --early-stopping needs --eval-every — how often to judge.");
  }
  const methods = chooseMethods(options);
  const { objective } = methods;
  const source = sourceOf(options);
  const opened = await openModel(
    host,
    options["model"] as string,
    bits !== undefined && !methods.initialiser?.role.choosesBits
      ? { keep: quantizedAsRead({ bits }) }
      : {},
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
  const threads = options["threads"] as number | undefined;
  const backend = await openBackend(output, threads);
  const quantize = bits === undefined ? {} : { quantize: { bits } };
  const base =
    bits === undefined ? { params: opened.params } : quantizeModel(model, opened.params, { bits });
  const scene = prepareScene(
    {
      model,
      frozen: base.params,
      trained: {},
      maxLength: maxPositions,
      ...("context" in base && { form: base.context }),
    },
    data.train,
    backend,
    {
      batchSize: settings.batchSize ?? 16,
      seed: settings.seed ?? 0,
      signal,
      onProgress: (message) => output.progress(message),
    },
  );
  const openedAdapter = await openAdapter(host, methods, scene, {
    dress: (adapter) => adaptedBy(objective, adapter, model),
    bits,
    floats: opened.params,
    start: run && (await loadStart(host, run)),
    from: options["from-adapter"] as string | undefined,
  });
  const adapter = openedAdapter?.adapter;
  const freeze = (options["freeze"] as readonly string[] | undefined) ?? [];
  const plain = traineeOf(model, openedAdapter?.base ?? opened.params, openedAdapter, {
    freeze,
    ...quantize,
  });
  // A reward model judges answers and is not asked for any.
  const asked = (objective.readsLast ? [] : data.heldOutRaw)
    .flatMap((example) => questionOf(example, tokenizer, prompts) ?? [])
    .slice(0, evalLimit);
  const room = positionsBeside(model, adapter);
  const questions = asked.filter(({ ids }) => ids.length < room);
  const { trainee, train, heldOut, judged, makeTuner, policy } = await openObjective(
    host,
    output,
    options,
    methods,
    {
      opened,
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
    methods,
    objective,
    openedAdapter,
    judged,
    makeTuner,
    policy,
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
