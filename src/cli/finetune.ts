/** `plasticity finetune`: adapt a model to examples, and show what that changed. */
import type { Command, CommandContext, OptionValues } from "./command.ts";
import { sampleOf } from "./finetune-data.ts";
import { introduce, type Job, openJob } from "./finetune-job.ts";
import { changedBuffers, continuation, measure, nearestExact } from "./finetune-measure.ts";
import { finetuneOptions } from "./finetune-options.ts";
import { card, isPeft, type Measured, reportOf, samplesOf, show } from "./finetune-report.ts";
import {
  type AnyExampleSet,
  type Host,
  isRun,
  OptionError,
  Run,
  saveAdapter,
  saveModel,
  type TrainRunResult,
  trainRun,
} from "./library.ts";
import { saveStart, verifyKept } from "./open-adapter.ts";
import { type Output, showCount, showTime, sparkline } from "./output.ts";
import {
  checkOrigin,
  defaultOut,
  environmentOf,
  fingerprint,
  resumedOptions,
  runRecord,
} from "./run-record.ts";
import { taskOf } from "./task-options.ts";

/** In a run's folder, for data that memory does not hold. */
const spillName = "data";

/** A new run, or one that goes on; and the options that hold. */
async function begin({
  host,
  options,
  given,
}: CommandContext): Promise<{ folder: string; run: Run | undefined; options: OptionValues }> {
  const from = given.has("from-adapter");
  if (from && (given.has("adapter") || options["full"] === true)) {
    throw new OptionError(
      `finetune: --from-adapter says what is trained — leave ${given.has("adapter") ? "--adapter" : "--full"} out.`,
    );
  }
  if (given.has("adapter") && options["full"] === true) {
    throw new OptionError(
      "finetune: --adapter trains an adapter and --full all parameters — leave one of them out.",
    );
  }
  const other = ["objective", "curriculum"].find((name) => given.has(name));
  if (given.has("task") && other !== undefined) {
    throw new OptionError(
      `finetune: --task brings an objective of its own — leave --${other} out, or --task.`,
    );
  }
  const resumed = options["resume"] as string | undefined;
  if (resumed !== undefined && given.has("out") && options["out"] !== resumed) {
    throw new OptionError("finetune: --resume names the run's folder; leave --out away.");
  }
  const folder = resumed ?? (options["out"] as string | undefined) ?? defaultOut(host);
  if (resumed === undefined || !(await isRun(host.files, folder))) {
    if (resumed !== undefined && options["data"] === undefined) {
      throw new OptionError(
        `finetune: ${folder} holds no run to go on with, it has no run.json — give --data and the other options, and it is begun.`,
      );
    }
    return { folder, run: undefined, options };
  }
  const run = await Run.open(host.files, folder);
  try {
    return { folder, run, options: resumedOptions(run, options, given) };
  } catch (error) {
    await run.release();
    throw error;
  }
}

async function run(context: CommandContext): Promise<void> {
  const { host, output } = context;
  if (context.options["compare"] !== undefined) {
    const { compare } = await import("./compare.ts");
    return compare(context);
  }
  const begun = await begin(context);
  const spill = host.files.join(begun.folder, spillName);
  let job: Job | undefined;
  try {
    const finished = await begun.run?.result();
    if (finished) {
      output.line(`${begun.folder} is finished, nothing is left to do.`);
      output.json(finished);
      return;
    }
    const task = taskOf(begun.options);
    if (task) {
      const { finetuneTask } = await import("./finetune-task.ts");
      return await finetuneTask(task, context, begun, ({ heldOut }) => ({
        ...runOptions(begun.options, heldOut),
        ...progressOf(output, host),
      }));
    }
    job = await openJob(host, output, begun.options, spill, {
      run: begun.run,
      signal: context.signal,
    });
    if (begun.options["preview"] === true) {
      const { previewJob } = await import("./finetune-job.ts");
      await previewJob(output, job);
      return;
    }
    const { refuseWhatDoesNotFit, showEstimate } = await import("./estimate.ts");
    if (begun.options["dry-run"] === true)
      return await showEstimate(output, host, job, begun.options);
    if (begun.options["find-learning-rate"] === true) {
      const { showRates } = await import("./find-rate.ts");
      return await showRates(
        output,
        host,
        job,
        context.signal,
        begun.options["out"] as string | undefined,
      );
    }
    await refuseWhatDoesNotFit(job, begun.options);
    const origin = {
      model: job.opened.name,
      modelFingerprint: fingerprint(job.opened.params),
      data: job.dataName,
      dataHash: `${job.data.train.dataHash} ${job.data.heldOut.dataHash}`,
    };
    if (begun.run) checkOrigin(begun.run, origin);
    const opened =
      begun.run ??
      (await Run.create(
        host.files,
        begun.folder,
        runRecord(begun.options, origin, host.clock.now()),
      ));
    begun.run = opened;
    const start = job.openedAdapter?.start;
    if (start) await saveStart(host, opened, start);
    await trainIn(opened, job, context, begun.options);
  } finally {
    await job?.data.train.close();
    await job?.data.heldOut.close();
    // What it cannot look at it did not write, and the first error is the one to show.
    const spilled = await host.files.info(spill).catch(() => undefined);
    if (spilled) await host.files.remove(spill);
    await begun.run?.release();
  }
}

