/** `plasticity pretrain`: a small Llama from a long text, tokenizer included. */
import { type Command, type CommandContext, oneOf, realFrom, wholeFrom } from "./command.ts";
import {
  inductionPaths,
  inductionRate,
  Llama,
  OptionError,
  pretrain,
  Rng,
  readDocuments,
  SafetensorsFile,
  type Snapshot,
  saveModel,
  type Tensor,
  Tokenizer,
  tokenizeFile,
  toTokenizerConfig,
  toTokenizerJson,
  trainBpe,
  wireInduction,
  writeSafetensors,
} from "./library.ts";
import { countParameters, openBackend, threadsOption } from "./models.ts";
import { showCount, showTime, sparkline } from "./output.ts";

const endOfText = "<|endoftext|>";
const stateName = "pretrain-state.safetensors";

/** The tokenizer in the output folder, or a new one learnt from the text. */
async function openTokenizer(
  { host, output, options }: CommandContext,
  data: string,
  out: string,
): Promise<Tokenizer> {
  const { files } = host;
  const [file, configFile] = ["tokenizer.json", "tokenizer_config.json"].map((name) =>
    files.join(out, name),
  ) as [string, string];
  if (!(await files.info(file))) {
    output.progress("Learning the tokenizer", true);
    const documents: string[] = [];
    for await (const document of readDocuments(files, data)) documents.push(document);
    const bpe = trainBpe(documents, {
      vocabSize: options["vocab-size"] as number,
      specialTokens: [endOfText],
    });
    await files.writeText(file, toTokenizerJson(bpe));
    const config = { eosToken: endOfText, maxLength: options["max-positions"] as number };
    await files.writeText(configFile, toTokenizerConfig(bpe, config));
  }
  const json = { tokenizer: await files.readText(file), config: await files.readText(configFile) };
  return new Tokenizer(json, out);
}

async function readSnapshot(context: CommandContext, path: string): Promise<Snapshot | undefined> {
  const { files } = context.host;
  if (!(await files.info(path))) return undefined;
  const file = await SafetensorsFile.open(files, path);
  const params: Record<string, Tensor> = {};
  const tensors: Record<string, Tensor> = {};
  for (const name of file.entries.keys()) {
    const group = name.startsWith("param/") ? params : tensors;
    group[name.slice(name.indexOf("/") + 1)] = await file.read(name);
  }
  await file.close();
  return { params, state: { step: Number(file.metadata["step"]), tensors } };
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options } = context;
  const { files } = host;
  const [data, heldOutPath, out] = ["data", "held-out", "out"].map((name) => {
    const value = options[name] as string | undefined;
    if (value === undefined) throw new OptionError(`pretrain: --${name} is missing.`);
    return value;
  }) as [string, string, string];
  await files.makeDirectory(out);
  const tokenizer = await openTokenizer(context, data, out);
  const total = (await files.info(data))?.bytes ?? 0;
  const train = await tokenizeFile(files, data, tokenizer, (bytes) =>
    output.progress(`Reading ${Math.round((100 * bytes) / total)} %`),
  );
  const heldOut = await tokenizeFile(files, heldOutPath, tokenizer);
  const model = new Llama({
    vocabSize: tokenizer.vocabSize,
    dModel: options["d-model"] as number,
    dFeedForward: options["d-feed-forward"] as number,
    nLayers: options["layers"] as number,
    nHeads: options["heads"] as number,
    nKvHeads: options["kv-heads"] as number,
    maxPositions: options["max-positions"] as number,
    tieEmbeddings: true,
  });
  output.line(
    `${showCount(countParameters(model))} parameters; ${showCount(train.tokens.length)} tokens to train on, ${showCount(heldOut.tokens.length)} held out`,
  );
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const state = files.join(out, stateName);
  const resume = await readSnapshot(context, state);
  if (resume) output.line(`Going on from step ${resume.state.step}.`);
  const started = host.clock.monotonic();
  const seconds = (): number => (host.clock.monotonic() - started) / 1000;
  const losses: number[] = [];
  const perByte = heldOut.tokens.length / heldOut.bytes / Math.LN2;
  const evals: { step: number; perplexity: number; bitsPerByte: number }[] = [];
  const [batchSize, seqLen] = [options["batch-size"] as number, options["seq-len"] as number];
  const from = resume?.state.step ?? 0;
  const save = (snapshot: Snapshot): Promise<void> => {
    const named = (prefix: string, tensors: Readonly<Record<string, Tensor>>) =>
      Object.entries(tensors).map(([name, tensor]) => [`${prefix}/${name}`, tensor] as const);
    return writeSafetensors(
      files,
      state,
      [...named("param", snapshot.params), ...named("state", snapshot.state.tensors)],
      { step: String(snapshot.state.step) },
    );
  };
  const seed = options["seed"] as number;
  const { params } = model.init(new Rng(seed).fold("init"));
  const isWired = options["init"] === "induction";
  if (isWired) wireInduction(model, params, new Rng(seed).fold("induction"));
  const result = await pretrain(model, train.tokens, heldOut.tokens, backend, {
    steps: options["steps"] as number,
    batchSize,
    seqLen,
    learningRate: options["learning-rate"] as number,
    repeats: options["repeats"] as number,
    seed,
    params,
    ...(isWired && {
      learningRateScales: Object.fromEntries(inductionPaths().map((path) => [path, inductionRate])),
    }),
    evalEvery: options["eval-every"] as number,
    saveEvery: options["save-every"] as number,
    signal: context.signal,
    ...(resume && { resume }),
    onStep: ({ step, steps, loss }) => {
      losses.push(loss);
      const last = losses.slice(-50);
      const done = step - from;
      output.progress(
        `step ${step}/${steps}  loss ${(last.reduce((a, b) => a + b, 0) / last.length).toFixed(3)}  ${showCount((done * batchSize * seqLen) / seconds())} tokens/s  ${showTime((seconds() / done) * (steps - step))} left  ${sparkline(losses, 24)}`,
        step % 100 === 0,
      );
    },
    onEval: (step, nll) => {
      const [perplexity, bitsPerByte] = [Math.exp(nll), nll * perByte];
      evals.push({ step, perplexity, bitsPerByte });
      output.line(
        `step ${step}: held-out perplexity ${perplexity.toFixed(2)} per token, ${bitsPerByte.toFixed(3)} bits per byte`,
      );
    },
    onSave: save,
  });
  if (result.isStopped) {
    output.line(`Stopped after ${showTime(seconds())}; the same command goes on from here.`);
    output.json({ out, isStopped: true, steps: from + losses.length, evals, seconds: seconds() });
    return;
  }
  const dtype = options["dtype"] as "float16" | "float32";
  const { tokenizer: json, config } = tokenizer.json;
  await saveModel(files, out, model, result.params, {
    dtype,
    files: {
      "tokenizer.json": json,
      ...(config !== undefined && { "tokenizer_config.json": config }),
    },
  });
  await files.remove(state);
  output.line(`Model in ${out}, after ${showTime(seconds())}.`);
  output.json({
    out,
    isStopped: false,
    parameters: countParameters(model),
    steps: options["steps"],
    tokens: (options["steps"] as number) * batchSize * seqLen,
    evals,
    seconds: seconds(),
  });
}

