/** What a tokenizer's tokens are as bytes, as a trie: what an automaton over bytes needs to allow tokens. */
import type { Tokenizer } from "../../data/tokenizer.ts";
import { OptionError, UnsupportedError } from "../../errors.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../../io/json.ts";

const maxTokens = 2 ** 22;
/** Longer tokens are left out: no text needs them. */
const maxTokenBytes = 512;

/** Symbols of special tokens begin here; those below are bytes. */
export const firstSpecial = 256;

/**
 * Tokens as a trie in depth-first order: the children of a node follow it, and `end` says where its part ends.
 * Node 0 is the root.
 */
export class Vocabulary {
  /** Tokens that a mask is about: ids below this. */
  readonly size: number;
  /** The byte that leads to a node, or 256 and a special token's id. */
  readonly symbols: Int32Array;
  /** The node after a node's last descendant. */
  readonly end: Int32Array;
  /** Where a node's tokens begin in `tokens`; those of node `n` end where those of `n + 1` begin. */
  readonly first: Int32Array;
  readonly tokens: Int32Array;
  /** How many nodes are above a node. */
  readonly level: Uint16Array;
  /** Nodes below each other at most: bytes of the longest token. */
  readonly depth: number;
  readonly #pieces: readonly (readonly number[] | undefined)[];
  readonly #specials: ReadonlyMap<string, number>;

  /**
   * @param pieces bytes of each token by its id; none for a token that no text has
   * @param specials special tokens by their text: each is one symbol of its own
   * @throws OptionError for more tokens than a vocabulary has.
   */
  constructor(
    pieces: readonly (ArrayLike<number> | undefined)[],
    specials: ReadonlyMap<string, number> = new Map(),
  ) {
    if (pieces.length > maxTokens) {
      throw new OptionError(`vocabulary: has ${pieces.length} tokens, at most ${maxTokens}.`);
    }
    this.size = pieces.length;
    this.#specials = specials;
    const commands = new Set(specials.values());
    const own = pieces.map((piece, id): readonly number[] | undefined => {
      if (commands.has(id)) return [firstSpecial + id];
      return piece && piece.length > 0 && piece.length <= maxTokenBytes
        ? Array.from(piece)
        : undefined;
    });
    this.#pieces = own;
    const order = own.flatMap((piece, id) => (piece ? [id] : []));
    order.sort((a, b) => compare(own[a]!, own[b]!) || a - b);
    const [symbols, first, tokens]: [number[], number[], number[]] = [[-1], [0], []];
    const end: number[] = [0];
    const levels: number[] = [0];
    const path: number[] = [0];
    let depth = 0;
    let before: readonly number[] = [];
    for (const id of order) {
      const piece = own[id]!;
      let shared = 0;
      while (shared < before.length && before[shared] === piece[shared]) shared++;
      for (let level = path.length - 1; level > shared; level--) end[path[level]!] = symbols.length;
      path.length = shared + 1;
      for (let level = shared; level < piece.length; level++) {
        path.push(symbols.length);
        symbols.push(piece[level]!);
        first.push(tokens.length);
        end.push(0);
        levels.push(level + 1);
      }
      tokens.push(id);
      depth = Math.max(depth, piece.length);
      before = piece;
    }
    for (const node of path) end[node] = symbols.length;
    this.symbols = Int32Array.from(symbols);
    this.end = Int32Array.from(end);
    this.first = Int32Array.from([...first, tokens.length]);
    this.tokens = Int32Array.from(tokens);
    this.level = Uint16Array.from(levels);
    this.depth = depth;
  }

  /** A token's bytes, or its one special symbol; nothing for a token that no text has. */
  symbolsOf(token: number): readonly number[] | undefined {
    return this.#pieces[token];
  }

  /** A text as symbols: the special token with that text where there is one, else its bytes. */
  spell(text: string): readonly number[] {
    const special = this.#specials.get(text);
    return special === undefined ? [...new TextEncoder().encode(text)] : [firstSpecial + special];
  }
}

function compare(a: readonly number[], b: readonly number[]): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return a.length - b.length;
}

/** The character that stands for each byte in byte-level BPE (Radford et al. 2019, `bytes_to_unicode`). */
function byteLetters(): Map<string, number> {
  const letters = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const isShown =
      (byte >= 0x21 && byte <= 0x7e) ||
      (byte >= 0xa1 && byte <= 0xac) ||
      (byte >= 0xae && byte <= 0xff);
    letters.set(String.fromCharCode(isShown ? byte : next++), byte);
  }
  return letters;
}

/** How a tokenizer writes bytes as tokens. */
type Spelling = (token: string) => readonly number[] | undefined;

