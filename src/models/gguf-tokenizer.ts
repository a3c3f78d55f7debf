/**
 * The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json.
 *
 * Two kinds are known. "gpt2" is byte-level BPE: tokens, merges, and the name of a rule that cuts text
 * into words. "llama" is SentencePiece's BPE: tokens and scores; a pair may merge where the whole is a
 * token, those of higher score first, from which the merges follow (as `transformers` derives them).
 */
import { FormatError, UnsupportedError } from "../errors.ts";
import type { GgufValue } from "../io/gguf.ts";
import type { JsonObject, JsonValue } from "../io/json.ts";

type Metadata = ReadonlyMap<string, GgufValue>;

/** Contents of the two files. */
export interface TokenizerTexts {
  readonly tokenizer: string;
  readonly config: string;
}

/** llama.cpp's `llama_token_type`. */
export const tokenType: Readonly<
  Record<"normal" | "unknown" | "control" | "userDefined" | "unused" | "byte", number>
> = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
};

const byteLevel = (useRegex: boolean): JsonObject => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
});

const splitBy = (regex: string): JsonObject => ({
  type: "Sequence",
  pretokenizers: [
    { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false },
    byteLevel(false),
  ],
});

const words = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

export interface PreTokenizer {
  readonly names: readonly string[];
  readonly pre: JsonObject;
  /** As published tokenizers state it, where that is otherwise. */
  readonly published?: JsonObject;
  readonly normalizer?: JsonObject;
  /** Words that are tokens are not merged to them. */
  readonly ignoresMerges?: boolean;
}

/** Rules that cut text into words, by `tokenizer.ggml.pre`; the first name is written. */
export const preTokenizers: readonly PreTokenizer[] = [
  {
    names: ["gpt-2", "default", "gpt2", "phi-2", "olmo", "mpt", "jais", "gigachat", "mellum"],
    pre: byteLevel(true),
  },
  {
    names: ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
    // As a rule of its own, since the library's Digits are 0 to 9 alone.
    pre: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: "\\p{N}" }, behavior: "Isolated", invert: false },
        byteLevel(true),
      ],
    },
    published: {
      type: "Sequence",
      pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel(true)],
    },
  },
  {
    names: ["llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"],
    pre: splitBy(words("\\p{N}{1,3}")),
    ignoresMerges: true,
  },
  {
    names: ["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
    pre: splitBy(words("\\p{N}")),
    normalizer: { type: "NFC" },
  },
];

class Reader {
  readonly #metadata: Metadata;
  readonly path: string;

  constructor(metadata: Metadata, path: string) {
    this.#metadata = metadata;
    this.path = path;
  }

  wrong(key: string, what: string): FormatError {
    return new FormatError(`${this.path}: metadata "tokenizer.ggml.${key}" ${what}`, {
      path: this.path,
      key,
    });
  }

  get(key: string): GgufValue | undefined {
    return this.#metadata.get(`tokenizer.ggml.${key}`);
  }

  one<T>(key: string, type: "string" | "number" | "boolean"): T | undefined {
    const value = this.get(key)?.value;
    if (value === undefined) return undefined;
    if (typeof value !== type) throw this.wrong(key, `must be one ${type}.`);
    return value as T;
  }

  list<T>(key: string, type: "string" | "number"): readonly T[] | undefined {
    const value = this.get(key)?.value;
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((item) => typeof item === type)) {
      throw this.wrong(key, `must be a list, each a ${type}.`);
    }
    return value as T[];
  }

  need<T>(key: string, type: "string" | "number"): readonly T[] {
    const found = this.list<T>(key, type);
    if (found) return found;
    throw this.wrong(key, "is missing.");
  }
}

/** `{"token":id,…}`, safe for tokens that are names of JavaScript. */
function vocabularyText(tokens: readonly string[]): string {
  const seen = new Set<string>();
  const entries: string[] = [];
  for (const [id, token] of tokens.entries()) {
    if (seen.has(token)) continue;
    seen.add(token);
    entries.push(`${JSON.stringify(token)}:${id}`);
  }
  return `{${entries.join(",")}}`;
}

