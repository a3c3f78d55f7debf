/**
 * Text to token ids and back, by a folder's `tokenizer.json`; the work is done by
 * `@huggingface/tokenizers`.
 *
 * Text stays text: unless `allowSpecial` is set, nothing written in it becomes a special token.
 */
import { Tokenizer as UntypedTokenizer } from "@huggingface/tokenizers";
import { FormatError, MissingError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";

const tokenizerName = "tokenizer.json";
const configName = "tokenizer_config.json";
/** The largest in use are near 35 MB. */
const maxTokenizerBytes = 2 ** 27;
const maxConfigBytes = 2 ** 24;
/** Vocabularies in use end near 2^18. */
const maxVocabSize = 2 ** 22;

/** The files as they were read, to be copied into folders that are written. */
export interface TokenizerJson {
  readonly tokenizer: string;
  readonly config: string | undefined;
}

export interface EncodeOptions {
  /** Reads special tokens where their text stands; for templates, not for what users write. */
  readonly allowSpecial?: boolean;
  /** Adds what the tokenizer puts around a text, such as a token for its beginning. */
  readonly addSpecial?: boolean;
}

export interface DecodeOptions {
  /** Leaves special tokens out of the text. */
  readonly skipSpecial?: boolean;
}

/** A token that commands, and the text that stands for it in templates. */
export interface SpecialToken {
  readonly id: number;
  readonly text: string;
  /** Whether it takes the white space before or after it, as some templates' tokens do. */
  readonly strips: { readonly left: boolean; readonly right: boolean };
}

/** What of tokenizer.json is looked at here; the rest goes to the library as it is. */
interface TokenizerFile extends JsonObject {
  readonly model: JsonObject;
  readonly added_tokens: readonly AddedToken[];
}

interface AddedToken extends JsonObject {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

/** The part of the library used here; its own declarations do not resolve under nodenext. */
interface HfTokenizer {
  readonly model: { readonly unk_token_id?: number | null };
  readonly post_processor: {
    post_process(tokens: string[], pair: null, addSpecial: boolean): { tokens: string[] };
  } | null;
  encode(
    text: string,
    options: { add_special_tokens: boolean },
  ): {
    readonly ids: readonly (number | undefined)[];
    readonly tokens: readonly string[];
  };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
}

const HfTokenizer = UntypedTokenizer as new (tokenizer: object, config: object) => HfTokenizer;

type Wrong = (what: string) => FormatError;

function checkId(id: JsonValue | undefined, token: string, wrong: Wrong): number {
  if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= maxVocabSize) {
    throw wrong(
      `token ${JSON.stringify(token)} has the id ${JSON.stringify(id)} — ids are whole numbers from 0 below ${maxVocabSize}.`,
    );
  }
  return id;
}

function checkAddedTokens(value: JsonValue | undefined, wrong: Wrong): readonly AddedToken[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw wrong("added_tokens must be a list.");
  return value.map((item: JsonValue): AddedToken => {
    if (!isJsonObject(item)) throw wrong("added_tokens must hold objects.");
    const { content, special = false } = item;
    if (typeof content !== "string" || content === "" || typeof special !== "boolean") {
      throw wrong("every added token must have a text as content, and special true or false.");
    }
    return { ...item, content, special, id: checkId(item["id"], content, wrong) };
  });
}

/** The tokens of a vocabulary with their ids: a table, or (Unigram) a list of [token, score]. */
function* vocabulary(model: JsonObject, wrong: Wrong): Generator<readonly [string, number]> {
  const { vocab } = model;
  if (Array.isArray(vocab)) {
    if (vocab.length > maxVocabSize)
      throw wrong(`model.vocab has more than ${maxVocabSize} tokens.`);
    for (const [id, item] of (vocab as readonly JsonValue[]).entries()) {
      const [token, score] = Array.isArray(item) ? (item as readonly JsonValue[]) : [];
      if (typeof token !== "string" || typeof score !== "number") {
        throw wrong(
          `model.vocab must list [token, score], got ${JSON.stringify(item)} for id ${id}.`,
        );
      }
      yield [token, id];
    }
  } else if (isJsonObject(vocab)) {
    for (const [token, id] of Object.entries(vocab)) yield [token, checkId(id, token, wrong)];
  } else throw wrong("model.vocab must be a table of tokens and ids, or a list.");
}

function checkTokenizer(root: JsonValue, wrong: Wrong): TokenizerFile {
  const model = isJsonObject(root) ? root["model"] : undefined;
  if (!isJsonObject(root) || !isJsonObject(model)) throw wrong("must have an object model.");
  if (model["type"] === "BPE") {
    const { merges } = model;
    const isMerge = (item: JsonValue): boolean =>
      typeof item === "string" ||
      (Array.isArray(item) && item.length === 2 && item.every((part) => typeof part === "string"));
    if (!Array.isArray(merges) || !merges.every(isMerge)) {
      throw wrong("model.merges must be a list of pairs of tokens.");
    }
  }
  return {
    // Absent and null mean the same; the library asks for the keys.
    ...{ normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null },
    ...root,
    model,
    added_tokens: checkAddedTokens(root["added_tokens"], wrong),
  };
}

/** A token of tokenizer_config.json: its text, or an object with it. */
function tokenText(config: JsonObject, role: string, wrong: Wrong): string | undefined {
  const value = config[role];
  if (value === undefined || value === null) return undefined;
  const text = isJsonObject(value) ? value["content"] : value;
  if (typeof text !== "string") {
    throw wrong(`${role} must be a text or an object with content, got ${JSON.stringify(value)}.`);
  }
  return text;
}

const roles = ["bos_token", "eos_token", "pad_token", "cls_token", "sep_token", "mask_token"];

/**
 * Special tokens that text must not become: those so marked, and those that the config gives a role.
 * One character alone is the only spelling of itself, so such tokens stay readable.
 */
function guardedTexts(file: TokenizerFile, config: JsonObject, wrong: Wrong): Set<string> {
  const texts = new Set<string>();
  for (const { special, content } of file.added_tokens) if (special) texts.add(content);
  for (const role of roles) {
    const text = tokenText(config, role, wrong);
    if (text !== undefined) texts.add(text);
  }
  const additional = config["additional_special_tokens"] ?? [];
  if (!Array.isArray(additional)) throw wrong("additional_special_tokens must be a list.");
  for (const item of additional as readonly JsonValue[]) {
    const text = tokenText({ item }, "item", () =>
      wrong("additional_special_tokens must hold texts or objects with content."),
    );
    if (text !== undefined) texts.add(text);
  }
  for (const text of texts) if ([...text].length < 2) texts.delete(text);
  return texts;
}

/**
 * The same tokenizer without these tokens: their texts are read as any other text. The model must
 * not know them either, as some models look whole words up.
 */
function without(
  file: TokenizerFile,
  texts: ReadonlySet<string>,
  ids: ReadonlySet<number>,
): TokenizerFile {
  const { vocab, merges } = file.model;
  const model: Record<string, JsonValue> = { ...file.model };
  if (Array.isArray(vocab)) {
    // Places in the list are ids, so they stay; half of a surrogate pair is in no text.
    model["vocab"] = (vocab as readonly (readonly [string, number])[]).map(([token, score], id) =>
      ids.has(id) ? [`\ud800${id}`, score] : [token, score],
    );
  } else {
    model["vocab"] = Object.fromEntries(
      Object.entries(vocab as JsonObject).filter(([, id]) => !ids.has(id as number)),
    );
  }
  if (Array.isArray(merges)) {
    model["merges"] = (merges as readonly (string | readonly string[])[]).filter((merge) => {
      const parts = typeof merge === "string" ? merge.split(" ", 2) : merge;
      return !texts.has(parts.join(""));
    });
  }
  return { ...file, model, added_tokens: file.added_tokens.filter(({ id }) => !ids.has(id)) };
}

export class Tokenizer {
  /** One more than the highest id: the rows that a model's embedding needs. */
  readonly vocabSize: number;
  readonly eosId: number | undefined;
  readonly bosId: number | undefined;
  readonly padId: number | undefined;
  /** The token that hides a word, of encoders. */
  readonly maskId: number | undefined;
  readonly json: TokenizerJson;
  readonly #where: string;
  readonly #file: TokenizerFile;
  readonly #config: JsonObject;
  readonly #full: HfTokenizer;
  readonly #guarded: ReadonlySet<string>;
  readonly #guardedIds: ReadonlySet<number>;
  readonly #unknownId: number | undefined;
  /** What the tokenizer puts before and after a text. */
  #around: { readonly before: readonly number[]; readonly after: readonly number[] } | undefined;
  #plain: HfTokenizer | undefined;
  #specials: readonly SpecialToken[] | undefined;
  #specialPattern: RegExp | undefined;
  #addsPrefix: boolean | undefined;

  /**
   * @param where named in errors, usually the folder.
   * @throws FormatError when the contents break their format.
   * @throws UnsupportedError when the library does not know the kind of tokenizer.
   */
  constructor(json: TokenizerJson, where: string) {
    const wrongIn =
      (name: string): Wrong =>
      (what) =>
        new FormatError(`${where}: ${name}: ${what}`, { path: where });
    const wrong = wrongIn(tokenizerName);
    const wrongConfig = wrongIn(configName);
    const file = checkTokenizer(
      parseJson(json.tokenizer, `${where}: ${tokenizerName}`, { maxBytes: maxTokenizerBytes }),
      wrong,
    );
    const config = parseJson(json.config ?? "{}", `${where}: ${configName}`, {
      maxBytes: maxConfigBytes,
    });
    if (!isJsonObject(config)) throw wrongConfig("must be an object.");

    let top = -1;
    for (const [, id] of vocabulary(file.model, wrong)) top = Math.max(top, id);
    for (const { id } of file.added_tokens) top = Math.max(top, id);
    this.vocabSize = top + 1;
    this.json = json;
    this.#where = where;
    this.#file = file;
    this.#config = config;
    this.#full = this.#build(file);
    this.#unknownId = this.#full.model.unk_token_id ?? undefined;
    const guarded = guardedTexts(file, config, wrongConfig);
    // A text may be unknown: that token says so and commands nothing.
    for (const text of guarded) {
      if (this.#unknownId !== undefined && this.tokenToId(text) === this.#unknownId) {
        guarded.delete(text);
      }
    }
    this.#guarded = guarded;
    this.#guardedIds = new Set([...guarded].flatMap((text) => this.tokenToId(text) ?? []));
    const idOf = (role: string): number | undefined => {
      const text = tokenText(config, role, wrongConfig);
      if (text === undefined) return undefined;
      const id = this.tokenToId(text);
      if (id !== undefined) return id;
      throw wrongConfig(
        `${role} ${JSON.stringify(text)} is not in the vocabulary — the two files belong to different tokenizers.`,
      );
    };
    this.eosId = idOf("eos_token");
    this.bosId = idOf("bos_token");
    this.padId = idOf("pad_token");
    this.maskId = idOf("mask_token");
  }

  #build(file: TokenizerFile): HfTokenizer {
    try {
      return new HfTokenizer(file, this.#config);
    } catch (cause) {
      throw new UnsupportedError(
        `${this.#where}: ${tokenizerName}: this tokenizer cannot be run, ${cause instanceof Error ? cause.message : String(cause)}.`,
        { path: this.#where },
        { cause },
      );
    }
  }

  /** Built when a text first needs it: it holds a second copy of the vocabulary. */
  #withoutSpecial(): HfTokenizer {
    this.#plain ??= this.#build(without(this.#file, this.#guarded, this.#guardedIds));
    return this.#plain;
  }

  /** The ids of a text. */
  encode(text: string, options: EncodeOptions = {}): Int32Array<ArrayBuffer> {
    // Halves of surrogate pairs have no bytes; they become U+FFFD as in TextEncoder.
    const wellFormed = text.replace(/\p{Surrogate}/gu, "\ufffd");
    let ids = this.#encodeWith(this.#full, wellFormed);
    if (!options.allowSpecial && ids.some((id) => this.#guardedIds.has(id))) {
      ids = this.#encodeWith(this.#withoutSpecial(), wellFormed);
    }
    if (!options.addSpecial) return Int32Array.from(ids);
    const { before, after } = this.#surroundings();
    return Int32Array.from([...before, ...ids, ...after]);
  }

  #encodeWith(tokenizer: HfTokenizer, text: string): number[] {
    const { ids, tokens } = tokenizer.encode(text, { add_special_tokens: false });
    return ids.map((id, i) => {
      if (id !== undefined && id !== null) return id;
      throw new FormatError(
        `${this.#where}: ${tokenizerName}: token ${JSON.stringify(tokens[i])} has no id, and there is none for unknown ones.`,
        { path: this.#where, token: tokens[i] },
      );
    });
  }

  /** The tokens that text never becomes, longest text first. */
  get specialTokens(): readonly SpecialToken[] {
    this.#specials ??= [...this.#guarded]
      .flatMap((text): SpecialToken[] => {
        const id = this.tokenToId(text);
        const added = this.#file.added_tokens.find(({ content }) => content === text);
        const strips = { left: added?.["lstrip"] === true, right: added?.["rstrip"] === true };
        return id === undefined ? [] : [{ id, text, strips }];
      })
      .sort((a, b) => b.text.length - a.text.length);
    return this.#specials;
  }

  /** Finds texts of special tokens; global, so reset `lastIndex` or use `matchAll`. */
  get specialPattern(): RegExp {
    // Of two that begin alike the longer one is meant, and it stands first.
    this.#specialPattern ??= new RegExp(
      this.specialTokens.map(({ text }) => text.replace(/[$()*+.?[\\\]^{|}]/g, "\\$&")).join("|") ||
        "(?!)",
      "g",
    );
    return this.#specialPattern;
  }

  /** What the tokenizer puts before a text, such as a token for its beginning; often nothing. */
  get beginning(): readonly number[] {
    return this.#surroundings().before;
  }

  /**
   * The ids of a text that goes on from another: those that follow the other's own, as a model
   * continues it. Tokenizers that begin every text with a space would add one in its middle.
   */
  encodeAfter(before: string, text: string): Int32Array<ArrayBuffer> {
    if (text === "") return new Int32Array(0);
    const mark = "a";
    this.#addsPrefix ??=
      this.encode(`\n${mark}`).length !== 1 + this.encode("\n").length ||
      this.encode(`\n${mark}`).at(-1) !== this.encode(mark)[0];
    if (!this.#addsPrefix) return this.encode(text);
    for (const context of [before, "\n"]) {
      const [left, joint] = [this.encode(context), this.encode(context + text)];
      if (left.length > 0 && left.every((id, i) => joint[i] === id))
        return joint.slice(left.length);
    }
    return this.encode(text);
  }

  /** Found by what is put around a token that no text has. */
  #surroundings(): { readonly before: readonly number[]; readonly after: readonly number[] } {
    if (this.#around) return this.#around;
    const mark = "\ud800";
    const { tokens } = this.#full.post_processor?.post_process([mark], null, true) ?? {
      tokens: [mark],
    };
    const at = tokens.indexOf(mark);
    const ids = tokens.map((token) => (token === mark ? -1 : this.tokenToId(token)));
    if (at < 0 || tokens.lastIndexOf(mark) !== at || ids.includes(undefined)) {
      throw new FormatError(
        `${this.#where}: ${tokenizerName}: post_processor must hold the text once and tokens of the vocabulary, got ${JSON.stringify(tokens)}.`,
        { path: this.#where },
      );
    }
    const known = ids as readonly number[];
    this.#around = { before: known.slice(0, at), after: known.slice(at + 1) };
    return this.#around;
  }

  /**
   * The text of ids.
   * @throws OptionError when an id is outside the vocabulary.
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const list = Array.from(ids);
    for (const id of list) {
      if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
        throw new OptionError(
          `decode: id ${id} is outside the vocabulary of ${this.vocabSize} tokens.`,
        );
      }
    }
    if (list.length === 0) return "";
    return this.#full.decode(list, {
      skip_special_tokens: options.skipSpecial ?? false,
      // The library's default is true, which loses spaces; what the file says holds.
      clean_up_tokenization_spaces: this.#config["clean_up_tokenization_spaces"] === true,
    });
  }

  tokenToId(token: string): number | undefined {
    return this.#full.token_to_id(token);
  }
}

/**
 * Loads the tokenizer of a model folder; `tokenizer_config.json` may be absent.
 * @throws MissingError when the folder has no tokenizer.json.
 */
export async function loadTokenizer(files: Files, folder: string): Promise<Tokenizer> {
  const path = files.join(folder, tokenizerName);
  if (!(await files.info(path))) {
    throw new MissingError(
      `${folder}: has no "${tokenizerName}" — name a folder with a tokenizer of the Hugging Face form.`,
      { path },
    );
  }
  const configPath = files.join(folder, configName);
  const hasConfig = (await files.info(configPath)) !== undefined;
  return new Tokenizer(
    {
      tokenizer: await files.readText(path, maxTokenizerBytes),
      config: hasConfig ? await files.readText(configPath, maxConfigBytes) : undefined,
    },
    folder,
  );
}
