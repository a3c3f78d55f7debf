/** `plasticity finetune --task`: a task with data and measures of its own. */
import { nodeImages } from "../host/node-images.ts";
import type { CommandContext, OptionValues } from "./command.ts";
import { adapterOf, settingsOf } from "./finetune-job.ts";
import {
  type Adapter,
  type AnyTaskKind,
  checkFinetune,
  Finetuner,
  loadAnyModel,
  loadTokenizer,
  type OpenedTask,
  OptionError,
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

/** Options of `finetune` that have no meaning for these tasks. */
const others = [
  ...["packing", "preview", "dry-run", "find-learning-rate", "compare", "freeze"],
  ...["load-in-4bit", "load-in-8bit", "chat-format"],
] as const;

function refuseOthers(task: AnyTaskKind, options: OptionValues): void {
  const found = others.find((name) => options[name] !== undefined);
  if (found === undefined) return;
  throw new OptionError(`finetune: --${found} does not go with --task ${task.name}.`);
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
  folder: string,
  loaded: { readonly path: string; readonly config: Readonly<Record<string, unknown>> },
  task: OpenedTask,
  adapter: Adapter | undefined,
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
    await saveAdapter(files, folder, adapter, result.params, { base: loaded.path, card: text });
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
  const plain = adapterOf(task, options);
  const adapter = plain && taskAdapter(task, plain);
  const trainee = taskTrainee(
    task,
    adapter && { adapter, params: adapter.init(rng.fold("adapter")) },
  );
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
  const threads = options["threads"] as number | undefined;
  const backend = await openBackend(output, threads);
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
    : await task.measure({ ...trainee, trained: result.params }, backend, { batchSize });
  const text = card(name, kind, before, after);
  await save(context, run.folder, loaded, task, adapter, result, tokenizer, text);
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
