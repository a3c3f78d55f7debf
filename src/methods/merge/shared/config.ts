/** What is merged and how, as mergekit's YAML says it. */
import { isAlias, parseDocument, visit } from "yaml";
import { FormatError, UnsupportedError } from "../../../errors.ts";
import { type Parameters, readSetting } from "./settings.ts";

/** Bytes of a configuration. */
export const configLimit: number = 2 ** 18;
const mostModels = 64;
const mostSlices = 512;
const mostDepth = 12;

export interface SourceConfig {
  /** A folder, or `folder+adapter`. */
  readonly model: string;
  /** Layers from the first to before the last; default all. */
  readonly layerRange?: readonly [number, number];
  readonly parameters?: Parameters;
}

export interface SliceConfig {
  readonly sources: readonly SourceConfig[];
  readonly baseModel?: string;
  readonly parameters?: Parameters;
}

export type OutDtype = "float32" | "float16" | "bfloat16";

export interface MergeConfig {
  /** A method's id. */
  readonly method: string;
  readonly baseModel?: string;
  /** Stacked one after another; one slice of whole models is a merge of models. */
  readonly slices: readonly SliceConfig[];
  /** Whole models: no slice has layer ranges. */
  readonly isWhole: boolean;
  readonly parameters?: Parameters;
  /** Type of the weights on disk; default: as the base has each. */
  readonly dtype?: OutDtype;
  /** Whose tokenizer is written; default the base's. */
  readonly tokenizerSource?: string;
  /** Defaults that are others than a method's own. */
  readonly defaults?: Parameters;
}

type Table = Readonly<Record<string, unknown>>;

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

function tableOf(value: unknown, where: string, known: readonly string[]): Table {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FormatError(`${where} must be a table, got ${show(value)}.`);
  }
  for (const name of Object.keys(value)) {
    if (known.includes(name)) continue;
    throw new UnsupportedError(
      `${where}: the field "${name}" is not supported — supported are ${known.join(", ")}.`,
    );
  }
  return value as Table;
}

function listOf(value: unknown, where: string, most: number): readonly unknown[] {
  if (Array.isArray(value) && value.length > 0 && value.length <= most) return value;
  throw new FormatError(`${where} must be a list of 1 to ${most}, got ${show(value)}.`);
}

/** A name, or mergekit's `{model: {path}, lora: {path}}`. */
function readReference(value: unknown, where: string): string {
  if (typeof value === "string" && value.trim() !== "") return value.trim();
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    const table = tableOf(value, where, ["model", "lora", "path"]);
    if (typeof table["path"] === "string") return table["path"];
    const model = readReference(table["model"], `${where}.model`);
    const lora = table["lora"] ?? undefined;
    return lora === undefined ? model : `${model}+${readReference(lora, `${where}.lora`)}`;
  }
  throw new FormatError(`${where} must name a model folder, got ${show(value)}.`);
}

function readParameters(value: unknown, where: string): Parameters | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "object" || Array.isArray(value) || Object.keys(value).length > 64) {
    throw new FormatError(`${where} must be a table of at most 64 options, got ${show(value)}.`);
  }
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, readSetting(item, `${where}.${name}`)]),
  );
}

function readRange(value: unknown, where: string): readonly [number, number] {
  const isPair =
    Array.isArray(value) &&
    value.length === 2 &&
    value.every((item) => Number.isInteger(item) && item >= 0 && item <= 65536);
  if (isPair && value[0] < value[1]) return [value[0], value[1]];
  throw new FormatError(
    `${where} must be two whole numbers, the first layer and the one after the last, got ${show(value)}.`,
  );
}

function readSource(value: unknown, where: string, hasRange: boolean): SourceConfig {
  const known = ["model", ...(hasRange ? ["layer_range"] : []), "parameters"];
  const table = tableOf(value, where, known);
  const parameters = readParameters(table["parameters"], `${where}.parameters`);
  return {
    model: readReference(table["model"], `${where}.model`),
    ...(hasRange && { layerRange: readRange(table["layer_range"], `${where}.layer_range`) }),
    ...(parameters && { parameters }),
  };
}

function readSlice(value: unknown, where: string): SliceConfig {
  const table = tableOf(value, where, ["sources", "base_model", "parameters"]);
  const sources = listOf(table["sources"], `${where}.sources`, mostModels).map((item, i) =>
    readSource(item, `${where}.sources[${i}]`, true),
  );
  const lengths = sources.map(({ layerRange: [first, end] = [0, 0] }) => end - first);
  if (new Set(lengths).size > 1) {
    throw new FormatError(
      `${where}: its sources have ${lengths.join(", ")} layers — all must have as many.`,
    );
  }
  const base = table["base_model"] ?? undefined;
  const parameters = readParameters(table["parameters"], `${where}.parameters`);
  return {
    sources,
    ...(base !== undefined && { baseModel: readReference(base, `${where}.base_model`) }),
    ...(parameters && { parameters }),
  };
}