/** The whole of a run: before, training, after, results. */
async function trainIn(
  run: Run,
  job: Job,
  context: CommandContext,
  options: OptionValues,
): Promise<void> {
  const { host, output, signal } = context;
  const { data, backend } = job;
  introduce(output, job);
  const then = (await run.lastEnvironment())?.["threads"];
  if (then !== undefined && then !== job.threads) {
    output.warn(
      `The run was on ${then} threads and goes on with ${job.threads}: the last bits may differ.`,
    );
  }
  await run.noteEnvironment(environmentOf(backend, job.threads, host.clock.now()));
  const doing = (what: string) => (done: number) =>
    output.progress(`${what}: ${done} of ${job.questions.length}`);
  const known = (await run.noted("before")) as Measured | undefined;
  const before =
    known ?? (await measure(job, undefined, signal, doing("Before training, answering")));
  if (before && !known) await run.note("before", before);
  output.line(`${output.style("Run".padEnd(8), "bold")} ${run.folder}`);
  output.line();

  const tuner = await job.makeTuner(signal);
  let result: TrainRunResult;
  try {
    result = await trainRun(run, tuner, host, {
      ...runOptions(options, job.judged),
      signal,
      onWarn: (message) => output.warn(message),
      ...progressOf(output, host),
    });
  } finally {
    await tuner.release();
  }
  const after = result.isStopped
    ? undefined
    : await measure(job, result, signal, doing("After training, answering"));
  await save(run, job, result, before, after, host);
  if (!before || !after) {
    const { step } = result;
    output.line(
      `Stopped after ${step} of ${tuner.steps} steps. Go on with:\n\n  npx plasticity finetune --resume ${run.folder}`,
    );
    output.json({ out: run.folder, steps: step, isStopped: true, losses: result.losses });
    process.exitCode = 130;
    return;
  }
  const copies = job.questions.length > 0 ? await nearestExact(job, host.files) : undefined;
  const texts =
    data.heldOutRaw[0]!.kind === "text"
      ? {
          before: await continuation(job, undefined),
          after: await continuation(job, result),
        }
      : undefined;
  await run.note("samples", samplesOf(before, after, texts));
  const report = reportOf(run, job, result, before, after, copies);
  await run.finish(report);
  show(output, job, { before, after, copies, result, trainSeconds: result.seconds, texts });
  sayNext(output, run.folder, job, options);
  output.json({ ...report, losses: result.losses });
}

function runOptions(options: OptionValues, heldOut: AnyExampleSet): Parameters<typeof trainRun>[3] {
  const some = (key: string, name: string): Record<string, number> =>
    options[name] === undefined ? {} : { [key]: options[name] as number };
  return {
    heldOut,
    ...some("evalEvery", "eval-every"),
    ...some("earlyStopping", "early-stopping"),
    ...some("saveEvery", "save-every"),
    keep: options["keep"] as number,
  };
}

