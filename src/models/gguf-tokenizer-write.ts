/** The tokenizer of a model folder as metadata of a GGUF file. */
import { FormatError, UnsupportedError } from "../errors.ts";
import type { GgufValue } from "../io/gguf.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { preTokenizers, tokenRoles, tokenType } from "./gguf-tokenizer.ts";

/** The same object but for what does not change ids. */
function isSamePre(a: JsonValue | undefined, b: JsonObject): boolean {
  const plain = (value: unknown): unknown =>
    Array.isArray(value)
      ? value.map(plain)
      : isJsonObject(value as JsonValue)
        ? Object.fromEntries(
            Object.entries(value as JsonObject)
              .filter(([key]) => key !== "trim_offsets" && key !== "invert")
              .sort(([x], [y]) => (x < y ? -1 : 1))
              .map(([key, item]) => [key, plain(item)]),
          )
        : value;
  return JSON.stringify(plain(a)) === JSON.stringify(plain(b));
}

const pairOf = (merge: JsonValue): readonly string[] =>
  typeof merge === "string" ? merge.split(" ", 2) : (merge as readonly string[]);

/**
 * Metadata of a folder's tokenizer.
 * @param vocabSize rows of the model's embedding: ids without a token are filled up
 * @param chatTemplate as text
 * @throws UnsupportedError for kinds that llama.cpp does not know under a name.
 */
export function metadataOfTokenizer(
  texts: { readonly tokenizer: string; readonly config: string | undefined },
  vocabSize: number,
  where: string,
  chatTemplate?: string,
): [string, GgufValue][] {
  const file = parseJson(texts.tokenizer, `${where}: tokenizer.json`, { maxBytes: 2 ** 27 });
  const config = parseJson(texts.config ?? "{}", `${where}: tokenizer_config.json`);
  const model = isJsonObject(file) ? file["model"] : undefined;
  if (!isJsonObject(file) || !isJsonObject(config) || !isJsonObject(model)) {
    throw new FormatError(`${where}: tokenizer.json must have an object model.`, { path: where });
  }
  const vocab = model["vocab"];
  const isPieces = model["byte_fallback"] === true;
  const known = preTokenizers.find(
    ({ pre, published = pre, normalizer, ignoresMerges = false }) =>
      [pre, published].some((own) => isSamePre(file["pre_tokenizer"], own)) &&
      (normalizer !== undefined) === (isJsonObject(file["normalizer"]) && !isPieces) &&
      ignoresMerges === (model["ignore_merges"] === true),
  );
  if (model["type"] !== "BPE" || !isJsonObject(vocab) || !(isPieces || known)) {
    throw new UnsupportedError(
      `${where}: llama.cpp has no name for this tokenizer — written are byte-level BPE cut like ${preTokenizers.map(({ names }) => names[0]).join(", ")}, and SentencePiece BPE with bytes.`,
      { path: where },
    );
  }
  const tokens = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const types = tokens.map(() => tokenType.unused);
  const put = (token: string, id: number, type: number): void => {
    if (id >= vocabSize) {
      throw new FormatError(
        `${where}: token ${JSON.stringify(token)} has the id ${id}, the model has ${vocabSize} — do tokenizer and model belong together?`,
        { path: where },
      );
    }
    tokens[id] = token;
    types[id] = type;
  };
  for (const [token, id] of Object.entries(vocab)) {
    const isByte = isPieces && /^<0x[0-9A-F]{2}>$/.test(token);
    put(token, id as number, isByte ? tokenType.byte : tokenType.normal);
  }
  for (const item of (file["added_tokens"] ?? []) as readonly JsonObject[]) {
    const type = item["special"] === true ? tokenType.control : tokenType.userDefined;
    put(String(item["content"]), Number(item["id"]), type);
  }
  const merges = (model["merges"] ?? []) as readonly JsonValue[];
  const text = (value: string): GgufValue => ({ type: "string", value });
  const entries: [string, GgufValue][] = [
    ["tokenizer.ggml.model", text(isPieces ? "llama" : "gpt2")],
  ];
  if (!isPieces) entries.push(["tokenizer.ggml.pre", text(known!.names[0]!)]);
  entries.push(["tokenizer.ggml.tokens", { type: "string", value: tokens }]);
  if (isPieces) {
    // What merges first scores highest; the score of a whole is that of its first merge.
    const scores = new Map<string, number>();
    for (const [rank, merge] of merges.entries()) {
      const whole = pairOf(merge).join("");
      if (!scores.has(whole)) scores.set(whole, -rank);
    }
    const least = -merges.length;
    const value = tokens.map((token, id) =>
      types[id] === tokenType.normal ? (scores.get(token) ?? least) : 0,
    );
    entries.push(["tokenizer.ggml.scores", { type: "float32", value }]);
  }
  entries.push(["tokenizer.ggml.token_type", { type: "int32", value: types }]);
  if (!isPieces) {
    const value = merges.map((merge) => pairOf(merge).join(" "));
    entries.push(["tokenizer.ggml.merges", { type: "string", value }]);
  }
  const ids = new Map(tokens.map((token, id) => [token, id]));
  for (const [role, key] of Object.entries(tokenRoles)) {
    const value = config[role];
    const name = isJsonObject(value) ? value["content"] : value;
    const id = typeof name === "string" ? ids.get(name) : undefined;
    if (id !== undefined) entries.push([`tokenizer.ggml.${key}`, { type: "uint32", value: id }]);
    if (id !== undefined && role === "unk_token" && isPieces) types[id] = tokenType.unknown;
  }
  const single = postTemplate(file["post_processor"]);
  const at = single.indexOf("");
  for (const [role, adds] of [
    ["bos", at > 0],
    ["eos", at >= 0 && at < single.length - 1],
  ] as const) {
    entries.push([`tokenizer.ggml.add_${role}_token`, { type: "bool", value: adds }]);
  }
  const addsSpace = isPieces && JSON.stringify(file["normalizer"] ?? null).includes('"Prepend"');
  entries.push(["tokenizer.ggml.add_space_prefix", { type: "bool", value: addsSpace }]);
  if (chatTemplate !== undefined) entries.push(["tokenizer.chat_template", text(chatTemplate)]);
  return entries;
}

/** What stands around a text: names of tokens, and "" for the text. */
function postTemplate(processor: JsonValue | undefined): string[] {
  if (!isJsonObject(processor)) return [];
  if (processor["type"] === "Sequence") {
    return ((processor["processors"] ?? []) as readonly JsonValue[])
      .map(postTemplate)
      .reduce((a, b) => (b.length > 0 ? b : a), []);
  }
  if (processor["type"] !== "TemplateProcessing") return [];
  return ((processor["single"] ?? []) as readonly JsonObject[]).map((item) => {
    const special = item["SpecialToken"];
    return isJsonObject(special) ? String(special["id"]) : "";
  });
}