function readDtype(table: Table, where: string): OutDtype | undefined {
  const names = ["float32", "float16", "bfloat16"] as const;
  let found: OutDtype | undefined;
  // `out_dtype` is what is stored; `dtype` counts where it is not given.
  for (const field of ["dtype", "out_dtype"]) {
    const value = table[field] ?? undefined;
    if (value === undefined) continue;
    const name = typeof value === "string" ? value.replace(/^torch\./, "") : value;
    if (!names.includes(name as OutDtype)) {
      throw new FormatError(
        `${where}: ${field} must be ${names.join(" or ")}, got ${show(value)}.`,
      );
    }
    found = name as OutDtype;
  }
  return found;
}

/** The source of `tokenizer`, whose other fields are not supported. */
function readTokenizer(table: Table, where: string): string | undefined {
  const value = table["tokenizer_source"] ?? undefined;
  const other = table["tokenizer"] ?? undefined;
  if (value !== undefined && other !== undefined) {
    throw new FormatError(`${where}: has tokenizer_source and tokenizer — give one of them.`);
  }
  const source =
    other === undefined ? value : tableOf(other, `${where}: tokenizer`, ["source"])["source"];
  if (source === undefined || source === "base") return undefined;
  if (source === "union") {
    throw new UnsupportedError(
      `${where}: tokenizer_source "union" is not supported — all models must have one vocabulary; take "base", or the folder of one of the models.`,
    );
  }
  return readReference(source, `${where}: tokenizer_source`);
}

const fields = [
  "merge_method",
  "base_model",
  "models",
  "slices",
  "parameters",
  "dtype",
  "out_dtype",
  "tokenizer_source",
  "tokenizer",
];

/** Aliases, merge keys, tags of other languages and deep nests are refused before anything is made of them. */
function parseYaml(text: string, where: string): unknown {
  let document: ReturnType<typeof parseDocument>;
  try {
    document = parseDocument(text, { uniqueKeys: true, schema: "core", merge: false });
  } catch (error) {
    // A nest deeper than the parser's stack.
    throw new FormatError(`${where}: cannot be read as YAML.`, {}, { cause: error });
  }
  const [fault] = [...document.errors, ...document.warnings];
  if (fault) throw new FormatError(`${where}: ${fault.message.split("\n")[0]}`);
  visit(document, (_, node, path) => {
    if (isAlias(node)) {
      throw new FormatError(`${where}: has an alias "*${node.source}" — write the value out.`);
    }
    if (path.length > 2 * mostDepth) {
      throw new FormatError(`${where}: is nested more than ${mostDepth} deep.`);
    }
  });
  return document.toJS({ maxAliasCount: 0 });
}

/**
 * Reads mergekit's YAML. Whatever is not supported is named.
 * @param where begins an error: the file
 * @throws FormatError for what is no configuration; UnsupportedError for fields that are not supported.
 */
export function readMergeConfig(text: string, where: string): MergeConfig {
  if (text.length > configLimit) {
    throw new FormatError(
      `${where}: has ${text.length} letters, a configuration has at most ${configLimit}.`,
    );
  }
  const root = tableOf(parseYaml(text, where), where, fields);
  const method = root["merge_method"];
  if (typeof method !== "string" || method === "") {
    throw new FormatError(`${where}: merge_method must name a method, got ${show(method)}.`);
  }
  const { models, slices } = root;
  if ((models === undefined) === (slices === undefined)) {
    const what = models === undefined ? "neither models nor slices" : "models and slices";
    throw new FormatError(`${where}: has ${what} — exactly one of them must be there.`);
  }
  const base = root["base_model"] ?? undefined;
  const parameters = readParameters(root["parameters"], `${where}: parameters`);
  const dtype = readDtype(root, where);
  const tokenizerSource = readTokenizer(root, where);
  return {
    // mergekit joins words by "_".
    method: method.replaceAll("_", "-"),
    ...(base !== undefined && { baseModel: readReference(base, `${where}: base_model`) }),
    slices:
      slices === undefined
        ? [
            {
              sources: listOf(models, `${where}: models`, mostModels).map((item, i) =>
                readSource(item, `${where}: models[${i}]`, false),
              ),
            },
          ]
        : listOf(slices, `${where}: slices`, mostSlices).map((item, i) =>
            readSlice(item, `${where}: slices[${i}]`),
          ),
    isWhole: slices === undefined,
    ...(parameters && { parameters }),
    ...(dtype && { dtype }),
    ...(tokenizerSource !== undefined && { tokenizerSource }),
    // Without a density mergekit keeps all.
    defaults: { density: 1 },
  };
}
