/** `plasticity finetune`: adapt a model to examples, and show what that changed. */
import { type Command, type CommandContext, oneOf, realFrom, wholeFrom } from "./command.ts";
import { card, type Measured, show, summary } from "./finetune-report.ts";
import {
  answerAll,
  applyTemplate,
  checkFinetune,
  Decoder,
  type EncodedExamples,
  type Example,
  encodeExamples,
  type FinetuneOptions,
  type FinetuneResult,
  finetune,
  type LoadedAdapter,
  lora,
  nearestNeighbour,
  OptionError,
  type OrtBackend,
  type RawExample,
  Rng,
  readExamples,
  saveAdapter,
  saveModel,
  scoreExamples,
  type Tokenizer,
  traineeOf,
} from "./library.ts";
import {
  countParameters,
  modelOption,
  type OpenedModel,
  openBackend,
  openModel,
  packagePath,
  threadsOption,
} from "./models.ts";
import { showCount, showTime, sparkline } from "./output.ts";

type Pair = Extract<RawExample, { kind: "pair" }>;

interface Data {
  readonly train: readonly RawExample[];
  readonly heldOut: readonly RawExample[];
  readonly name: string;
}

/** The share kept back when no held-out file is given, and at most how many. */
const heldOutShare = 0.1;

/** FNV-1a: which examples are held out depends on their text alone. */
function textHash(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0) / 2 ** 32;
}

async function readData({ host, options }: CommandContext): Promise<Data> {
  const name = options["data"] as string | undefined;
  if (name === undefined) {
    throw new OptionError(
      'finetune: --data is missing — give a .jsonl or .txt file, or "commands", the task in this package.',
    );
  }
  const isShipped = name === "commands";
  const path = isShipped ? packagePath("data", "commands", "train.jsonl") : name;
  const heldOutPath = isShipped
    ? packagePath("data", "commands", "heldout.jsonl")
    : (options["held-out"] as string | undefined);
  const all = await readExamples(host.files, path);
  if (heldOutPath !== undefined) {
    return { name, train: all, heldOut: await readExamples(host.files, heldOutPath) };
  }
  const isHeld = (example: RawExample): boolean =>
    textHash(example.kind === "pair" ? example.prompt : example.text) < heldOutShare;
  const heldOut = all.filter(isHeld);
  const train = all.filter((example) => !isHeld(example));
  if (heldOut.length === 0 || train.length === 0) {
    throw new OptionError(
      `finetune: ${path} has ${all.length} examples, too few to keep some back — give --held-out <file>.`,
    );
  }
  return { name, train, heldOut };
}

async function measure(
  opened: OpenedModel,
  trained: LoadedAdapter | FinetuneResult["params"] | undefined,
  examples: readonly Example[],
  pairs: readonly Pair[],
  backend: OrtBackend,
  template: string,
  onProgress: (done: number) => void,
): Promise<Measured> {
  const adapter =
    trained && "adapter" in trained && "params" in trained ? (trained as LoadedAdapter) : undefined;
  const params = adapter || !trained ? opened.params : (trained as FinetuneResult["params"]);
  const score = await scoreExamples(traineeOf(opened.model, params, adapter), examples, backend);
  if (pairs.length === 0) return { ...score, answers: [] };
  const decoder = new Decoder(opened.model, params, backend, adapter ? { adapter } : {});
  try {
    const answers = await answerAll(decoder, opened.tokenizer, pairs, { template, onProgress });
    return { ...score, answers };
  } finally {
    await decoder.release();
  }
}

/** What the base does with plain text: the start of a held-out text, continued. */
async function continuation(
  opened: OpenedModel,
  params: OpenedModel["params"],
  adapter: LoadedAdapter | undefined,
  text: string,
  backend: OrtBackend,
): Promise<string> {
  const prompt = opened.tokenizer
    .encode(text)
    .subarray(0, Math.min(24, opened.model.sizes.maxPositions - 1));
  const decoder = new Decoder(opened.model, params, backend, adapter ? { adapter } : {});
  try {
    const [made] = await decoder.generate([prompt], { maxNewTokens: 40 });
    return opened.tokenizer.decode([...prompt, ...made!], { skipSpecial: true });
  } finally {
    await decoder.release();
  }
}

