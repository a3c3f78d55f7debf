/**
 * Byte-level BPE: learns a vocabulary of byte sequences by joining the most frequent neighbours.
 *
 * Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016; bytes,
 * word pattern and the alphabet that shows bytes as characters from GPT-2 (Radford et al., 2019).
 *
 *   words = pieces of the pattern, each with its count n
 *   repeat: (a, b) = the pair with the largest Σ n over its places; join it everywhere
 *
 * Ids and ties follow the `tokenizers` library's trainer, so that both learn the same merges: special
 * tokens first, then the 256 bytes in the order of their characters, then merges; of equal pairs the
 * one with the lower ids wins. Differs: text of a special token in the corpus is left out, and no
 * merge may spell one, so that ordinary text cannot become special.
 *
 * Cost: one pass over the text for the words, then time in proportion to the places joined.
 */
import { OptionError } from "../errors.ts";

export interface BpeOptions {
  /** Tokens in all, the special ones and the 256 bytes included. */
  readonly vocabSize: number;
  /** Ids from 0 in this order; default none. */
  readonly specialTokens?: readonly string[];
  /** Times that a pair must occur to be joined; default 2. */
  readonly minFrequency?: number;
}

export interface BpeModel {
  /** Tokens by id, their bytes shown as characters of the byte alphabet. */
  readonly vocab: readonly string[];
  /** In the order learnt, which is the order they are applied in. */
  readonly merges: readonly (readonly [left: string, right: string])[];
  readonly specialTokens: readonly string[];
}

/** Ids fit 20 bits: far above any vocabulary in use, and pairs fit a double. */
const maxVocabSize = 2 ** 20;

/** GPT-2's pattern, as `@huggingface/tokenizers` has it. Its pieces cover every text. */
const wordPattern: RegExp =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** The character that shows each byte: itself where it is printable, else one from U+0100 on. */
function makeByteAlphabet(): string[] {
  const characters: string[] = [];
  let moved = 0;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    characters.push(String.fromCharCode(isPrintable ? byte : 256 + moved++));
  }
  return characters;
}

const byteAlphabet = makeByteAlphabet();

function checkOptions(options: BpeOptions): Required<BpeOptions> {
  const { vocabSize, specialTokens = [], minFrequency = 2 } = options;
  const least = 256 + specialTokens.length;
  if (!Number.isInteger(vocabSize) || vocabSize < least || vocabSize > maxVocabSize) {
    throw new OptionError(
      `trainBpe: vocabSize must be a whole number from ${least} (256 bytes and ${specialTokens.length} special tokens) to ${maxVocabSize}, got ${vocabSize}.`,
    );
  }
  if (!Number.isSafeInteger(minFrequency) || minFrequency < 1) {
    throw new OptionError(
      `trainBpe: minFrequency must be a whole number from 1, got ${minFrequency}.`,
    );
  }
  const seen = new Set(byteAlphabet);
  for (const token of specialTokens) {
    if (token === "" || seen.has(token)) {
      throw new OptionError(
        `trainBpe: special token ${JSON.stringify(token)} is ${token === "" ? "empty" : "taken"} — choose texts of two characters or more, each once.`,
      );
    }
    if (/\p{Surrogate}/u.test(token)) {
      throw new OptionError(
        `trainBpe: special token ${JSON.stringify(token)} has half of a surrogate pair — it has no UTF-8 form.`,
      );
    }
    seen.add(token);
  }
  return { vocabSize, specialTokens, minFrequency };
}

function splitter(specialTokens: readonly string[]): RegExp | undefined {
  if (specialTokens.length === 0) return undefined;
  // The longest first, as of two that begin alike the longer one is meant.
  const longest = specialTokens.toSorted((a, b) => b.length - a.length);
  return new RegExp(longest.map((t) => t.replace(/[$()*+.?[\\\]^{|}]/g, "\\$&")).join("|"), "u");
}

/** How often each word occurs. The end of a chunk ends a word. */
function countWords(
  chunks: Iterable<string>,
  specialTokens: readonly string[],
): Map<string, number> {
  const counts = new Map<string, number>();
  const special = splitter(specialTokens);
  for (const chunk of chunks) {
    for (const text of special ? chunk.split(special) : [chunk]) {
      let from = 0;
      wordPattern.lastIndex = 0;
      // `test` moves lastIndex without building a match, and pieces follow each other.
      while (wordPattern.test(text)) {
        const word = text.slice(from, wordPattern.lastIndex);
        from = wordPattern.lastIndex;
        const count = counts.get(word);
        if (count !== undefined) counts.set(word, count + 1);
        // V8 keeps a long slice as a window on its chunk; copying lets the chunk go.
        else counts.set(word.length < 13 ? word : ` ${word}`.slice(1), 1);
      }
    }
  }
  return counts;
}

