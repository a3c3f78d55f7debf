/** What a sentence-transformers folder says beside the model: pooling, normalisation, length, prompts. */
import { FormatError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { type Pooling, poolings } from "./pooling.ts";

const limit = 2 ** 20;

export interface SentenceConfig {
  readonly pooling: Pooling;
  readonly normalize: boolean;
  /** Tokens of a text at most, what stands around it included. */
  readonly maxLength?: number;
  /** What stands before a text, by use: `query`, `document`. */
  readonly prompts: Readonly<Record<string, string>>;
}

async function readJson(files: Files, path: string): Promise<JsonValue | undefined> {
  if (!(await files.info(path))) return undefined;
  return parseJson(await files.readBytes(path, limit), path);
}

const modes: Readonly<Record<string, Pooling>> = {
  pooling_mode_cls_token: "cls",
  pooling_mode_mean_tokens: "mean",
  pooling_mode_max_tokens: "max",
  pooling_mode_mean_sqrt_len_tokens: "mean-sqrt-len",
  pooling_mode_lasttoken: "last",
};

const named: Readonly<Record<string, Pooling>> = {
  cls: "cls",
  mean: "mean",
  max: "max",
  mean_sqrt_len_tokens: "mean-sqrt-len",
  lasttoken: "last",
};

function readPooling(json: JsonValue | undefined, path: string): Pooling {
  if (!isJsonObject(json)) throw new FormatError(`${path}: must be an object.`, { path });
  const mode = json["pooling_mode"];
  const chosen =
    typeof mode === "string"
      ? [Object.hasOwn(named, mode) ? named[mode]! : mode]
      : Object.entries(json).flatMap(([key, value]) =>
          key.startsWith("pooling_mode_") && value === true ? [modes[key] ?? key] : [],
        );
  const [first] = chosen;
  if (chosen.length === 1 && (poolings as readonly string[]).includes(first!)) {
    return first as Pooling;
  }
  throw new UnsupportedError(
    `${path}: pooling by ${chosen.join(" and ") || "nothing"} is not supported — one of ${poolings.join(", ")} is.`,
    { path },
  );
}

function textsOf(value: JsonValue | undefined): Record<string, string> {
  const table: JsonObject = isJsonObject(value) ? value : {};
  return Object.fromEntries(
    Object.entries(table).filter(
      (entry): entry is [string, string] => typeof entry[1] === "string",
    ),
  );
}

/**
 * Reads `modules.json` and what it names; `undefined` in a folder that has none.
 * @throws UnsupportedError for parts other than a transformer, pooling and normalisation.
 */
export async function readSentenceConfig(
  files: Files,
  folder: string,
): Promise<SentenceConfig | undefined> {
  const path = files.join(folder, "modules.json");
  const list = await readJson(files, path);
  if (list === undefined) return undefined;
  if (!Array.isArray(list)) throw new FormatError(`${path}: must be a list.`, { path });
  let pooling: Pooling | undefined;
  let normalize = false;
  for (const item of list as readonly JsonValue[]) {
    const type = isJsonObject(item) ? item["type"] : undefined;
    const inner = isJsonObject(item) ? item["path"] : undefined;
    const kind = typeof type === "string" ? type.split(".").at(-1) : undefined;
    if (kind === "Transformer" && (inner === "" || inner === undefined)) continue;
    if (kind === "Normalize") normalize = true;
    else if (kind === "Pooling" && typeof inner === "string" && /^[\w-]+$/.test(inner)) {
      const file = files.join(folder, inner, "config.json");
      pooling = readPooling(await readJson(files, file), file);
    } else {
      throw new UnsupportedError(
        `${path}: the part ${JSON.stringify(type ?? null)} in ${JSON.stringify(inner ?? null)} is not supported — Transformer, Pooling and Normalize are.`,
        { path },
      );
    }
  }
  const sizes = await readJson(files, files.join(folder, "sentence_bert_config.json"));
  const length = isJsonObject(sizes) ? sizes["max_seq_length"] : undefined;
  const more = await readJson(files, files.join(folder, "config_sentence_transformers.json"));
  return {
    pooling: pooling ?? "mean",
    normalize,
    ...(Number.isInteger(length) && (length as number) > 0 && { maxLength: length as number }),
    prompts: isJsonObject(more) ? textsOf(more["prompts"]) : {},
  };
}

/** The files that make a model's folder one that sentence-transformers opens, by name. */
export function sentenceFiles(
  config: Pick<SentenceConfig, "pooling" | "normalize"> & { readonly maxLength: number },
  dModel: number,
): Record<string, string> {
  const text = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
  const part = (idx: number, path: string, type: string): object => ({
    ...{ idx, name: String(idx), path, type: `sentence_transformers.models.${type}` },
  });
  const modules = [part(0, "", "Transformer"), part(1, "1_Pooling", "Pooling")];
  if (config.normalize) modules.push(part(2, "2_Normalize", "Normalize"));
  return {
    "modules.json": text(modules),
    "1_Pooling/config.json": text({
      word_embedding_dimension: dModel,
      ...Object.fromEntries(
        Object.entries(modes).map(([key, mode]) => [key, mode === config.pooling]),
      ),
    }),
    "sentence_bert_config.json": text({ max_seq_length: config.maxLength, do_lower_case: false }),
  };
}
