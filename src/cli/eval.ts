/** `plasticity eval`: measure a model on data it has not seen. */
import { type Command, type CommandContext, oneOf, wholeFrom } from "./command.ts";
import {
  type Compatibility,
  compatibilityJson,
  compatibilityOf,
  modelAndAdapter,
  showCompatibility,
} from "./eval-against.ts";
import { type Measures, metricNames, metricsJson, showMeasures } from "./eval-report.ts";
import {
  type Answer,
  answerAll,
  answerChoices,
  type ChoiceQuestion,
  type DataFormat,
  Decoder,
  type Example,
  encodeExample,
  type Files,
  generationReport,
  isChoiceRecord,
  type LoadedAdapter,
  likelihoodReport,
  loadAdapter,
  loadChatTemplate,
  type Normalization,
  OptionError,
  type OrtBackend,
  type PromptOptions,
  positionsBeside,
  type Question,
  questionOf,
  type RawExample,
  readRecords,
  Scorer,
  stopIdsOf,
  streamExamples,
  toQuestion,
} from "./library.ts";
import {
  modelFolder,
  modelOption,
  type OpenedModel,
  openBackend,
  openModel,
  packagePath,
  threadsOption,
} from "./models.ts";
import { showCount, showTime } from "./output.ts";
import { unescaped } from "./sampling.ts";
import { judgingOptions, taskOf, taskOptions, zeroShotTask } from "./task-options.ts";

/** A data file: questions with choices, or examples of other layouts. */
interface Data {
  readonly name: string;
  readonly questions: readonly ChoiceQuestion[];
  readonly examples: readonly RawExample[];
}

const likelihoodMetrics = ["perplexity", "bits-per-byte", "token-accuracy"];
const generationMetrics = ["exact-match", "f1", "rouge"];

async function isChoiceFile(
  files: Files,
  path: string,
  how: Parameters<typeof readRecords>[2],
): Promise<boolean> {
  for await (const found of readRecords(files, path, how)) return isChoiceRecord(found);
  return false;
}

/** `column=field` as given, as a record. */
function columnsOf(given: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    given.map((text) => {
      const at = text.indexOf("=");
      if (at > 0 && at < text.length - 1) return [text.slice(0, at), text.slice(at + 1)];
      throw new OptionError(`eval: --map must be <column>=<field>, got "${text}".`);
    }),
  );
}

async function readData({ host, options }: CommandContext): Promise<Data> {
  const name = options["data"] as string | undefined;
  if (name === undefined) {
    throw new OptionError(
      'eval: --data is missing — give a file of examples, or "commands", the held-out part of the task in this package.',
    );
  }
  const path = name === "commands" ? packagePath("data", "commands", "heldout.jsonl") : name;
  const limit = (options["limit"] as number | undefined) ?? Infinity;
  const how = {
    map: columnsOf((options["map"] as readonly string[] | undefined) ?? []),
    format: options["format"] as DataFormat | "auto",
  };
  const questions: ChoiceQuestion[] = [];
  const examples: RawExample[] = [];
  if (await isChoiceFile(host.files, path, how)) {
    for await (const found of readRecords(host.files, path, how)) {
      if (questions.length >= limit) break;
      questions.push(toQuestion(found));
    }
  } else {
    for await (const example of streamExamples(host.files, path, how)) {
      if (examples.length >= limit) break;
      examples.push(example);
    }
  }
  return { name, questions, examples };
}

/**
 * The metrics to measure: those named, or all that the data has answers for.
 * @throws OptionError for a metric that is unknown, or that the data cannot give.
 */
function chooseMetrics(named: string | undefined, data: Data): ReadonlySet<string> {
  const hasAnswers = data.examples.some(({ kind }) => kind !== "text");
  const possible =
    data.questions.length > 0
      ? ["accuracy", "calibration"]
      : [...likelihoodMetrics, ...(hasAnswers ? generationMetrics : []), "calibration"];
  if (named === undefined) return new Set(possible);
  const chosen = named.split(",").map((name) => name.trim());
  for (const name of chosen) {
    if (!(metricNames as readonly string[]).includes(name)) {
      throw new OptionError(
        `eval: unknown metric "${name}" — metrics are ${metricNames.join(", ")}.`,
      );
    }
    if (!possible.includes(name)) {
      throw new OptionError(
        `eval: ${data.name} has nothing to measure "${name}" by — it gives ${possible.join(", ")}.`,
      );
    }
  }
  return new Set(chosen);
}