/** Pairs by largest count, then lowest ids. A pair may be in it more than once, with old counts. */
class PairQueue {
  readonly #pairs: number[] = [];
  readonly #counts: number[] = [];
  readonly #left: readonly number[];
  readonly #right: readonly number[];

  constructor(left: readonly number[], right: readonly number[]) {
    this.#left = left;
    this.#right = right;
  }

  get size(): number {
    return this.#pairs.length;
  }

  #isBefore(countA: number, a: number, countB: number, b: number): boolean {
    if (countA !== countB) return countA > countB;
    const order = this.#left[a]! - this.#left[b]! || this.#right[a]! - this.#right[b]!;
    return order < 0;
  }

  push(pair: number, count: number): void {
    const pairs = this.#pairs;
    const counts = this.#counts;
    let at = pairs.length;
    pairs.push(pair);
    counts.push(count);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isBefore(count, pair, counts[parent]!, pairs[parent]!)) break;
      pairs[at] = pairs[parent]!;
      counts[at] = counts[parent]!;
      at = parent;
    }
    pairs[at] = pair;
    counts[at] = count;
  }

  /** The first pair with the count it was pushed with. */
  pop(): readonly [pair: number, count: number] {
    const pairs = this.#pairs;
    const counts = this.#counts;
    const top = [pairs[0]!, counts[0]!] as const;
    const pair = pairs.pop()!;
    const count = counts.pop()!;
    const size = pairs.length;
    if (size === 0) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (
        child + 1 < size &&
        this.#isBefore(counts[child + 1]!, pairs[child + 1]!, counts[child]!, pairs[child]!)
      ) {
        child++;
      }
      if (!this.#isBefore(counts[child]!, pairs[child]!, count, pair)) break;
      pairs[at] = pairs[child]!;
      counts[at] = counts[child]!;
      at = child;
    }
    pairs[at] = pair;
    counts[at] = count;
    return top;
  }
}

/** The words as ids, and every pair of neighbours with its count and the words it was seen in. */
class PairTable {
  /** Ids of the pair, by the pair's number. */
  readonly left: number[] = [];
  readonly right: number[] = [];
  readonly counts: number[] = [];
  /** Words a pair was seen in: may repeat, and may have lost it since. */
  readonly #places: number[][] = [];
  readonly #numbers: Map<number, number> = new Map();
  readonly #idLimit: number;
  /** Ids of all words, one after another; a word shrinks in place. */
  readonly #ids: Int32Array;
  readonly #starts: Int32Array;
  readonly #lengths: Int32Array;
  readonly #wordCounts: Float64Array;

  constructor(words: ReadonlyMap<string, number>, firstByteIds: Int32Array, idLimit: number) {
    this.#idLimit = idLimit;
    const encoder = new TextEncoder();
    let total = 0;
    for (const word of words.keys()) total += 3 * word.length;
    const bytes = new Uint8Array(total);
    this.#starts = new Int32Array(words.size);
    this.#lengths = new Int32Array(words.size);
    this.#wordCounts = new Float64Array(words.size);
    let end = 0;
    let w = 0;
    for (const [word, count] of words) {
      const { written } = encoder.encodeInto(word, bytes.subarray(end));
      this.#starts[w] = end;
      this.#lengths[w] = written;
      this.#wordCounts[w] = count;
      end += written;
      w++;
    }
    this.#ids = new Int32Array(end);
    for (let i = 0; i < end; i++) this.#ids[i] = firstByteIds[bytes[i]!]!;
    for (let word = 0; word < words.size; word++) {
      const start = this.#starts[word]!;
      const stop = start + this.#lengths[word]!;
      for (let i = start + 1; i < stop; i++) {
        this.#add(this.#ids[i - 1]!, this.#ids[i]!, this.#wordCounts[word]!, word);
      }
    }
  }

