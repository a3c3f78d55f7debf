import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Tensor } from "../../tensor/tensor.ts";
import { PagedCache, type PagedSequence } from "./pages.ts";

const sizes = { nLayers: 2, nKvHeads: 2, headDim: 3 };
const pageTokens = 8;
const pageBytes = 2 * 2 * 2 * pageTokens * 3 * 4;

function cacheOf(pages: number): PagedCache {
  return new PagedCache(sizes, { pageTokens, bytes: pages * pageBytes });
}

/** What a model would give for tokens: numbers that say layer, head, token and dimension. */
function presentOf(tokens: readonly number[]): Tensor[] {
  return Array.from({ length: 4 }, (_, pool) => {
    const data = new Float32Array(2 * tokens.length * 3);
    for (let head = 0; head < 2; head++) {
      tokens.forEach((token, t) => {
        for (let i = 0; i < 3; i++) {
          data[(head * tokens.length + t) * 3 + i] = numberAt(pool, head, token, i);
        }
      });
    }
    return new Tensor("float32", [1, 2, tokens.length, 3], data);
  });
}

const numberAt = (pool: number, head: number, token: number, i: number): number =>
  ((token * 4 + pool) * 2 + head) * 3 + i;

/** Whether the pages of a sequence hold its tokens, in every pool and head. */
function expectHolds(cache: PagedCache, sequence: PagedSequence, tokens: readonly number[]): void {
  expect(sequence.length).toBe(tokens.length);
  tokens.forEach((token, t) => {
    const page = sequence.pages[Math.floor(t / pageTokens)]!;
    cache.pools.forEach(({ data }, pool) => {
      for (let head = 0; head < 2; head++) {
        for (let i = 0; i < 3; i++) {
          const at = ((page * 2 + head) * pageTokens + (t % pageTokens)) * 3 + i;
          if (data[at] !== numberAt(pool, head, token, i)) {
            throw new Error(`token ${t}, pool ${pool}: ${data[at]}`);
          }
        }
      }
    });
  });
}

/** Appends tokens, if there is room. */
function append(cache: PagedCache, sequence: PagedSequence, tokens: readonly number[]): boolean {
  if (!cache.reserve(sequence, sequence.length + tokens.length)) return false;
  cache.write(sequence, presentOf(tokens), 0, tokens.length);
  return true;
}

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