const encoder = new TextEncoder();

/** All parts of a decoder, those of a sequence one by one. */
function decoders(value: JsonValue | undefined): readonly JsonObject[] {
  if (!isJsonObject(value)) return [];
  const inner = value["decoders"];
  return value["type"] === "Sequence" && Array.isArray(inner)
    ? (inner as readonly JsonValue[]).flatMap(decoders)
    : [value];
}

/**
 * Reads what a tokenizer's decoder does to one token.
 * @throws UnsupportedError for decoders that write text in another way.
 */
function spellingOf(file: JsonObject, where: string): Spelling {
  const parts = decoders(file["decoder"]);
  const types = parts.map(({ type }) => String(type));
  const unknown = types.find(
    (type) =>
      !["ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"].includes(type),
  );
  if (unknown !== undefined || parts.length === 0) {
    throw new UnsupportedError(
      `${where}: constrained text needs a tokenizer whose tokens are pieces of text, its decoder is ${unknown ?? "missing"} — ByteLevel, ByteFallback and Metaspace are known.`,
    );
  }
  if (types.includes("ByteLevel")) {
    const letters = byteLetters();
    return (token) => {
      const bytes: number[] = [];
      for (const letter of token) {
        const byte = letters.get(letter);
        if (byte === undefined) return undefined;
        bytes.push(byte);
      }
      return bytes;
    };
  }
  const replaced: (readonly [string, string])[] = [];
  for (const part of parts) {
    const pattern = isJsonObject(part["pattern"]) ? part["pattern"]["String"] : undefined;
    if (part["type"] === "Replace") {
      if (typeof pattern !== "string" || typeof part["content"] !== "string") {
        throw new UnsupportedError(
          `${where}: constrained text needs a decoder that replaces fixed texts, not patterns.`,
        );
      }
      replaced.push([pattern, part["content"]]);
    }
    if (part["type"] === "Metaspace") {
      const mark = part["replacement"];
      replaced.push([typeof mark === "string" ? mark : "\u2581", " "]);
    }
  }
  const hasBytes = types.includes("ByteFallback");
  return (token) => {
    const byte = hasBytes ? /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1] : undefined;
    if (byte !== undefined) return [Number.parseInt(byte, 16)];
    let text = token;
    for (const [from, to] of replaced) text = text.replaceAll(from, to);
    return bytesOf(text);
  };
}

/** Half of a surrogate pair has no bytes. */
function bytesOf(text: string): readonly number[] | undefined {
  return /\p{Surrogate}/u.test(text) ? undefined : [...encoder.encode(text)];
}

const known = new WeakMap<Tokenizer, Vocabulary>();

/**
 * The vocabulary of a tokenizer; made once for each. Special tokens are symbols of their own, which no free text
 * holds.
 * @param where begins errors
 * @throws UnsupportedError for tokenizers whose tokens are no pieces of text, as WordPiece.
 */
export function vocabularyOf(tokenizer: Tokenizer, where: string = "constraint"): Vocabulary {
  const found = known.get(tokenizer);
  if (found) return found;
  const file = parseJson(tokenizer.json.tokenizer, where);
  const model = isJsonObject(file) ? file["model"] : undefined;
  if (!isJsonObject(file) || !isJsonObject(model)) {
    throw new UnsupportedError(`${where}: the tokenizer has no model to read tokens from.`);
  }
  const spelling = spellingOf(file, where);
  const pieces: (readonly number[] | undefined)[] = new Array(tokenizer.vocabSize).fill(undefined);
  const { vocab } = model;
  if (Array.isArray(vocab)) {
    (vocab as readonly (readonly [string, number])[]).forEach(([token], id) => {
      pieces[id] = spelling(token);
    });
  } else {
    for (const [token, id] of Object.entries(vocab as Readonly<Record<string, number>>)) {
      pieces[id] = spelling(token);
    }
  }
  const added = (file["added_tokens"] ?? []) as readonly JsonObject[];
  for (const { id, content, special } of added) {
    pieces[id as number] = special === true ? undefined : bytesOf(content as string);
  }
  const unknown = tokenizer.tokenToId(String(model["unk_token"] ?? ""));
  if (unknown !== undefined) pieces[unknown] = undefined;
  const specials = new Map<string, number>();
  for (const { id, text } of tokenizer.specialTokens) specials.set(text, id);
  const { eosId, bosId, padId, maskId } = tokenizer;
  for (const id of [eosId, bosId, padId, maskId]) if (id !== undefined) pieces[id] = undefined;
  const made = new Vocabulary(pieces, specials);
  known.set(tokenizer, made);
  return made;
}
