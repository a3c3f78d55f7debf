/**
 * Which examples are held out: by a hash of their prompt, so that the order of the data does not
 * matter and equal prompts stay on one side.
 */
import { OptionError } from "../errors.ts";
import { promptText, type RawExample } from "./example.ts";

export interface SplitOptions {
  /** Share held out, in [0, 1]; default 0.1. Met on average, not exactly. */
  readonly share?: number;
  /** Most examples held out: those of the lowest hashes. Default: no limit. */
  readonly limit?: number;
}

export interface Split<T> {
  readonly train: readonly T[];
  readonly heldOut: readonly T[];
}

/** FNV-1a (Fowler, Noll, Vo) over UTF-16 units, as a number in [0, 1). */
export function splitHash(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0) / 2 ** 32;
}

/**
 * The bound below which a hash is held out. Examples of one hash go together, so a limit may leave
 * room that the next group does not fit.
 * @param hashes of all examples, in any order.
 * @throws OptionError for a share or limit outside its range.
 */
export function splitBound(hashes: ArrayLike<number>, options: SplitOptions = {}): number {
  const { share = 0.1, limit = Number.POSITIVE_INFINITY } = options;
  if (!(share >= 0 && share <= 1)) {
    throw new OptionError(`split: share must be from 0 to 1, got ${share}.`);
  }
  if (!(limit >= 0) || (limit !== Number.POSITIVE_INFINITY && !Number.isInteger(limit))) {
    throw new OptionError(`split: limit must be a whole number from 0, got ${limit}.`);
  }
  const candidates = Float64Array.from(hashes).filter((hash) => hash < share);
  if (candidates.length <= limit) return share;
  // The first that does not fit; those equal to it stay out with it.
  return candidates.sort()[limit]!;
}

/**
 * Splits examples; both sides keep their order.
 * @throws OptionError for a share or limit outside its range.
 */
export function splitByHash<T extends RawExample>(
  examples: readonly T[],
  options: SplitOptions = {},
): Split<T> {
  const hashes = Float64Array.from(examples, (example) => splitHash(promptText(example)));
  const bound = splitBound(hashes, options);
  return {
    train: examples.filter((_, i) => hashes[i]! >= bound),
    heldOut: examples.filter((_, i) => hashes[i]! < bound),
  };
}