export const pretrainCommand: Command = {
  name: "pretrain",
  summary: "train a small Llama from scratch on a long text",
  usage: "plasticity pretrain --data <train.txt> --held-out <heldout.txt> --out <folder>",
  example:
    "plasticity pretrain --data train.txt --held-out heldout.txt --out my-model --steps 2500",
  options: {
    data: {
      type: "string",
      value: "file",
      about: `text; documents apart by lines that hold ${endOfText}`,
    },
    "held-out": { type: "string", value: "file", about: "text to judge by" },
    out: {
      type: "string",
      value: "folder",
      about: "where model and tokenizer go; a stopped run in it goes on",
    },
    steps: { type: "number", default: 2500, about: "optimiser steps", check: wholeFrom(1) },
    "batch-size": {
      type: "number",
      default: 8,
      about: "windows a step",
      check: wholeFrom(1, 65536),
    },
    "seq-len": {
      type: "number",
      default: 256,
      about: "tokens a window",
      check: wholeFrom(2, 1 << 20),
    },
    "learning-rate": {
      type: "number",
      default: 1.5e-3,
      about: "highest rate; rises over 2 % of the steps, then a cosine to a tenth",
      check: realFrom(0, 10),
    },
    repeats: {
      type: "number",
      default: 0.3,
      about: "share of windows made of passages that return, so that a small model learns to copy",
      check: realFrom(0, 1),
    },
    "vocab-size": {
      type: "number",
      default: 4096,
      about: "tokens of the tokenizer",
      check: wholeFrom(257, 1 << 20),
    },
    "d-model": { type: "number", default: 256, about: "width", check: wholeFrom(8, 65536) },
    "d-feed-forward": {
      type: "number",
      default: 640,
      about: "width of the feed-forward layer",
      check: wholeFrom(8, 1 << 20),
    },
    layers: { type: "number", default: 6, about: "blocks", check: wholeFrom(1, 1024) },
    heads: { type: "number", default: 4, about: "attention heads", check: wholeFrom(1, 1024) },
    "kv-heads": {
      type: "number",
      default: 2,
      about: "heads of keys and values",
      check: wholeFrom(1, 1024),
    },
    "max-positions": {
      type: "number",
      default: 256,
      about: "longest sequence",
      check: wholeFrom(8, 1 << 20),
    },
    dtype: {
      type: "string",
      default: "float16",
      about: "weights on disk: float16 or float32",
      check: oneOf("float16", "float32"),
    },
    init: {
      type: "string",
      value: "kind",
      default: "induction",
      about: "first numbers: plain, or with a circuit that copies",
      check: oneOf("plain", "induction"),
    },
    "eval-every": {
      type: "number",
      default: 500,
      about: "steps between held-out evaluations",
      check: wholeFrom(0),
    },
    "save-every": {
      type: "number",
      default: 250,
      about: "steps between saves",
      check: wholeFrom(0),
    },
    seed: {
      type: "number",
      default: 1,
      about: "first numbers and order of the data",
      check: wholeFrom(0, 2 ** 52),
    },
    threads: threadsOption,
  },
  run,
};
