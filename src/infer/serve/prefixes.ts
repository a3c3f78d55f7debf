/**
 * Which page of a cache holds what: pages by the content of all tokens up to their end.
 *
 * As in vLLM's automatic prefix caching (Kwon et al., "Efficient Memory Management for Large Language Model
 * Serving with PagedAttention", SOSP 2023, arXiv:2309.06180, §4.4) a page is known by its parent and its own
 * tokens. The hash only finds candidates; tokens and parent are compared, so that two texts are never
 * taken for one another.
 */

/** A page whose content is known. */
export interface PrefixEntry {
  /** Never given twice: the children of an entry that was removed are not found again. */
  readonly id: number;
  /** The entry of the page before it, or a root. */
  readonly parent: number;
  /** Whose keys and values: the root that the chain begins with. */
  readonly root: number;
  readonly tokens: Int32Array;
  readonly page: number;
  readonly hash: number;
}

/** FNV-1a over the parent's id and the tokens. */
function hashOf(parent: number, tokens: Int32Array): number {
  let hash = Math.imul(0x811c9dc5 ^ parent, 0x01000193);
  for (let i = 0; i < tokens.length; i++) hash = Math.imul(hash ^ tokens[i]!, 0x01000193);
  return hash >>> 0;
}

function sameTokens(a: Int32Array, b: Int32Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

export class PrefixIndex {
  readonly #byHash: Map<number, PrefixEntry[]> = new Map();
  readonly #byPage: Map<number, PrefixEntry> = new Map();
  #nextId = 0;

  /** The start of chains whose pages only their owner shares: one number for each owner. */
  newRoot(): number {
    return this.#nextId++;
  }

  get size(): number {
    return this.#byPage.size;
  }

  find(parent: number, tokens: Int32Array): PrefixEntry | undefined {
    return this.#byHash
      .get(hashOf(parent, tokens))
      ?.find((entry) => entry.parent === parent && sameTokens(entry.tokens, tokens));
  }

  /** Notes what a page holds; `tokens` are copied. */
  add(parent: number, root: number, tokens: Int32Array, page: number): PrefixEntry {
    const hash = hashOf(parent, tokens);
    const entry = { id: this.#nextId++, parent, root, tokens: tokens.slice(), page, hash };
    const bucket = this.#byHash.get(hash);
    if (bucket) bucket.push(entry);
    else this.#byHash.set(hash, [entry]);
    this.#byPage.set(page, entry);
    return entry;
  }

  /** What is known of a page. */
  of(page: number): PrefixEntry | undefined {
    return this.#byPage.get(page);
  }

  /** Forgets what a page holds. */
  remove(page: number): void {
    const entry = this.#byPage.get(page);
    if (!entry) return;
    this.#byPage.delete(page);
    const rest = this.#byHash.get(entry.hash)!.filter((other) => other !== entry);
    if (rest.length > 0) this.#byHash.set(entry.hash, rest);
    else this.#byHash.delete(entry.hash);
  }
}