function encode(
  raw: readonly RawExample[],
  tokenizer: Tokenizer,
  template: string,
  maxLength: number,
): EncodedExamples {
  return encodeExamples(raw, tokenizer, { template, maxLength });
}

/** `runs/<date>-<time>`, by the clock. */
function defaultOut({ host }: CommandContext): string {
  const stamp = new Date(host.clock.now()).toISOString().slice(0, 19).replace(/[:T]/g, "-");
  return host.files.join("runs", stamp);
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options } = context;
  const template = (options["template"] as string).replaceAll("\\n", "\n");
  const isFull = options["full"] === true;
  const seed = options["seed"] as number;
  const settings: FinetuneOptions = {
    ...(options["steps"] !== undefined && { steps: options["steps"] as number }),
    epochs: options["epochs"] as number,
    batchSize: options["batch-size"] as number,
    accumulate: options["accumulate"] as number,
    ...(options["learning-rate"] !== undefined && {
      learningRate: options["learning-rate"] as number,
    }),
    optimizer: options["optimizer"] as string,
    schedule: options["schedule"] as string,
    warmup: options["warmup"] as number,
    weightDecay: options["weight-decay"] as number,
    clipNorm: options["clip-norm"] as number,
    checkpoint: options["checkpoint"] === true,
    seed,
  };
  const data = await readData(context);
  const opened = await openModel(host, options["model"] as string);
  const { model, tokenizer } = opened;
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const limit = Math.min(options["max-length"] as number, model.sizes.maxPositions);
  const train = encode(data.train, tokenizer, template, limit + 1);
  const heldOut = encode(data.heldOut, tokenizer, template, limit + 1);
  checkFinetune(settings, train.examples.length);
  const asked = data.heldOut
    .filter((example): example is Pair => example.kind === "pair")
    .slice(0, options["eval-limit"] as number);
  const pairs = asked.filter(
    ({ prompt }) =>
      tokenizer.encode(applyTemplate(template, prompt)).length < model.sizes.maxPositions,
  );

  const targets = options["targets"] as string;
  const adapter = isFull
    ? undefined
    : lora(model, {
        rank: options["rank"] as number,
        ...(options["alpha"] !== undefined && { alpha: options["alpha"] as number }),
        dropout: options["dropout"] as number,
        targetModules: targets === "all-linear" ? targets : targets.split(","),
      });
  const fresh = adapter && { adapter, params: adapter.init(new Rng(seed).fold("adapter")) };
  const trainee = traineeOf(model, opened.params, fresh);
  const trainedCount = Object.values(trainee.trained).reduce((sum, { size }) => sum + size, 0);
  const tokens = train.examples.reduce((sum, { ids }) => sum + ids.length, 0);
  output.line(
    `${output.style("Model", "bold")}    ${opened.name}: ${model.family}, ${showCount(countParameters(model))} parameters; trained: ${showCount(trainedCount)} ${isFull ? "(all)" : `(LoRA, rank ${adapter!.rank}, ${adapter!.targets.length} layers)`}`,
  );
  output.line(
    `${output.style("Data", "bold")}     ${data.name}: ${train.examples.length} examples, ${showCount(tokens)} tokens; ${heldOut.examples.length} held out`,
  );
  if (train.cut > 0) output.warn(`${train.cut} examples were cut to ${limit + 1} tokens.`);
  if (train.empty > 0)
    output.warn(`${train.empty} examples were left out: nothing in them carries loss.`);
  if (pairs.length < asked.length) {
    output.warn(
      `${asked.length - pairs.length} held-out prompts are longer than the model takes and are not answered.`,
    );
  }

  const doing = (what: string) => (done: number) =>
    output.progress(`${what}: ${done} of ${pairs.length}`);
  const before = await measure(
    opened,
    undefined,
    heldOut.examples,
    pairs,
    backend,
    template,
    doing("Before training, answering"),
  );
  output.line(
    `${output.style("Engine", "bold")}   ${backend.name}, ${(options["threads"] as number | undefined) ?? backend.binding.maxThreads} threads`,
  );
  output.line();

  const started = host.clock.monotonic();
  const seconds = (): number => (host.clock.monotonic() - started) / 1000;
  const shown: number[] = [];
  const result = await finetune(trainee, train.examples, backend, {
    ...settings,
    signal: context.signal,
    onStep: ({ step, steps, loss, tokens: read }) => {
      shown.push(loss);
      const [now, last] = [seconds(), shown.slice(-20)];
      const smooth = last.reduce((a, b) => a + b, 0) / last.length;
      const left = (now / step) * (steps - step);
      output.progress(
        `step ${String(step).padStart(String(steps).length)}/${steps}  loss ${smooth.toFixed(3)}  ${showCount(read / now)} tokens/s  ${showTime(now)} gone, ${showTime(left)} left  ${sparkline(shown, 24)}`,
        step === 1 || step % Math.ceil(steps / 20) === 0,
      );
    },
  });
  const trainSeconds = seconds();
  const trained = adapter ? { adapter, params: result.params } : result.params;
  const after = await measure(
    opened,
    trained,
    heldOut.examples,
    pairs,
    backend,
    template,
    doing("After training, answering"),
  );
  const out = (options["out"] as string | undefined) ?? defaultOut(context);
  if (adapter) {
    await saveAdapter(host.files, out, adapter, result.params, {
      base: opened.path,
      card: card(opened.name, data.name, before, after),
    });
  } else {
    await saveModel(host.files, out, model, result.params, {
      config: opened.config,
      files: {
        "tokenizer.json": tokenizer.json.tokenizer,
        ...(tokenizer.json.config !== undefined && {
          "tokenizer_config.json": tokenizer.json.config,
        }),
      },
    });
  }

  const copies = pairs.length > 0 ? nearestExact(data.train, pairs) : undefined;
  const first = data.heldOut[0]!;
  const texts =
    first.kind === "text"
      ? {
          before: await continuation(opened, opened.params, undefined, first.text, backend),
          after: await continuation(
            opened,
            adapter ? opened.params : result.params,
            adapter ? { adapter, params: result.params } : undefined,
            first.text,
            backend,
          ),
        }
      : undefined;
  show(output, { before, after, copies, result, trainSeconds, texts });
  const name = options["model"] as string;
  output.line(
    `${adapter ? "Adapter" : "Model"} in ${output.style(out, "cyan")} (${adapter ? "loads in PEFT too" : "loads in transformers too"}).`,
  );
  output.line();
  output.line("Next:");
  const sample = first.kind === "pair" ? first.prompt : first.text.slice(0, 40);
  output.line(
    `  npx plasticity generate --model ${adapter ? `${name} --adapter ${out}` : out} --prompt ${JSON.stringify(sample)}${first.kind === "pair" ? " --as-example" : ""}`,
  );
  output.line(`  npx plasticity finetune --model ${name} --data <your.jsonl> --adapter lora`);
  output.line("  npx plasticity bench");
  output.json({
    model: opened.name,
    data: data.name,
    out,
    steps: result.steps,
    isStopped: result.isStopped,
    seconds: trainSeconds,
    tokensPerSecond: result.tokens / trainSeconds,
    trainedParameters: trainedCount,
    heldOut: heldOut.examples.length,
    before: summary(before),
    after: summary(after),
    nearestNeighbourExactMatch: copies ?? null,
    losses: result.losses,
  });
}

