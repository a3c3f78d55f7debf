/** `plasticity finetune --task`: a task with data and measures of its own. */
import { nodeImages } from "../host/node-images.ts";
import { chooseForTask } from "./choose-methods.ts";
import type { CommandContext, OptionValues } from "./command.ts";
import { refuseWhatDoesNotFit, showEstimate, type Weighed } from "./estimate.ts";
import { showRates } from "./find-rate.ts";
import { bitsOf, settingsOf } from "./finetune-job.ts";
import { changedBuffers } from "./finetune-measure.ts";
import {
  type AnyTaskKind,
  checkFinetune,
  Finetuner,
  loadAnyModel,
  loadTokenizer,
  type OpenedTask,
  OptionError,
  type OrtBackend,
  prepareScene,
  quantizeModel,
  Rng,
  Run,
  readSentenceConfig,
  saveAdapter,
  saveModel,
  type Tokenizer,
  type TrainRunResult,
  taskAdapter,
  taskTrainee,
  trainRun,
  writeTaskFile,
} from "./library.ts";
import { modelFolder, openBackend } from "./models.ts";
import {
  loadStart,
  type OpenedAdapter,
  openAdapter,
  saveStart,
  verifyKept,
} from "./open-adapter.ts";
import { showCount, showTime } from "./output.ts";
import { checkOrigin, environmentOf, fingerprint, runRecord } from "./run-record.ts";
import { showMeasure, taskSettings } from "./task-options.ts";

type Measures = Readonly<Record<string, number>>;
type TrainOptions = NonNullable<Parameters<typeof trainRun>[3]>;

/** A run that begins or goes on, as `finetune` found it. */
export interface Begun {
  readonly folder: string;
  run: Run | undefined;
  readonly options: OptionValues;
}

/** Options of `finetune` that have no meaning for these tasks, and why. */
const others: Readonly<Record<string, string>> = {
  packing: "each example is judged as a whole and stands in a row of its own",
  preview: "it shows the tokens whose next one is learnt; the run prints what its data is",
  compare: "it ranks by the loss on next tokens; run the task once for each adapter",
  "chat-format": "its data is no conversation",
};

function refuseOthers(task: AnyTaskKind, options: OptionValues): void {
  const found = Object.keys(others).find((name) => options[name] !== undefined);
  if (found === undefined) return;
  throw new OptionError(
    `finetune: --${found} does not go with --task ${task.name}: ${others[found]}.`,
  );
}

function card(
  name: string,
  task: AnyTaskKind,
  before: Measures,
  after: Measures | undefined,
): string {
  const rows = Object.keys(before).map(
    (key) =>
      `| ${key} | ${showMeasure(before[key]!)} | ${after ? showMeasure(after[key]!) : "—"} |`,
  );
  return [
    "---",
    "tags: [plasticity]",
    "---",
    "",
    `# ${name}, fine-tuned for ${task.name}`,
    "",
    "| held out | before | after |",
    "| --- | --- | --- |",
    ...rows,
    "",
  ].join("\n");
}

/** The adapter or model, where PEFT, transformers and sentence-transformers find it. */
async function save(
  { host }: CommandContext,
  backend: OrtBackend,
  folder: string,
  loaded: { readonly path: string; readonly config: Readonly<Record<string, unknown>> },
  task: OpenedTask,
  adapter: OpenedAdapter | undefined,
  result: TrainRunResult,
  tokenizer: Tokenizer | undefined,
  text: string,
): Promise<void> {
  const { files } = host;
  const { model } = task;
  if (adapter) {
    if (model.kind === "encoder" && model.head) await writeTaskFile(files, folder, model.head);
    if (model.kind === "vision" && model.head) {
      await writeTaskFile(files, folder, { task: "sequence-classification", ...model.head });
    }
    const numbers = { params: result.params, buffers: changedBuffers(adapter.buffers, result) };
    const kept = await verifyKept(backend, model, task.params, adapter, numbers, tokenizer);
    await saveAdapter(files, folder, kept.adapter, kept.numbers.params, {
      base: loaded.path,
      buffers: kept.numbers.buffers,
      card: text,
    });
    return;
  }
  for (const [path, contents] of Object.entries(task.files)) {
    const parts = path.split("/");
    if (parts.length > 1) await files.makeDirectory(files.join(folder, ...parts.slice(0, -1)));
    await files.writeText(files.join(folder, ...parts), contents);
  }
  await saveModel(
    files,
    folder,
    model,
    { ...task.params, ...result.params },
    {
      config: { ...loaded.config, ...model.config },
      files: {
        "README.md": text,
        ...(tokenizer && { "tokenizer.json": tokenizer.json.tokenizer }),
        ...(tokenizer?.json.config !== undefined && {
          "tokenizer_config.json": tokenizer.json.config,
        }),
      },
    },
  );
}

/**
 * Opens, measures, trains, measures again, saves.
 * @param how what `finetune` gives every training: when to judge and to save, and what is shown
 */