  /** Counts a pair up; returns its number. */
  #add(left: number, right: number, count: number, word: number): number {
    const key = left * this.#idLimit + right;
    const known = this.#numbers.get(key);
    if (known === undefined) {
      const pair = this.counts.length;
      this.#numbers.set(key, pair);
      this.left.push(left);
      this.right.push(right);
      this.counts.push(count);
      this.#places.push([word]);
      return pair;
    }
    this.counts[known]! += count;
    const places = this.#places[known]!;
    if (places[places.length - 1] !== word) places.push(word);
    return known;
  }

  #subtract(left: number, right: number, count: number): void {
    this.counts[this.#numbers.get(left * this.#idLimit + right)!]! -= count;
  }

  /** Joins a pair to `id` in every word; returns the pairs whose counts grew. */
  join(pair: number, id: number): Set<number> {
    const a = this.left[pair]!;
    const b = this.right[pair]!;
    const ids = this.#ids;
    const grown = new Set<number>();
    const places = this.#places[pair]!;
    this.#places[pair] = [];
    for (const word of places) {
      const start = this.#starts[word]!;
      const stop = start + this.#lengths[word]!;
      const count = this.#wordCounts[word]!;
      let to = start;
      for (let from = start; from < stop; ) {
        if (ids[from] !== a || from + 1 === stop || ids[from + 1] !== b) {
          ids[to++] = ids[from++]!;
          continue;
        }
        if (to > start) {
          const before = ids[to - 1]!;
          this.#subtract(before, a, count);
          grown.add(this.#add(before, id, count, word));
        }
        from += 2;
        if (from < stop) {
          const after = ids[from]!;
          this.#subtract(b, after, count);
          grown.add(this.#add(id, after, count, word));
        }
        ids[to++] = id;
      }
      this.#lengths[word] = to - start;
    }
    // Runs such as "aaa" have changed it on the way; it is nowhere now.
    this.counts[pair] = 0;
    this.#places[pair] = [];
    return grown;
  }
}

/**
 * Learns a tokenizer from text.
 * @param chunks the corpus piece by piece; a chunk's end ends a word, so cut at line ends.
 * @throws OptionError when an option is outside its range.
 */
export function trainBpe(chunks: Iterable<string>, options: BpeOptions): BpeModel {
  const { vocabSize, specialTokens, minFrequency } = checkOptions(options);
  const vocab = [...specialTokens, ...byteAlphabet.toSorted()];
  const idOf = new Map(vocab.map((token, id) => [token, id]));
  const byteIds = Int32Array.from(byteAlphabet, (character) => idOf.get(character)!);

  const table = new PairTable(countWords(chunks, specialTokens), byteIds, vocabSize);
  const queue = new PairQueue(table.left, table.right);
  for (const [pair, count] of table.counts.entries()) queue.push(pair, count);

  const merges: [string, string][] = [];
  while (vocab.length < vocabSize && queue.size > 0) {
    const [pair, count] = queue.pop();
    const current = table.counts[pair]!;
    if (current < count) {
      if (current >= minFrequency) queue.push(pair, current);
      continue;
    }
    // A larger count means that the pair grew and stands in the queue again.
    if (current > count) continue;
    if (count < minFrequency) break;
    const left = vocab[table.left[pair]!]!;
    const right = vocab[table.right[pair]!]!;
    const token = left + right;
    // Two routes may lead to the same bytes: "ab" + "c" and "a" + "bc".
    let id = idOf.get(token);
    if (id !== undefined && id < specialTokens.length) continue;
    if (id === undefined) {
      id = vocab.length;
      vocab.push(token);
      idOf.set(token, id);
    }
    merges.push([left, right]);
    for (const changed of table.join(pair, id)) queue.push(changed, table.counts[changed]!);
  }
  return { vocab, merges, specialTokens: [...specialTokens] };
}

/** The contents of `tokenizer.json`, as the `tokenizers` library writes it. */
export function toTokenizerJson(model: BpeModel): string {
  const byteLevel = {
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: true,
  };
  // Assembled by hand: an object would put the tokens "0" to "9" first.
  const vocab = model.vocab.map((token, id) => `${JSON.stringify(token)}:${id}`).join(",");
  const outer = JSON.stringify({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: model.specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: byteLevel,
    decoder: byteLevel,
  });
  const bpe = JSON.stringify({
    type: "BPE",
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: false,
  });
  const merges = JSON.stringify(model.merges);
  return `${outer.slice(0, -1)},"model":${bpe.slice(0, -1)},"vocab":{${vocab}},"merges":${merges}}}`;
}

export interface TokenizerConfigOptions {
  readonly eosToken?: string;
  readonly bosToken?: string;
  readonly padToken?: string;
  /** Longest text in tokens that the model takes. */
  readonly maxLength?: number;
}

/**
 * The contents of `tokenizer_config.json`.
 * @throws OptionError when a token named is not one of the model's special tokens.
 */
export function toTokenizerConfig(model: BpeModel, options: TokenizerConfigOptions = {}): string {
  const config: Record<string, unknown> = {
    tokenizer_class: "PreTrainedTokenizerFast",
    clean_up_tokenization_spaces: false,
  };
  for (const role of ["eosToken", "bosToken", "padToken"] as const) {
    const token = options[role];
    if (token === undefined) continue;
    if (!model.specialTokens.includes(token)) {
      throw new OptionError(
        `toTokenizerConfig: ${role} ${JSON.stringify(token)} is not a special token of this model — name it in specialTokens when training.`,
      );
    }
    config[`${role.slice(0, 3)}_token`] = token;
  }
  if (options.maxLength !== undefined) config["model_max_length"] = options.maxLength;
  return `${JSON.stringify(config, null, 2)}\n`;
}