/** How often the completion of the nearest training prompt is the expected one. */
function nearestExact(train: readonly RawExample[], pairs: readonly Pair[]): number {
  const known = train.filter((example): example is Pair => example.kind === "pair");
  const copies = nearestNeighbour(
    known,
    pairs.map(({ prompt }) => prompt),
  );
  return (
    copies.filter((copy, i) => copy.trim() === pairs[i]!.completion.trim()).length / pairs.length
  );
}

export const finetuneCommand: Command = {
  name: "finetune",
  summary: "adapt a model to your data, and show held-out results before and after",
  usage: "plasticity finetune --data <file> [--model <folder>] [--adapter lora | --full]",
  example: "plasticity finetune --model builtin --data orders.jsonl --adapter lora --rank 16",
  options: {
    model: modelOption,
    data: {
      type: "string",
      value: "file",
      about:
        '.jsonl with "prompt" and "completion", or "text"; .txt; or "commands", the task in this package',
    },
    "held-out": {
      type: "string",
      value: "file",
      about: "examples to judge by (default: a tenth of the data, chosen by hash)",
    },
    out: {
      type: "string",
      value: "folder",
      about: "where the adapter or model goes (default runs/<time>)",
    },
    adapter: {
      type: "string",
      value: "kind",
      default: "lora",
      about: "what is trained beside the frozen model",
      check: oneOf("lora"),
    },
    full: { type: "flag", about: "train all parameters instead" },
    rank: { type: "number", default: 16, about: "LoRA's rank", check: wholeFrom(1, 4096) },
    alpha: {
      type: "number",
      about: "LoRA's scale is alpha / rank (default 2 · rank)",
      check: realFrom(0, 1e6),
    },
    dropout: {
      type: "number",
      default: 0,
      about: "share of the adapter's input zeroed in training",
      check: realFrom(0, 0.99),
    },
    targets: {
      type: "string",
      value: "names",
      default: "all-linear",
      about: "layers to adapt, by name, with commas",
    },
    epochs: {
      type: "number",
      default: 3,
      about: "passes over the data",
      check: realFrom(0.001, 1e6),
    },
    steps: { type: "number", about: "optimiser steps, instead of epochs", check: wholeFrom(1) },
    "batch-size": {
      type: "number",
      default: 16,
      about: "examples a step",
      check: wholeFrom(1, 65536),
    },
    accumulate: {
      type: "number",
      default: 1,
      about: "parts of a step whose gradients are added up",
      check: wholeFrom(1, 65536),
    },
    "learning-rate": {
      type: "number",
      about: "highest rate (default 2e-3, with --full 3e-4)",
      check: realFrom(0, 10),
    },
    optimizer: {
      type: "string",
      value: "name",
      default: "adamw",
      about: "adamw, adafactor, lion, sgd",
    },
    schedule: {
      type: "string",
      value: "name",
      default: "linear",
      about: "linear, cosine, constant_with_warmup, ...",
    },
    warmup: {
      type: "number",
      default: 0.05,
      about: "share of the steps over which the rate rises",
      check: realFrom(0, 1),
    },
    "weight-decay": { type: "number", default: 0.01, about: "on matrices", check: realFrom(0, 10) },
    "clip-norm": {
      type: "number",
      default: 1,
      about: "largest norm of the gradient",
      check: realFrom(1e-6, 1e6),
    },
    "max-length": {
      type: "number",
      default: 512,
      about: "longest example in tokens; the rest is cut",
      check: wholeFrom(2, 1 << 20),
    },
    template: {
      type: "string",
      value: "text",
      default: "{prompt}\\n",
      about: "what stands before a completion",
    },
    "eval-limit": {
      type: "number",
      default: 300,
      about: "held-out prompts answered before and after",
      check: wholeFrom(0),
    },
    checkpoint: {
      type: "flag",
      about: "recompute blocks in the backward pass: less memory, more time",
    },
    seed: {
      type: "number",
      default: 0,
      about: "order of the data and first numbers",
      check: wholeFrom(0, 2 ** 52),
    },
    threads: threadsOption,
  },
  run,
};