describe("PagedCache", () => {
  it("keeps full pages of a prompt for the next one, and only under the same weights", () => {
    const cache = cacheOf(8);
    const base = cache.newRoot();
    const tokens = Int32Array.from(range(10, 20));
    const first = cache.open(base);
    expect(append(cache, first, [...tokens])).toBe(true);
    cache.publish(first, tokens, 20);
    cache.close(first);
    expect(cache.stats).toMatchObject({ used: 0, kept: 2, free: 6 });

    const again = cache.open(base);
    expect(cache.peek(base, tokens, 19, 20)).toHaveLength(2);
    expect(cache.adopt(again, tokens, 19, 20)).toBe(16);
    expectHolds(cache, again, range(10, 16));
    const other = cache.open(cache.newRoot());
    expect(cache.adopt(other, tokens, 19, 20)).toBe(0);
    const later = cache.open(base);
    expect(cache.adopt(later, Int32Array.from([...range(10, 8), ...range(0, 9)]), 16, 17)).toBe(8);
    // A page is read only where all of it may be taken.
    expect(cache.adopt(cache.open(base), tokens, 15, 20)).toBe(8);
    expect(cache.stats.hitTokens).toBe(16 + 8 + 8);
  });

  it("tells pages that were made token by token from those that were read", () => {
    const cache = cacheOf(8);
    const base = cache.newRoot();
    const tokens = Int32Array.from(range(0, 16));
    const made = cache.open(base);
    append(cache, made, [...tokens]);
    // A prompt of 10 tokens: the second page holds two of it and six that were made.
    cache.publish(made, tokens, 10);
    cache.close(made);
    expect(cache.adopt(cache.open(base), tokens, 16, 16)).toBe(8);
    expect(cache.adopt(cache.open(base), tokens, 16, 11)).toBe(8);
    expect(cache.adopt(cache.open(base), tokens, 16, 10)).toBe(16);
  });

  it("copies a page that two branches share before one of them writes", () => {
    const cache = cacheOf(8);
    const left = cache.open(cache.newRoot());
    append(cache, left, range(0, 11));
    const right = cache.fork(left);
    expect(right.pages).toEqual(left.pages);
    expect(cache.stats.used).toBe(2);
    append(cache, left, [100]);
    append(cache, right, [200]);
    expect(cache.stats).toMatchObject({ used: 3, copies: 1 });
    expectHolds(cache, left, [...range(0, 11), 100]);
    expectHolds(cache, right, [...range(0, 11), 200]);
    expect(cache.usersOf(left.pages[0]!)).toBe(2);
  });

  it("takes the page of the same content that another one published first", () => {
    const cache = cacheOf(8);
    const base = cache.newRoot();
    const tokens = Int32Array.from(range(0, 8));
    const [a, b] = [cache.open(base), cache.open(base)];
    append(cache, a, [...tokens]);
    append(cache, b, [...tokens]);
    cache.publish(a, tokens, 9);
    cache.publish(b, tokens, 9);
    expect(b.pages).toEqual(a.pages);
    expect(cache.stats.used).toBe(1);
  });

  it("gives up prefixes that were unused for longest, ends before beginnings", () => {
    const cache = cacheOf(4);
    const base = cache.newRoot();
    const old = Int32Array.from(range(0, 16));
    const fresh = Int32Array.from(range(50, 8));
    for (const tokens of [old, fresh]) {
      const sequence = cache.open(base);
      append(cache, sequence, [...tokens]);
      cache.publish(sequence, tokens, 99);
      cache.close(sequence);
    }
    const eager = cache.open(base);
    expect(append(cache, eager, range(70, 16))).toBe(true);
    expect(cache.stats.evictions).toBe(1);
    expect(cache.peek(base, old, 16, 99)).toHaveLength(1);
    expect(cache.peek(base, fresh, 8, 99)).toHaveLength(1);
  });

  it("changes nothing where there is no room, and never passes its budget", () => {
    const cache = cacheOf(3);
    const [a, b] = [cache.open(0), cache.open(0)];
    append(cache, a, range(0, 9));
    expect(cache.reserve(b, 9)).toBe(false);
    expect(b.pages).toEqual([]);
    expect(cache.available).toBe(1);
    expect(cache.reserve(b, 8)).toBe(true);
    expect(() => cache.write(a, presentOf(range(0, 8)), 0, 8)).toThrow(
      "cache: 8 tokens after 9 need 3 pages, the sequence has 2 — reserve them first.",
    );
  });

  it("leaves nothing of a former sequence in a page", () => {
    const cache = cacheOf(2);
    const broken = cache.open(0);
    append(cache, broken, [1]);
    for (const { data } of cache.pools) data[(broken.pages[0]! * 2 + 1) * pageTokens * 3] = NaN;
    cache.close(broken);
    const next = cache.open(0);
    cache.reserve(next, 16);
    expect(cache.pools.every(({ data }) => data.every((x) => x === 0))).toBe(true);
  });

  it("forgets the prefixes of weights that are no more", () => {
    const cache = cacheOf(4);
    const [base, gone] = [cache.newRoot(), cache.newRoot()];
    const tokens = Int32Array.from(range(0, 8));
    for (const root of [base, gone]) {
      const sequence = cache.open(root);
      append(cache, sequence, [...tokens]);
      cache.publish(sequence, tokens, 9);
      cache.close(sequence);
    }
    cache.forget(gone);
    expect(cache.stats).toMatchObject({ kept: 1, free: 3 });
    expect(cache.peek(base, tokens, 8, 9)).toHaveLength(1);
  });

  it("says what is wrong with its sizes", () => {
    expect(() => new PagedCache(sizes, { pageTokens: 12, bytes: 1e6 })).toThrow(
      "cache: pageTokens must be a power of two from 8 to 256, got 12.",
    );
    expect(() => new PagedCache(sizes, { pageTokens: 8, bytes: 100 })).toThrow(
      `cache: bytes must be from ${2 * pageBytes}, two pages of 8 tokens, to 1099511627776, got 100.`,
    );
  });

  it("holds what was written, whatever sequences do (property)", () => {
    const step = fc.record({
      kind: fc.constantFrom("open", "append", "append", "fork", "publish", "close"),
      who: fc.nat(7),
      count: fc.integer({ min: 1, max: 12 }),
      text: fc.nat(2),
    });
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 60, size: "max" }),
        fc.integer({ min: 2, max: 9 }),
        (steps, n) => {
          const cache = cacheOf(n);
          const base = cache.newRoot();
          let unique = 0;
          const live: { sequence: PagedSequence; tokens: number[]; text: number }[] = [];
          for (const { kind, who, count, text } of steps) {
            const one = live[who % Math.max(1, live.length)];
            if (kind === "open") {
              const tokens = Int32Array.from(range(text * 100, 24));
              const sequence = cache.open(base);
              const found = cache.adopt(sequence, tokens, 8 * (count % 4), 99);
              live.push({ sequence, tokens: [...tokens.subarray(0, found)], text });
            } else if (!one) continue;
            else if (kind === "append") {
              const fresh = range(one.text * 100 + one.tokens.length, count);
              // Most texts go their own way, so that equal places hold different tokens.
              if (text > 0) fresh[0] = 1000 + unique++;
              if (append(cache, one.sequence, fresh)) one.tokens.push(...fresh);
            } else if (kind === "fork") {
              live.push({ ...one, tokens: [...one.tokens], sequence: cache.fork(one.sequence) });
            } else if (kind === "publish") {
              cache.publish(one.sequence, Int32Array.from(one.tokens), 99);
            } else {
              cache.close(one.sequence);
              live.splice(live.indexOf(one), 1);
            }
            for (const { sequence, tokens } of live) expectHolds(cache, sequence, tokens);
            const users = new Map<number, number>();
            for (const { sequence } of live) {
              for (const page of sequence.pages) users.set(page, (users.get(page) ?? 0) + 1);
            }
            expect(users.has(0)).toBe(false);
            for (const [page, times] of users) expect(cache.usersOf(page)).toBe(times);
            const { used, kept, free } = cache.stats;
            expect(used).toBe(users.size);
            expect(used + kept + free).toBe(n);
          }
          for (const { sequence } of live) cache.close(sequence);
          expect(cache.stats.used).toBe(0);
        },
      ),
      { numRuns: 150, seed: 7 },
    );
  });
});