const template = (
  tokens: readonly string[],
  ids: readonly number[],
  [begins, ends]: readonly [number | undefined, number | undefined],
): JsonObject => {
  const item = (id: number): JsonObject => ({ SpecialToken: { id: tokens[id]!, type_id: 0 } });
  const around = (name: string): JsonObject[] => [
    ...(begins === undefined ? [] : [item(begins)]),
    { Sequence: { id: name, type_id: 0 } },
    ...(ends === undefined ? [] : [item(ends)]),
  ];
  return {
    type: "TemplateProcessing",
    single: around("A"),
    pair: [...around("A"), ...around("B")],
    special_tokens: Object.fromEntries(
      ids.map((id) => [tokens[id]!, { id: tokens[id]!, ids: [id], tokens: [tokens[id]!] }]),
    ),
  };
};

/** What depends on the kind of model. */
interface Kind {
  readonly model: JsonObject;
  /** JSON of the merges. */
  readonly merges: string;
  readonly normalizer: JsonObject | null;
  readonly pre: JsonObject | null;
  readonly decoder: JsonObject;
  /** Where the metadata does not say. */
  readonly addsBos: boolean;
}

function bytePairs(reader: Reader): Kind {
  const name = reader.one<string>("pre", "string") ?? "default";
  const known = preTokenizers.find(({ names }) => names.includes(name));
  if (!known) {
    throw new UnsupportedError(
      `${reader.path}: the pre-tokenizer "${name}" is not known — known are ${preTokenizers.flatMap(({ names }) => names).join(", ")}.`,
      { path: reader.path },
    );
  }
  const merges = reader.need<string>("merges", "string").map((merge) => {
    // A space within a token stands first at most.
    const at = merge.indexOf(" ", 1);
    if (at < 0) throw reader.wrong("merges", `has ${JSON.stringify(merge)}, which is no pair.`);
    return [merge.slice(0, at), merge.slice(at + 1)];
  });
  return {
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: known.ignoresMerges ?? false,
    },
    merges: JSON.stringify(merges),
    normalizer: known.normalizer ?? null,
    pre: known.pre,
    decoder: byteLevel(true),
    addsBos: known.ignoresMerges ?? false,
  };
}

const maxMerges = 2 ** 23;

/** Pairs of tokens whose whole is a token: of higher score first, then of longer parts. */
function mergesByScore(
  tokens: readonly string[],
  scores: readonly number[],
  types: readonly number[],
  reader: Reader,
): string[][] {
  const ids = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    if (types[id] !== tokenType.control && !ids.has(token)) ids.set(token, id);
  }
  const found: { left: string; right: string; score: number; sizes: readonly number[] }[] = [];
  for (const [whole, id] of ids) {
    const points = [...whole];
    const own: { left: string; right: string; sizes: readonly number[] }[] = [];
    for (let i = 1, at = 0; i < points.length; i++) {
      at += points[i - 1]!.length;
      const [left, right] = [whole.slice(0, at), whole.slice(at)];
      if (ids.has(left) && ids.has(right)) own.push({ left, right, sizes: [i, points.length - i] });
    }
    own.sort(
      (a, b) => ids.get(a.left)! - ids.get(b.left)! || ids.get(a.right)! - ids.get(b.right)!,
    );
    for (const pair of own) found.push({ ...pair, score: scores[id]! });
    if (found.length > maxMerges)
      throw reader.wrong("tokens", `give more than ${maxMerges} merges.`);
  }
  // Stable, so that equal ones stay in the order of the vocabulary.
  found.sort((a, b) => b.score - a.score || b.sizes[0]! - a.sizes[0]! || b.sizes[1]! - a.sizes[1]!);
  return found.map(({ left, right }) => [left, right]);
}