interface Job {
  readonly context: CommandContext;
  readonly opened: OpenedModel;
  readonly adapter: LoadedAdapter | undefined;
  readonly backend: OrtBackend;
  readonly prompts: PromptOptions;
  readonly wanted: ReadonlySet<string>;
}

/** Progress with the time left, by the share done so far. */
function progress({ context: { host, output } }: Job, what: string) {
  const started = host.clock.monotonic();
  let shown = 0;
  return (done: number, all: number): void => {
    const gone = (host.clock.monotonic() - started) / 1000;
    const isMilestone = Math.floor((10 * done) / all) > shown;
    shown = Math.max(shown, Math.floor((10 * done) / all));
    const left = (gone / done) * (all - done);
    output.progress(`${what}: ${done} of ${all}  ${showTime(left)} left`, isMilestone);
  };
}

function scoreOptions(job: Job, what: string) {
  const { options, signal } = job.context;
  return {
    ...(options["stride"] !== undefined && { stride: options["stride"] as number }),
    batchSize: options["batch-size"] as number,
    seed: options["seed"] as number,
    bins: options["bins"] as number,
    onProgress: progress(job, what),
    signal,
  };
}

async function measureLikelihood(job: Job, raw: readonly RawExample[]): Promise<Measures> {
  const { opened, adapter, backend, prompts, context } = job;
  const examples: Example[] = [];
  for (const item of raw) {
    const example = encodeExample(item, opened.tokenizer, { ...prompts, maxLength: Infinity });
    if (example.mask.includes(1)) examples.push(example);
  }
  const left = raw.length - examples.length;
  if (left > 0) context.output.warn(`${left} examples hold no token to predict and are left out.`);
  const scorer = new Scorer(opened.model, opened.params, backend, adapter);
  try {
    const how = scoreOptions(job, "Reading");
    const scores = await scorer.score(examples, how);
    return { likelihood: likelihoodReport(examples, scores, opened.tokenizer, how) };
  } finally {
    await scorer.release();
  }
}

async function measureChoices(job: Job, questions: readonly ChoiceQuestion[]): Promise<Measures> {
  const { opened, adapter, backend, prompts, context } = job;
  const scorer = new Scorer(opened.model, opened.params, backend, adapter);
  try {
    return {
      choices: await answerChoices(scorer, opened.tokenizer, questions, {
        ...scoreOptions(job, "Reading choices"),
        ...(prompts.template !== undefined && { template: prompts.template }),
        normalize: context.options["normalize"] as Normalization,
      }),
    };
  } finally {
    await scorer.release();
  }
}