export async function finetuneTask(
  kind: AnyTaskKind,
  context: CommandContext,
  begun: Begun,
  how: (task: OpenedTask) => TrainOptions,
): Promise<void> {
  const { host, output, signal } = context;
  const { options } = begun;
  refuseOthers(kind, options);
  const data = options["data"] as string | undefined;
  if (data === undefined) {
    throw new OptionError(`finetune: --data is missing — ${kind.name} reads ${kind.data}.`);
  }
  if (options["early-stopping"] !== undefined && options["eval-every"] === undefined) {
    throw new OptionError("finetune: --early-stopping needs --eval-every — how often to judge.");
  }
  const name = options["model"] as string;
  const path = modelFolder(name);
  const loaded = await loadAnyModel(host.files, path);
  const tokenizer = kind.reads === "pictures" ? undefined : await loadTokenizer(host.files, path);
  const sentence = await readSentenceConfig(host.files, path);
  const settings = settingsOf(options);
  const rng = new Rng(settings.seed ?? 0);
  const taken = { ...taskSettings(options, rng.fold("head"), sentence), folder: path };
  const task =
    kind.reads === "pictures"
      ? await kind.open(host.files, loaded, await nodeImages(), data, taken)
      : await kind.open(host.files, loaded, tokenizer!, data, taken);
  checkFinetune(settings, task.train.count);
  const bits = bitsOf(options);
  const quantize = bits === undefined ? {} : { quantize: { bits } };
  const base = bits === undefined ? undefined : quantizeModel(task.model, task.params, { bits });
  const threads = options["threads"] as number | undefined;
  const backend = await openBackend(output, threads);
  const scene = prepareScene(
    {
      model: task.model,
      frozen: base?.params ?? task.params,
      trained: {},
      objective: task.objective,
      ...(base && { form: base.context }),
      ...("maxPositions" in task.model.sizes && { maxLength: task.model.sizes.maxPositions }),
    },
    task.train,
    backend,
    {
      batchSize: settings.batchSize ?? 16,
      seed: settings.seed ?? 0,
      signal,
      onProgress: (message) => output.progress(message),
    },
  );
  const adapter = await openAdapter(host, chooseForTask(options), scene, {
    dress: (plain) => taskAdapter(task, plain),
    bits,
    floats: task.params,
    start: begun.run && (await loadStart(host, begun.run)),
    from: options["from-adapter"] as string | undefined,
  });
  const own = adapter?.base ? { ...task, params: adapter.base } : task;
  const trainee = taskTrainee(own, adapter, {
    freeze: (options["freeze"] as readonly string[] | undefined) ?? [],
    ...quantize,
  });
  const weighed: Weighed = {
    ...{ trainee, backend, settings, adapter: adapter?.adapter },
    ...{ data: task, opened: { params: task.params }, questions: [] },
  };
  if (options["dry-run"] === true) return showEstimate(output, host, weighed, options);
  if (options["find-learning-rate"] === true) {
    return showRates(output, host, weighed, signal, options["out"] as string | undefined);
  }
  await refuseWhatDoesNotFit(weighed, options);
  const origin = {
    model: name,
    modelFingerprint: fingerprint(loaded.params),
    data,
    dataHash: `${task.train.dataHash} ${task.heldOut.dataHash}`,
  };
  if (begun.run) checkOrigin(begun.run, origin);
  begun.run ??= await Run.create(
    host.files,
    begun.folder,
    runRecord(options, origin, host.clock.now()),
  );
  const run = begun.run;
  if (adapter?.start) await saveStart(host, run, adapter.start);
  await run.noteEnvironment(
    environmentOf(backend, threads ?? backend.binding.maxThreads, host.clock.now()),
  );
  const head = (word: string): string => output.style(word.padEnd(8), "bold");
  const trained = Object.values(trainee.trained).reduce((sum, { size }) => sum + size, 0);
  output.line(`${head("Model")} ${name}: ${task.model.family}; trained: ${showCount(trained)}`);
  output.line(
    `${head("Data")} ${data}: ${task.train.count} examples, ${task.heldOut.count} held out; ${task.about}`,
  );
  output.line(`${head("Run")} ${run.folder}`);
  output.line();
  if (task.cut > 0) output.warn(`${task.cut} texts were cut to fit the model or --max-length.`);
  const batchSize = settings.batchSize ?? 16;
  const known = (await run.noted("before")) as Measures | undefined;
  output.progress("Before training, judging");
  const before = known ?? (await task.measure(trainee, backend, { batchSize }));
  if (!known) await run.note("before", before);

  const tuner = await Finetuner.create(trainee, task.train, backend, settings);
  let result: TrainRunResult;
  try {
    result = await trainRun(run, tuner, host, {
      ...how(task),
      signal,
      onWarn: (message) => output.warn(message),
    });
  } finally {
    await tuner.release();
  }
  output.progress("After training, judging");
  const after = result.isStopped
    ? undefined
    : await task.measure(
        {
          ...trainee,
          trained: result.params,
          frozen: { ...trainee.frozen, ...result.buffers },
        },
        backend,
        { batchSize },
      );
  const text = card(name, kind, before, after);
  await save(context, backend, run.folder, loaded, task, adapter, result, tokenizer, text);
  if (!after) {
    output.line(
      `Stopped after ${result.step} of ${tuner.steps} steps. Go on with:\n\n  npx plasticity finetune --resume ${run.folder}`,
    );
    output.json({ out: run.folder, steps: result.step, isStopped: true, losses: result.losses });
    process.exitCode = 130;
    return;
  }
  const report = {
    out: run.folder,
    task: kind.name,
    steps: result.steps,
    seconds: result.seconds,
    before,
    after,
  };
  await run.finish(report);
  output.table(
    ["held out", "before", "after"],
    Object.keys(after).map((key) => [key, showMeasure(before[key]!), showMeasure(after[key]!)]),
    ["left", "right", "right"],
  );
  output.line();
  output.line(
    `${adapter ? "Adapter" : "Model"} in ${output.style(run.folder, "cyan")}, ${result.steps} steps in ${showTime(result.seconds)}.`,
  );
  const where = adapter ? `${name} --adapter ${run.folder}` : run.folder;
  output.line(`  npx plasticity eval --task ${kind.name} --model ${where} --data <file>`);
  output.json({ ...report, losses: result.losses });
}
