/** `plasticity embed`: vectors of texts, as safetensors or lines of JSON. */
import { type Command, type CommandContext, oneOf, wholeFrom } from "./command.ts";
import { embedImages } from "./embed-images.ts";
import { pairsOf } from "./finetune-data.ts";
import {
  asEncoder,
  type DataFormat,
  loadAdapter,
  loadAnyModel,
  loadTokenizer,
  OptionError,
  type Pooling,
  poolings,
  readSentenceConfig,
  readTask,
  type SentenceConfig,
  TextEmbedder,
  toPlainText,
  writeSafetensors,
} from "./library.ts";
import { modelFolder, modelOption, openBackend, threadsOption } from "./models.ts";
import { showTime } from "./output.ts";

/** Texts of one command; their vectors are held in memory. */
const maxTexts = 1e6;

async function readTexts({ host, options }: CommandContext): Promise<readonly string[]> {
  const given = (options["text"] as readonly string[] | undefined) ?? [];
  const path = options["data"] as string | undefined;
  if ((path === undefined) === (given.length === 0)) {
    throw new OptionError(
      "embed: give --data <file>, --text <text> or --images <path>, one of them.",
    );
  }
  if (path === undefined) return given;
  const map = pairsOf("map", (options["map"] as readonly string[] | undefined) ?? []);
  const format = options["format"] as DataFormat | "auto";
  const records = await readTask(host.files, path, ["text"], toPlainText, { map, format });
  if (records.length > maxTexts) {
    throw new OptionError(`embed: ${path} holds ${records.length} texts, at most ${maxTexts}.`);
  }
  return records.map(({ text }) => text);
}

/** What stands before every text: as given, or by the name that the folder has for it. */
function promptOf(
  options: CommandContext["options"],
  sentence: SentenceConfig | undefined,
): string | undefined {
  const name = options["prompt-name"] as string | undefined;
  if (name === undefined) return options["prompt"] as string | undefined;
  const prompts = sentence?.prompts ?? {};
  if (Object.hasOwn(prompts, name)) return prompts[name];
  throw new OptionError(
    `embed: the folder has no prompt "${name}" — it has ${Object.keys(prompts).join(", ") || "none"}.`,
  );
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const out = options["out"] as string | undefined;
  const ending = out?.split(".").at(-1);
  if (out !== undefined && ending !== "safetensors" && ending !== "jsonl") {
    throw new OptionError(`embed: --out must end in .safetensors or .jsonl, got "${out}".`);
  }
  if (options["normalize"] === true && options["raw"] === true) {
    throw new OptionError("embed: --normalize and --raw exclude each other.");
  }
  if (options["images"] !== undefined) return embedImages(context);
  const texts = await readTexts(context);
  const folder = modelFolder(options["model"] as string);
  const { model, params } = await loadAnyModel(host.files, folder);
  const tokenizer = await loadTokenizer(host.files, folder);
  const sentence = await readSentenceConfig(host.files, folder);
  const adapterFolder = options["adapter"] as string | undefined;
  const prompt = promptOf(options, sentence);
  const number = (name: string, key: string): object =>
    options[name] === undefined ? {} : { [key]: options[name] };
  const embedder = new TextEmbedder(
    model,
    params,
    tokenizer,
    await openBackend(output, options["threads"] as number | undefined),
    {
      ...(sentence && { sentence }),
      ...(options["pooling"] !== undefined && { pooling: options["pooling"] as Pooling }),
      ...((options["normalize"] === true || options["raw"] === true) && {
        normalize: options["normalize"] === true,
      }),
      ...number("dims", "dims"),
      ...number("max-length", "maxLength"),
      ...(prompt !== undefined && { prompt }),
      ...(adapterFolder !== undefined && {
        adapter: await loadAdapter(host.files, adapterFolder, asEncoder(model)),
      }),
    },
  );
  try {
    const cut = texts.filter((text) => embedder.encode(text).isCut).length;
    if (cut > 0) output.warn(`${cut} texts were cut to ${embedder.maxLength} tokens.`);
    const started = host.clock.monotonic();
    let shown = 0;
    const vectors = await embedder.embed(texts, {
      batchSize: options["batch-size"] as number,
      signal,
      onProgress: (done, all) => {
        const gone = (host.clock.monotonic() - started) / 1000;
        const tenth = Math.floor((10 * done) / all);
        output.progress(
          `Embedding: ${done} of ${all}  ${showTime((gone / done) * (all - done))} left`,
          tenth > shown,
        );
        shown = Math.max(shown, tenth);
      },
    });
    const row = (i: number): number[] => [
      ...vectors.data.subarray(i * embedder.dims, (i + 1) * embedder.dims),
    ];
    const about = {
      count: texts.length,
      dims: embedder.dims,
      pooling: embedder.pooling,
      normalized: embedder.normalize,
    };
    const summary = `${texts.length} vectors of ${embedder.dims} numbers (${embedder.pooling} pooling${embedder.normalize ? ", normalised" : ""})`;
    if (out === undefined) {
      texts.forEach((text, i) => {
        output.line(JSON.stringify({ text, embedding: row(i) }));
      });
      output.json({ ...about, embeddings: texts.map((_, i) => row(i)) });
      return;
    }
    if (ending === "safetensors") {
      await writeSafetensors(host.files, out, [["embeddings", vectors]], {
        pooling: embedder.pooling,
        normalized: String(embedder.normalize),
      });
    } else {
      const lines = texts.map((text, i) => `${JSON.stringify({ text, embedding: row(i) })}\n`);
      await host.files.writeText(out, lines.join(""));
    }
    output.line(`${summary} in ${out}.`);
    output.json({ ...about, out });
  } finally {
    await embedder.release();
  }
}