function sentencePieces(reader: Reader, tokens: readonly string[], types: readonly number[]): Kind {
  const scores = reader.need<number>("scores", "number");
  if (scores.length !== tokens.length) {
    throw reader.wrong("scores", `has ${scores.length} numbers for ${tokens.length} tokens.`);
  }
  const addsSpace = reader.one<boolean>("add_space_prefix", "boolean") ?? true;
  const unknown = reader.one<number>("unknown_token_id", "number");
  const space = { String: " " };
  const replace = { type: "Replace", pattern: space, content: "▁" };
  const decoders: JsonObject[] = [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
    ...(addsSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
  ];
  return {
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unknown === undefined ? null : (tokens[unknown] ?? null),
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
    },
    merges: JSON.stringify(mergesByScore(tokens, scores, types, reader)),
    normalizer: addsSpace
      ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace] }
      : replace,
    pre: null,
    decoder: { type: "Sequence", decoders },
    addsBos: true,
  };
}

/** Special tokens of tokenizer_config.json, and their keys behind "tokenizer.ggml.". */
export const tokenRoles = {
  bos_token: "bos_token_id",
  eos_token: "eos_token_id",
  pad_token: "padding_token_id",
  unk_token: "unknown_token_id",
} as const;

/**
 * tokenizer.json and tokenizer_config.json of a file.
 * @param path of the file, for errors
 * @returns undefined where the file has no tokenizer
 * @throws FormatError when the metadata do not fit together
 * @throws UnsupportedError for kinds that are not known
 */
export function tokenizerOfFile(metadata: Metadata, path: string): TokenizerTexts | undefined {
  const reader = new Reader(metadata, path);
  const kindName = reader.one<string>("model", "string");
  if (kindName === undefined || kindName === "none") return undefined;
  const tokens = reader.need<string>("tokens", "string");
  const types = reader.list<number>("token_type", "number") ?? tokens.map(() => tokenType.normal);
  if (types.length !== tokens.length) {
    throw reader.wrong("token_type", `has ${types.length} numbers for ${tokens.length} tokens.`);
  }
  if (kindName !== "gpt2" && kindName !== "llama") {
    throw new UnsupportedError(
      `${path}: the tokenizer "${kindName}" is not known — gpt2 (byte-level BPE) and llama (SentencePiece) are.`,
      { path },
    );
  }
  const kind = kindName === "gpt2" ? bytePairs(reader) : sentencePieces(reader, tokens, types);
  const idOf = (key: string): number | undefined => {
    const id = reader.one<number>(key, "number");
    if (id === undefined || id === 2 ** 32 - 1) return undefined;
    if (tokens[id] !== undefined) return id;
    throw reader.wrong(key, `is ${id}, the vocabulary has ${tokens.length} tokens.`);
  };
  const added: JsonObject[] = [];
  for (const [id, content] of tokens.entries()) {
    const type = types[id];
    const isSpecial = type === tokenType.control || type === tokenType.unknown;
    if (content === "" || !(isSpecial || type === tokenType.userDefined)) continue;
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    added.push({ id, content, ...flags, special: isSpecial });
  }
  const adds = (role: "bos" | "eos", missing: boolean): number | undefined =>
    (reader.one<boolean>(`add_${role}_token`, "boolean") ?? missing)
      ? idOf(`${role}_token_id`)
      : undefined;
  const around = [adds("bos", kind.addsBos), adds("eos", false)] as const;
  const used = [...new Set(around)].filter((id) => id !== undefined);
  const rest = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: kind.normalizer,
    pre_tokenizer: kind.pre,
    post_processor: used.length > 0 ? template(tokens, used, around) : null,
    decoder: kind.decoder,
  };
  const model = `${JSON.stringify(kind.model).slice(0, -1)},"vocab":${vocabularyText(tokens)},"merges":${kind.merges}}`;
  const config: Record<string, JsonValue> = {
    tokenizer_class: "PreTrainedTokenizerFast",
    clean_up_tokenization_spaces: false,
    add_bos_token: around[0] !== undefined,
    add_eos_token: around[1] !== undefined,
  };
  for (const [role, key] of Object.entries(tokenRoles)) {
    const id = idOf(key);
    if (id !== undefined) config[role] = tokens[id]!;
  }
  const chat = metadata.get("tokenizer.chat_template")?.value;
  if (typeof chat === "string") config["chat_template"] = chat;
  return {
    tokenizer: `${JSON.stringify(rest).slice(0, -1)},"model":${model}}`,
    config: `${JSON.stringify(config, null, 2)}\n`,
  };
}
