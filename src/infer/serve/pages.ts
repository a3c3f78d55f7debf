/**
 * Keys and values of many sequences in pages, owned by the host: inputs of the graph and never outputs.
 *
 * As in PagedAttention (Kwon et al., SOSP 2023, arXiv:2309.06180) a sequence has a table of pages of a fixed
 * number of tokens; pages are shared by count, and one that is shared is copied before it is written to.
 * Full pages of prompts are kept when their sequences end, and given to the next prompt that begins with the
 * same tokens under the same weights; those unused for longest make room first. The budget is hard: memory
 * is asked for once, and the system gives it page by page when it is first written to.
 *
 *   pool of a layer's keys, and one of its values   ((pages + 1) · Hkv, pageTokens · D)
 *   row p · Hkv + h of it                           head h of page p; page 0 holds zeros, and nobody's tokens
 *
 * Measured against contiguous rows (`KvCache`), which need no gathering but room for the longest row in each,
 * two cores, 32 rows, one step: 10.9 ms to 11.2 (6 layers of width 256, 190 tokens held, contiguous room for
 * 256); 213 to 203 (SmolLM2-135M, the same); 148 to 134 (500 tokens in room for 512, the best case of the
 * other side). Gathering inside the graph copies what attention is about to read, while it is in the cache of
 * the processor. Sharing, growing and moving rows then cost nothing, so there is no second, contiguous form.
 */
import { OptionError, StateError } from "../../errors.ts";
import type { LanguageModelSizes } from "../../models/model.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { PrefixIndex } from "./prefixes.ts";

export type CacheSizes = Pick<LanguageModelSizes, "nLayers" | "nKvHeads" | "headDim">;

export interface PagedCacheOptions {
  /** Tokens of a page, a power of two from 8 to 256; default 64. */
  readonly pageTokens?: number;
  /** Memory of all pages in bytes; at least two pages. */
  readonly bytes: number;
}

/** What the cache holds, and what became of it. */
export interface CacheStats {
  readonly pages: number;
  /** Pages of sequences that are open. */
  readonly used: number;
  /** Pages that hold a prefix for whoever comes with it; they count as free. */
  readonly kept: number;
  readonly free: number;
  readonly pageBytes: number;
  /** Tokens that were found and not read again, of all that were asked for. */
  readonly hitTokens: number;
  readonly copies: number;
  readonly evictions: number;
}

const maxBytes = 2 ** 40;

/** The pages of one sequence. */
export class PagedSequence {
  /** Pages by place; those behind `length` are reserved and empty. */
  readonly pages: number[] = [];
  /** Whose keys and values: another number for each content of a slot. */
  readonly root: number;
  /** Tokens that the pages hold. */
  length = 0;
  /** Full pages, from the first on, that the cache knows by their content. */
  known = 0;
  /** The entry of the last of them, or the root. */
  chain: number;

  constructor(root: number) {
    this.root = root;
    this.chain = root;
  }
}

export class PagedCache {
  readonly pageTokens: number;
  /** Pages that sequences can have. */
  readonly pages: number;
  readonly pageBytes: number;
  /** Keys and values of layer after layer. */
  readonly pools: readonly Tensor<"float32">[];
  readonly #heads: number;
  readonly #headDim: number;
  readonly #prefixes: PrefixIndex = new PrefixIndex();
  readonly #users: Int32Array<ArrayBuffer>;
  readonly #isDirty: Uint8Array<ArrayBuffer>;
  readonly #free: number[];
  /** Pages with a known content that no open sequence has; the one unused for longest first. */
  readonly #idle: Set<number> = new Set();
  #hitTokens = 0;
  #copies = 0;
  #evictions = 0;

  /** @throws OptionError for a page size or a budget outside its range. */
  constructor(sizes: CacheSizes, options: PagedCacheOptions) {
    const { pageTokens = 64, bytes } = options;
    if (!(pageTokens >= 8 && pageTokens <= 256 && Number.isInteger(Math.log2(pageTokens)))) {
      throw new OptionError(
        `cache: pageTokens must be a power of two from 8 to 256, got ${pageTokens}.`,
      );
    }
    const { nLayers, nKvHeads, headDim } = sizes;
    this.pageTokens = pageTokens;
    this.#heads = nKvHeads;
    this.#headDim = headDim;
    const pageSize = nKvHeads * pageTokens * headDim;
    this.pageBytes = 2 * nLayers * pageSize * 4;
    const least = 2 * this.pageBytes;
    if (!(bytes >= least && bytes <= maxBytes)) {
      throw new OptionError(
        `cache: bytes must be from ${least}, two pages of ${pageTokens} tokens, to ${maxBytes}, got ${bytes}.`,
      );
    }
    this.pages = Math.floor(bytes / this.pageBytes);
    const shape = [(this.pages + 1) * nKvHeads, pageTokens * headDim];
    this.pools = Array.from({ length: 2 * nLayers }, () => Tensor.zeros(shape, "float32"));
    this.#users = new Int32Array(this.pages + 1);
    this.#isDirty = new Uint8Array(this.pages + 1);
    // The last one first: a page that was used lately is in memory already.
    this.#free = Array.from({ length: this.pages }, (_, i) => this.pages - i);
  }