async function answer(job: Job, raw: readonly RawExample[]): Promise<readonly Answer[]> {
  const { opened, adapter, backend, prompts, context } = job;
  const { options, output, signal } = context;
  const maxPositions = positionsBeside(opened.model, adapter?.adapter);
  const all = raw.flatMap((item): Question[] => {
    const question = questionOf(item, opened.tokenizer, prompts);
    return question ? [question] : [];
  });
  const questions = all.filter(({ ids }) => ids.length < maxPositions);
  if (questions.length < all.length) {
    output.warn(
      `${all.length - questions.length} prompts are longer than the model takes and are not answered.`,
    );
  }
  if (questions.length === 0) return [];
  const decoder = new Decoder(opened.model, opened.params, backend, adapter ? { adapter } : {});
  const shown = progress(job, "Answering");
  try {
    return await answerAll(decoder, opened.tokenizer, questions, {
      ...(options["max-new-tokens"] !== undefined && {
        maxNewTokens: options["max-new-tokens"] as number,
      }),
      stopIds: stopIdsOf(opened.tokenizer, prompts.chat),
      batchSize: options["batch-size"] as number,
      onProgress: (done) => shown(done, questions.length),
      signal,
    });
  } finally {
    await decoder.release();
  }
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const task = taskOf(options);
  if (task) {
    const { evalTask } = await import("./eval-task.ts");
    return evalTask(task, context);
  }
  if (options["task"] === zeroShotTask) {
    const { evalZeroShot } = await import("./eval-zero-shot.ts");
    return evalZeroShot(context);
  }
  const data = await readData(context);
  const wanted = chooseMetrics(options["metrics"] as string | undefined, data);
  const against = options["against"] as string | undefined;
  if (against !== undefined && data.questions.length === 0 && !hasAnswersIn(data)) {
    throw new OptionError(
      `eval: ${data.name} has no answers to compare by, which --against needs — give questions with answers or choices.`,
    );
  }
  const opened = await openModel(host, options["model"] as string);
  const folder = options["adapter"] as string | undefined;
  const adapter =
    folder === undefined ? undefined : await loadAdapter(host.files, folder, opened.model);
  const isChat =
    options["chat-format"] === true || data.examples.some(({ kind }) => kind === "chat");
  const job: Job = {
    context,
    opened,
    adapter,
    backend: await openBackend(output, options["threads"] as number | undefined),
    prompts: {
      template: unescaped(options["template"] as string),
      ...(isChat && {
        chat: await loadChatTemplate(host.files, modelFolder(options["model"] as string)),
      }),
      pairsAsChats: options["chat-format"] === true,
    },
    wanted,
  };
  const started = host.clock.monotonic();
  const has = (names: readonly string[]): boolean => names.some((name) => wanted.has(name));
  let measures: Measures = {};
  let answers: readonly Answer[] = [];
  let compatibility: Compatibility | undefined;
  try {
    if (data.questions.length > 0) measures = await measureChoices(job, data.questions);
    else {
      if (has([...likelihoodMetrics, "calibration"])) {
        measures = await measureLikelihood(job, data.examples);
      }
      if (has(generationMetrics) || against !== undefined) {
        answers = await answer(job, data.examples);
      }
      if (answers.length > 0 && !signal.aborted) {
        const seed = options["seed"] as number;
        measures = { ...measures, generation: generationReport(pairsOfAnswers(answers), { seed }) };
      }
    }
    if (against !== undefined && !signal.aborted) {
      compatibility = await compare(job, against, data, measures.choices, answers);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  if (signal.aborted) {
    output.warn("Stopped: nothing is reported, as part of the data was not measured.");
    process.exitCode = 130;
    return;
  }
  const seconds = (host.clock.monotonic() - started) / 1000;
  const count = data.questions.length + data.examples.length;
  const { likelihood } = measures;
  const who = `${opened.name}${folder === undefined ? "" : ` with ${folder}`}`;
  const read = likelihood ? `, ${showCount(likelihood.tokens)} tokens predicted` : "";
  output.line(`${who} on ${data.name}: ${count} examples${read}, ${showTime(seconds)}`);
  output.line();
  showMeasures(output, measures, wanted);
  if (compatibility) showCompatibility(output, against!, compatibility);
  showWrong(context, answers);
  output.json({
    model: opened.name,
    adapter: folder ?? null,
    data: data.name,
    examples: count,
    answered: answers.length,
    tokens: likelihood?.tokens ?? null,
    seconds,
    metrics: metricsJson(measures, wanted),
    ...(compatibility && {
      against,
      compatibility: compatibilityJson(compatibility),
    }),
    ...(options["answers"] === true && { answers }),
  });
}

/** The same data answered by the model that this one replaces. */
async function compare(
  job: Job,
  against: string,
  data: Data,
  choices: Measures["choices"],
  answers: readonly Answer[],
): Promise<Compatibility | undefined> {
  const { host, options, output, signal } = job.context;
  const named = modelAndAdapter(against);
  const opened = await openModel(host, named.model);
  const adapter =
    named.adapter === undefined
      ? undefined
      : await loadAdapter(host.files, named.adapter, opened.model);
  output.progress(`Asking ${against}`, true);
  const other: Job = { ...job, opened, adapter };
  const old =
    data.questions.length > 0
      ? { choices: (await measureChoices(other, data.questions)).choices, answers: [] }
      : { choices: undefined, answers: await answer(other, data.examples) };
  if (signal.aborted) return undefined;
  if (old.answers.length !== answers.length) {
    throw new OptionError(
      `eval: ${against} takes ${old.answers.length} of the prompts and this model ${answers.length} — leave out those that are too long for one of them.`,
    );
  }
  const right = data.questions.map((question) => question.answer);
  return compatibilityOf(old, { choices, answers }, right, options["seed"] as number);
}

const hasAnswersIn = (data: Data): boolean => data.examples.some(({ kind }) => kind !== "text");

function pairsOfAnswers(answers: readonly Answer[]): { answer: string; expected: string }[] {
  return answers.map(({ answer: made, expected }) => ({ answer: made, expected }));
}

/** The first few answers that are not exact. */
function showWrong({ output }: CommandContext, answers: readonly Answer[]): void {
  const wrong = answers.filter(({ isExact }) => !isExact).slice(0, 3);
  if (wrong.length === 0) return;
  output.line();
  const oneLine = (text: string): string => {
    const flat = text.replace(/\s+/g, " ").trim();
    return flat.length > 72 ? `${flat.slice(0, 71)}…` : flat;
  };
  for (const { prompt, expected, answer: made } of wrong) {
    output.line(`${output.style("▸", "cyan")} ${oneLine(prompt)}`);
    output.line(`  answer    ${output.style(oneLine(made), "red")}`);
    output.line(`  expected  ${oneLine(expected)}`);
  }
}

export const evalCommand: Command = {
  name: "eval",
  summary: "measure a model on data that it has not seen",
  usage: "plasticity eval --data <file> [--model <folder>] [--adapter <folder>]",
  example: "plasticity eval --data commands --limit 50 --metrics perplexity,exact-match",
  options: {
    data: {
      type: "string",
      value: "file",
      about: 'texts, prompts with answers, chats, or questions with choices; or "commands"',
    },
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "an adapter folder to use with the model" },
    against: {
      type: "string",
      value: "model",
      about:
        "the model that this one replaces, or model+adapter: which answers became wrong or right",
    },
    metrics: {
      type: "string",
      value: "names",
      about: `with commas: ${metricNames.slice(0, 4).join(", ")}, … (default: all that fit)`,
    },
    limit: { type: "number", about: "examples to use (default: all)", check: wholeFrom(1) },
    map: {
      type: "string",
      value: "column=field",
      many: true,
      about: "read a column under another name, as question=prompt",
    },
    format: {
      type: "string",
      value: "name",
      default: "auto",
      about: "of the data: jsonl, json, csv, tsv, parquet, text",
      check: oneOf("auto", "jsonl", "json", "csv", "tsv", "parquet", "text"),
    },
    template: {
      type: "string",
      value: "text",
      default: "{prompt}\\n",
      about: "what stands before an answer",
    },
    "chat-format": { type: "flag", about: "show prompts to the model as chats" },
    "max-new-tokens": {
      type: "number",
      about: "of an answer (default: the longest expected one, and 8)",
      check: wholeFrom(1, 1 << 20),
    },
    stride: {
      type: "number",
      about: "of the window over long texts (default: half the model's positions)",
      check: wholeFrom(1, 1 << 24),
    },
    normalize: {
      type: "string",
      value: "by",
      default: "none",
      about: "divide a choice's log-probability by its tokens or bytes: none, tokens, bytes",
      check: oneOf("none", "tokens", "bytes"),
    },
    bins: {
      type: "number",
      default: 10,
      about: "of the reliability table",
      check: wholeFrom(1, 1000),
    },
    "batch-size": {
      type: "number",
      default: 16,
      about: "read together",
      check: wholeFrom(1, 4096),
    },
    answers: { type: "flag", about: "with --json: every answer too" },
    ...taskOptions,
    ...judgingOptions,
    seed: {
      type: "number",
      default: 0,
      about: "of the intervals' resampling",
      check: wholeFrom(0, 2 ** 52),
    },
    threads: threadsOption,
  },
  run,
};