export const embedCommand: Command = {
  name: "embed",
  summary: "vectors of texts or pictures, for search and comparison",
  usage:
    "plasticity embed --model <folder> (--data <file> | --text <text> | --images <path>) [--out <file>]",
  example: "plasticity embed --model minilm --data questions.jsonl --out questions.safetensors",
  options: {
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "an adapter for the model" },
    data: {
      type: "string",
      value: "file",
      about: '.jsonl, .json, .csv, .tsv, .parquet with a column "text", or .txt by paragraphs',
    },
    map: {
      type: "string",
      value: "column=field",
      many: true,
      about: "read a column as the text, as question=text",
    },
    format: {
      type: "string",
      value: "name",
      default: "auto",
      about: "of the data, where its name does not say it",
      check: oneOf("auto", "jsonl", "json", "csv", "tsv", "parquet", "text"),
    },
    text: { type: "string", many: true, about: "a text, in place of a file" },
    images: {
      type: "string",
      value: "path",
      many: true,
      about: "a picture or a folder of pictures, in place of texts (needs the package sharp)",
    },
    out: {
      type: "string",
      value: "file",
      about: "embeddings.safetensors or .jsonl (default: print lines of JSON)",
    },
    pooling: {
      type: "string",
      value: "name",
      about: `how tokens become one vector: ${poolings.join(", ")} (default: the folder's own)`,
      check: oneOf(...poolings),
    },
    normalize: { type: "flag", about: "vectors of length 1 (default: the folder's own)" },
    raw: { type: "flag", about: "vectors as they are, whatever the folder says" },
    dims: {
      type: "number",
      about: "only the first numbers, of models trained so",
      check: wholeFrom(1, 1 << 20),
    },
    prompt: { type: "string", value: "text", about: "what stands before every text" },
    "prompt-name": { type: "string", value: "name", about: "the same by the folder's name for it" },
    "max-length": {
      type: "number",
      about: "tokens of a text at most; the rest is cut",
      check: wholeFrom(1, 1 << 20),
    },
    "batch-size": {
      type: "number",
      default: 32,
      about: "texts together",
      check: wholeFrom(1, 4096),
    },
    threads: threadsOption,
  },
  run,
};
