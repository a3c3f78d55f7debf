/** Which parts of prompts are read next. Prompts are cut where pages end, so that a cut never depends on others. */
import type { PagedCache } from "./pages.ts";
import { passLength } from "./program.ts";
import type { Stream } from "./stream.ts";

/** A part of a prompt that is to be read. */
export interface Chunk {
  readonly stream: Stream;
  readonly from: number;
  readonly count: number;
  /** Requests that wait for the same tokens after the same ones: they take what this one gives. */
  readonly followers: Stream[];
}

/**
 * The next chunks of one length: that of the first request that reads, and of others as the budget allows.
 * @param running in the order in which they are served
 * @param taken requests that had their part of this turn; those that get one now are added
 * @param budget tokens, padding among them; the first chunk is given whatever it takes
 * @param onFound told of tokens that a request took from the cache
 */
export function nextChunks(
  running: readonly Stream[],
  taken: Set<Stream>,
  budget: number,
  cache: PagedCache,
  onFound: (stream: Stream, tokens: number) => void,
): Chunk[] {
  const chunks: Chunk[] = [];
  for (const stream of running) {
    const sequence = stream.cache!;
    if (stream.isCancelled || taken.has(stream) || !stream.isReading) continue;
    const { tokens, promptLength } = stream;
    onFound(stream, cache.adopt(sequence, tokens, promptLength - 1, promptLength));
    const from = sequence.length;
    const count = Math.min(cache.pageTokens, promptLength - from);
    const leader = chunks.find(
      (chunk) =>
        chunk.count === count &&
        chunk.stream.cache!.chain === sequence.chain &&
        isSame(chunk.stream.tokens, tokens, from, count),
    );
    if (leader) {
      leader.followers.push(stream);
      taken.add(stream);
      continue;
    }
    const length = passLength(count);
    const isFirst = chunks.length === 0;
    if (!isFirst && length !== passLength(chunks[0]!.count)) continue;
    if (!isFirst && (chunks.length + 1) * length > budget) continue;
    chunks.push({ stream, from, count, followers: [] });
    taken.add(stream);
  }
  return chunks;
}

function isSame(a: Int32Array, b: Int32Array, from: number, count: number): boolean {
  for (let i = from; i < from + count; i++) if (a[i] !== b[i]) return false;
  return true;
}
