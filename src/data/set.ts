/** Encoded examples by number, wherever they lie. */
import { OptionError } from "../errors.ts";
import { DataHash } from "./data-hash.ts";
import type { Example } from "./example.ts";

export interface ExampleSet {
  readonly count: number;
  /** Tokens of each example. */
  readonly lengths: Int32Array;
  /** Tokens of all. */
  readonly tokens: number;
  /** Tokens that carry loss. */
  readonly lossTokens: number;
  /** Of all ids, masks and borders in order: equal hashes mean equal data. 16 hexadecimal digits. */
  readonly dataHash: string;
  /**
   * Examples in the order asked for.
   * @throws OptionError for an index outside the set.
   */
  get(indices: ArrayLike<number>): Promise<readonly Example[]>;
  /** Lets go of the file, where there is one. */
  close(): Promise<void>;
}

export function checkIndex(index: number, count: number): void {
  if (Number.isInteger(index) && index >= 0 && index < count) return;
  throw new OptionError(`examples: index ${index} is outside the set of ${count}.`);
}

export function countLoss(mask: Uint8Array): number {
  let count = 0;
  for (let i = 0; i < mask.length; i++) count += mask[i]!;
  return count;
}

/** A set in memory; it holds the list, so do not change it. */
export function memorySet(examples: readonly Example[]): ExampleSet {
  const hash = new DataHash();
  let lossTokens = 0;
  let tokens = 0;
  for (const example of examples) {
    hash.example(example);
    lossTokens += countLoss(example.mask);
    tokens += example.ids.length;
  }
  return {
    count: examples.length,
    lengths: Int32Array.from(examples, ({ ids }) => ids.length),
    tokens,
    lossTokens,
    dataHash: hash.digest(),
    async get(indices) {
      return Array.from(indices, (index) => {
        checkIndex(index, examples.length);
        return examples[index]!;
      });
    },
    async close() {},
  };
}