  /** Pages that can be had, those with prefixes that nobody reads among them. */
  get available(): number {
    return this.#free.length + this.#idle.size;
  }

  get stats(): CacheStats {
    return {
      pages: this.pages,
      used: this.pages - this.available,
      kept: this.#idle.size,
      free: this.#free.length,
      pageBytes: this.pageBytes,
      hitTokens: this.#hitTokens,
      copies: this.#copies,
      evictions: this.#evictions,
    };
  }

  /** A number for weights whose keys and values are their own: the base, or one content of a slot. */
  newRoot(): number {
    return this.#prefixes.newRoot();
  }

  /** How many sequences have a page. */
  usersOf(page: number): number {
    return this.#users[page]!;
  }

  pagesFor(length: number): number {
    return Math.ceil(length / this.pageTokens);
  }

  open(root: number): PagedSequence {
    return new PagedSequence(root);
  }

  /** Another sequence with the same tokens, which shares its pages. */
  fork(source: PagedSequence): PagedSequence {
    const copy = new PagedSequence(source.root);
    this.#share(source, copy);
    return copy;
  }

  /** The key of a page's tokens; `readAs` above 0 tells apart what was computed in another way. */
  #key(tokens: Int32Array, index: number, readAs: number): Int32Array {
    const own = tokens.subarray(index * this.pageTokens, (index + 1) * this.pageTokens);
    return readAs === 0 ? own : Int32Array.of(...own, -1, readAs);
  }

  /**
   * Takes over full pages that the cache knows, as long as they hold what comes next.
   * @param limit the sequence becomes no longer
   * @param prompt of `tokens`, how many were read together: pages behind them hold what came token by token
   * @returns tokens found
   */
  adopt(sequence: PagedSequence, tokens: Int32Array, limit: number, prompt: number): number {
    const before = sequence.length;
    while (sequence.known * this.pageTokens === sequence.length) {
      const index = sequence.known;
      const end = sequence.length + this.pageTokens;
      if (end > limit) break;
      const key = this.#key(tokens, index, end > prompt ? prompt : 0);
      const entry = this.#prefixes.find(sequence.chain, key);
      if (!entry) break;
      this.#place(sequence, index, entry.page);
      sequence.chain = entry.id;
      sequence.known++;
      sequence.length = end;
    }
    const found = sequence.length - before;
    this.#hitTokens += found;
    return found;
  }

  /** The same without taking anything: pages that `adopt` would find. */
  peek(root: number, tokens: Int32Array, limit: number, prompt: number): readonly number[] {
    const pages: number[] = [];
    let chain = root;
    for (let end = this.pageTokens; end <= limit; end += this.pageTokens) {
      const key = this.#key(tokens, end / this.pageTokens - 1, end > prompt ? prompt : 0);
      const entry = this.#prefixes.find(chain, key);
      if (!entry) break;
      chain = entry.id;
      pages.push(entry.page);
    }
    return pages;
  }

  /** Whether a page is taken from those that can be had when a sequence adopts it. */
  isIdle(page: number): boolean {
    return this.#idle.has(page);
  }

  /**
   * Makes room for `length` tokens that may be written to from `sequence.length` on.
   * @returns false, and nothing is changed, where there are not enough pages.
   */
  reserve(sequence: PagedSequence, length: number): boolean {
    const missing = Math.max(0, this.pagesFor(length) - sequence.pages.length);
    const tail = Math.floor(sequence.length / this.pageTokens);
    const isShared =
      length > sequence.length &&
      tail < sequence.pages.length &&
      this.#users[sequence.pages[tail]!]! > 1;
    if (missing + Number(isShared) > this.available) return false;
    if (isShared) {
      const own = this.#take();
      const held = sequence.length % this.pageTokens;
      if (held > 0) {
        this.#copy(sequence.pages[tail]!, own);
        this.#copies++;
      }
      this.#leave(sequence.pages[tail]!);
      sequence.pages[tail] = own;
    }
    for (let i = 0; i < missing; i++) sequence.pages.push(this.#take());
    return true;
  }

  /**
   * Appends the first `count` of T new tokens of a row.
   * @param present keys and values of layer after layer, (rows, Hkv, T, D) each
   * @throws StateError without room: `reserve` was not asked.
   */
  write(sequence: PagedSequence, present: readonly Tensor[], row: number, count: number): void {
    if (this.pagesFor(sequence.length + count) > sequence.pages.length) {
      throw new StateError(
        `cache: ${count} tokens after ${sequence.length} need ${this.pagesFor(sequence.length + count)} pages, the sequence has ${sequence.pages.length} — reserve them first.`,
      );
    }
    const [heads, size, perPage] = [this.#heads, this.#headDim, this.pageTokens];
    const length = present[0]!.shape[2]!;
    for (let done = 0; done < count; ) {
      const at = (sequence.length + done) % perPage;
      const part = Math.min(count - done, perPage - at);
      const page = sequence.pages[Math.floor((sequence.length + done) / perPage)]!;
      this.#isDirty[page] = 1;
      for (let pool = 0; pool < present.length; pool++) {
        const from = present[pool]!.data as Float32Array;
        const to = this.pools[pool]!.data;
        for (let head = 0; head < heads; head++) {
          const source = ((row * heads + head) * length + done) * size;
          const target = ((page * heads + head) * perPage + at) * size;
          // A loop is faster than a view for the one token of a step.
          if (part === 1) for (let i = 0; i < size; i++) to[target + i] = from[source + i]!;
          else to.set(from.subarray(source, source + part * size), target);
        }
      }
      done += part;
    }
    sequence.length += count;
  }

  /**
   * Lets others find the sequence's full pages. Where the cache has a page of the same content, it takes the
   * place of the sequence's own.
   * @param tokens of the sequence
   * @param prompt as in `adopt`
   */
  publish(sequence: PagedSequence, tokens: Int32Array, prompt: number): void {
    const full = Math.floor(sequence.length / this.pageTokens);
    for (; sequence.known < full; sequence.known++) {
      const index = sequence.known;
      const isMade = (index + 1) * this.pageTokens > prompt;
      const key = this.#key(tokens, index, isMade ? prompt : 0);
      let entry = this.#prefixes.find(sequence.chain, key);
      if (entry) this.#place(sequence, index, entry.page);
      else {
        const page = sequence.pages[index]!;
        entry = this.#prefixes.add(sequence.chain, sequence.root, key, page);
      }
      sequence.chain = entry.id;
    }
  }

  /** `follower` takes what `leader` holds beyond it; both have the same tokens and weights so far. */
  follow(follower: PagedSequence, leader: PagedSequence): void {
    this.#hitTokens += leader.length - follower.length;
    this.#share(leader, follower);
  }

  /** Gives all pages back; those that are known stay until their room is needed. */
  close(sequence: PagedSequence): void {
    // Ends before beginnings: a page without the one before it would not be found.
    for (const page of sequence.pages.reverse()) this.#leave(page);
    sequence.pages.length = 0;
    sequence.length = 0;
    sequence.known = 0;
    sequence.chain = sequence.root;
  }

  /** Forgets prefixes of weights that are no more; sequences that use them keep them. */
  forget(root: number): void {
    for (const page of [...this.#idle]) {
      if (this.#prefixes.of(page)!.root === root) this.#drop(page);
    }
  }

  #share(from: PagedSequence, to: PagedSequence): void {
    const count = this.pagesFor(from.length);
    for (let i = 0; i < count; i++) this.#place(to, i, from.pages[i]!);
    to.length = from.length;
    to.known = from.known;
    to.chain = from.chain;
  }

  /** Puts a page at a place of a sequence, for the one that is there. */
  #place(sequence: PagedSequence, index: number, page: number): void {
    const old = sequence.pages[index];
    if (old === page) return;
    this.#idle.delete(page);
    this.#users[page]!++;
    if (old !== undefined) this.#leave(old);
    sequence.pages[index] = page;
  }

  #leave(page: number): void {
    if (--this.#users[page]! > 0) return;
    if (this.#prefixes.of(page)) this.#idle.add(page);
    else this.#free.push(page);
  }

  /** A page that holds nothing, for one user. */
  #take(): number {
    if (this.#free.length === 0) {
      this.#drop(this.#idle.values().next().value!);
      this.#evictions++;
    }
    const page = this.#free.pop()!;
    this.#users[page] = 1;
    // What a broken model left, NaN, would reach all that attend to the page, mask or not.
    if (this.#isDirty[page]) {
      const size = this.#heads * this.pageTokens * this.#headDim;
      for (const { data } of this.pools) data.fill(0, page * size, (page + 1) * size);
      this.#isDirty[page] = 0;
    }
    return page;
  }

  #drop(page: number): void {
    this.#idle.delete(page);
    this.#prefixes.remove(page);
    this.#free.push(page);
  }

  #copy(from: number, to: number): void {
    const size = this.#heads * this.pageTokens * this.#headDim;
    for (const { data } of this.pools) data.copyWithin(to * size, from * size, (from + 1) * size);
    this.#isDirty[to] = 1;
  }
}
