/** `plasticity plan`: settings for a fine-tuning, with reasons, what they cost, and the command. */
import { type Command, type CommandContext, type OptionValues, realFrom } from "./command.ts";
import { memoryLimit, withAnswers } from "./estimate.ts";
import { openJob } from "./finetune-job.ts";
import { finetuneOptions } from "./finetune-options.ts";
import { type Choice, estimateRun, fitDeadline, OptionError, planSettings } from "./library.ts";
import { countParameters } from "./models.ts";
import { showBytes, showTime } from "./output.ts";

/** Options of `finetune` that say what is given, and not what is to be chosen. */
const givenNames = [
  ...["model", "data", "held-out", "map", "format", "template", "chat-format", "loss-on"],
  ...["threads", "memory-limit"],
];

const defaults: OptionValues = Object.fromEntries(
  Object.entries(finetuneOptions).map(([name, option]) => [name, option.default]),
);

function valuesOf(choices: readonly Choice[]): OptionValues {
  return Object.fromEntries(
    choices.flatMap(({ option, value }) => (value === undefined ? [] : [[option, value]])),
  );
}

function words(options: OptionValues): string[] {
  return Object.entries(options).flatMap(([name, value]) => {
    if (value === undefined) return [];
    if (value === true) return [`--${name}`];
    return (Array.isArray(value) ? value : [value]).flatMap((one) => {
      const text = String(one);
      return [`--${name}`, /^[\w./:=+-]+$/.test(text) ? text : JSON.stringify(text)];
    });
  });
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, given } = context;
  const spill = host.files.join("runs", "plan-data");
  const first = await openJob(host, output, { ...defaults, ...options, "eval-limit": 0 }, spill);
  const { train } = first.data;
  const choices = planSettings({
    parameters: countParameters(first.opened.model),
    maxPositions: first.opened.model.sizes.maxPositions,
    lengths: train.lengths,
    lossTokens: train.lossTokens,
  });
  await first.data.train.close();
  await first.data.heldOut.close();
  const limit = memoryLimit(options);
  let chosen = { ...defaults, ...options, ...valuesOf(choices), "eval-limit": 0 } as OptionValues;
  const memory: Choice[] = [];
  output.progress("Rehearsing some steps ...", true);
  for (;;) {
    const job = await openJob(host, output, chosen, spill);
    const estimate = await estimateRun(job.trainee, job.data.train, job.backend, job.settings, {
      clock: host.clock,
      residentBytes: process.memoryUsage().rss,
      heldOut: job.data.heldOut,
    });
    const { batchSize = 16, accumulate = 1 } = job.settings;
    const count = job.data.train.count;
    await job.data.train.close();
    await job.data.heldOut.close();
    const bytes = withAnswers(job, estimate.memory);
    if (bytes > limit && accumulate < batchSize) {
      const next = Math.min(batchSize, accumulate * 2);
      memory.splice(0, 1, {
        option: "accumulate",
        value: next,
        reason: `in fewer parts a step takes ${showBytes(bytes)}, ${showBytes(limit)} may be taken`,
      });
      chosen = { ...chosen, ...valuesOf(memory) };
      continue;
    }
    if (bytes > limit) {
      throw new OptionError(
        `plan: takes ${showBytes(bytes)} even with one example at a time, ${showBytes(limit)} may be taken — choose a smaller model or shorter examples.`,
      );
    }
    const minutes = options["deadline"] as number | undefined;
    const timing = fitDeadline(
      estimate.steps,
      estimate.secondsPerStep,
      batchSize,
      count,
      minutes === undefined ? undefined : 60 * minutes,
    );
    const all = [...choices.filter(({ option }) => option !== "epochs"), ...memory, ...timing];
    const fixed = Object.fromEntries(
      givenNames.flatMap((name) => (given.has(name) ? [[name, options[name]]] : [])),
    );
    const command = `plasticity finetune ${words({ ...fixed, ...valuesOf(all) }).join(" ")}`;
    output.table(
      ["setting", "value", "because"],
      all.map(({ option, value, reason }) => [
        option,
        value === undefined ? "no" : value === true ? "yes" : String(value),
        reason,
      ]),
    );
    const steps = valuesOf(timing)["steps"] as number;
    const seconds = steps * estimate.secondsPerStep;
    output.line();
    output.line(
      `About ${showTime(seconds)} of training at ${(1000 * estimate.secondsPerStep).toFixed(0)} ms a step, ${showBytes(bytes)} of memory. Judging before and after comes on top.`,
    );
    output.line();
    output.line(`  npx ${command}`);
    output.json({
      choices: all.map(({ option, value, reason }) => ({ option, value: value ?? null, reason })),
      seconds,
      secondsPerStep: estimate.secondsPerStep,
      memoryBytes: bytes,
      limitBytes: limit,
      command,
    });
    return;
  }
}

export const plan: Command = {
  name: "plan",
  summary: "settings for your model, data and deadline, with reasons and what they cost",
  usage: "plasticity plan --data <file> [--model <folder>] [--deadline <minutes>]",
  example: "plasticity plan --model builtin --data orders.jsonl --deadline 10",
  options: {
    ...Object.fromEntries(
      givenNames.map((name) => [name, { ...finetuneOptions[name]!, group: "" }]),
    ),
    deadline: {
      type: "number",
      value: "minutes",
      about: "time that the training may take",
      check: realFrom(0.01, 1e6),
    },
  },
  run,
};