/** A line that says where the training stands and how long it takes. */
function progressOf(output: Output, host: Host): Parameters<typeof trainRun>[3] {
  const shown: number[] = [];
  let judged = "";
  let started = host.clock.monotonic();
  let firstStep = 0;
  let first: { tokens: number; seconds: number } | undefined;
  return {
    onStart: (step) => {
      started = host.clock.monotonic();
      firstStep = step;
      if (step > 0) output.line(`Going on after step ${step}.`);
    },
    onEvaluate: (step, { nll }) => {
      judged = `  held out ${nll.toFixed(3)}`;
      output.progress(`step ${step}: loss on held-out examples ${nll.toFixed(3)}`, true);
    },
    onStep: ({ step, steps, loss, tokens }, seconds) => {
      first ??= { tokens, seconds };
      shown.push(loss);
      const last = shown.slice(-20);
      const smooth = last.reduce((a, b) => a + b, 0) / last.length;
      const now = (host.clock.monotonic() - started) / 1000;
      const left = (now / (step - firstStep)) * (steps - step);
      const rate = shown.length > 1 ? (tokens - first.tokens) / (seconds - first.seconds) : 0;
      output.progress(
        `step ${String(step).padStart(String(steps).length)}/${steps}  loss ${smooth.toFixed(3)}${judged}  ${showCount(rate)} tokens/s  ${showTime(now)} gone, ${showTime(left)} left  ${sparkline(shown, 24)}`,
        step === 1 || step % Math.ceil(steps / 20) === 0,
      );
    },
  };
}

/** The adapter or model, where PEFT or transformers find it. */
async function save(
  run: Run,
  job: Job,
  result: TrainRunResult,
  before: Measured | undefined,
  after: Measured | undefined,
  host: Host,
): Promise<void> {
  const { opened, backend, openedAdapter } = job;
  if (openedAdapter) {
    // What an objective trains for itself, as a value head, is no part of the adapter.
    const own = Object.fromEntries(
      Object.keys(openedAdapter.params).map((name) => [name, result.params[name]!]),
    );
    const numbers = { params: own, buffers: changedBuffers(openedAdapter.buffers, result) };
    const { model, params, tokenizer } = opened;
    const kept = await verifyKept(backend, model, params, openedAdapter, numbers, tokenizer);
    await saveAdapter(host.files, run.folder, kept.adapter, kept.numbers.params, {
      base: opened.path,
      buffers: kept.numbers.buffers,
      card: card({ job, adapter: kept.adapter, numbers: kept.numbers, result, before, after }),
    });
    return;
  }
  const text = card({ job, adapter: undefined, numbers: undefined, result, before, after });
  const { tokenizer, config } = opened.tokenizer.json;
  const params = Object.fromEntries(
    Object.entries(opened.params).map(([path, tensor]) => [path, result.params[path] ?? tensor]),
  );
  await saveModel(host.files, run.folder, opened.model, params, {
    config: opened.config,
    files: {
      "README.md": text,
      "tokenizer.json": tokenizer,
      ...(config !== undefined && { "tokenizer_config.json": config }),
    },
  });
}

function sayNext(output: Output, folder: string, job: Job, options: OptionValues): void {
  const { adapter, data } = job;
  const name = options["model"] as string;
  // PEFT knows an adapter by a configuration that has its own word for the kind.
  const reads = !adapter
    ? "loads in transformers too"
    : isPeft(adapter)
      ? "loads in PEFT too"
      : `${adapter.title}, in this package's form`;
  output.line(
    `${adapter ? "Adapter" : "Model"} in ${output.style(folder, "cyan")} (${reads}), with the log, samples and loss.svg.`,
  );
  output.line();
  // A reward model judges answers; it gives none.
  if (job.objective.readsLast) return;
  output.line("Next:");
  const first = data.heldOutRaw[0]!;
  const asExample = first.kind === "pair" ? " --as-example" : "";
  output.line(
    `  npx plasticity generate --model ${adapter ? `${name} --adapter ${folder}` : folder} --prompt ${JSON.stringify(sampleOf(first))}${asExample}`,
  );
  output.line(`  npx plasticity finetune --model ${name} --data <your.jsonl> --adapter lora`);
  output.line("  npx plasticity bench");
}

export const finetuneCommand: Command = {
  name: "finetune",
  summary: "adapt a model to your data, and show held-out results before and after",
  usage: "plasticity finetune --data <file> [--model <folder>] [--adapter lora | --full]",
  example: "plasticity finetune --model builtin --data orders.jsonl --adapter lora --rank 16",
  options: finetuneOptions,
  run,
};
