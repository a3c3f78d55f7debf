/** Encoded examples by number, wherever they lie. */
import { OptionError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";
import { DataHash } from "./data-hash.ts";
import type { Example } from "./example.ts";

/** Examples of a kind by number. */
export interface ExampleSet<E = Example> {
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
   * @param rng of a step in training: what random changes to examples are drawn from. Default: none are made.
   * @throws OptionError for an index outside the set.
   */
  get(indices: ArrayLike<number>, rng?: Rng): Promise<readonly E[]>;
  /**
   * The batches of an epoch, where the set decides on them; by the stream alone. Default: near lengths
   * together, in random order.
   */
  batches?(batchSize: number, rng: Rng): readonly (readonly number[])[];
  /** Lets go of the file, where there is one. */
  close(): Promise<void>;
}

/** A set of examples whose kind is settled elsewhere. */
// biome-ignore lint/suspicious/noExplicitAny: the objective that reads the examples says what they are.
export type AnyExampleSet = ExampleSet<any>;

/** Two answers to one prompt; both begin with it, and carry loss on the answer alone. */
export interface Preference {
  readonly chosen: Example;
  readonly rejected: Example;
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

/**
 * Preferences of a set that holds their answers in turn: chosen, rejected, chosen, rejected. The length
 * of one is that of both answers together.
 * @throws OptionError when the set holds an odd number of answers.
 */
export function preferenceSet(answers: ExampleSet): ExampleSet<Preference> {
  if (answers.count % 2 !== 0) {
    throw new OptionError(
      `preferences: ${answers.count} answers make no pairs — give a chosen and a rejected one in turn.`,
    );
  }
  const count = answers.count / 2;
  const { tokens, lossTokens, dataHash } = answers;
  return {
    count,
    lengths: Int32Array.from(
      { length: count },
      (_, i) => answers.lengths[2 * i]! + answers.lengths[2 * i + 1]!,
    ),
    tokens,
    lossTokens,
    dataHash,
    async get(indices) {
      const both = Array.from(indices).flatMap((index) => {
        checkIndex(index, count);
        return [2 * index, 2 * index + 1];
      });
      const found = await answers.get(both);
      return Array.from(indices, (_, i) => ({
        chosen: found[2 * i]!,
        rejected: found[2 * i + 1]!,
      }));
    },
    close: () => answers.close(),
  };
}

/** A set of preferences in memory, as `encodePreferences` gives them. */
export function memoryPreferences({
  chosen,
  rejected,
}: {
  readonly chosen: readonly Example[];
  readonly rejected: readonly Example[];
}): ExampleSet<Preference> {
  if (chosen.length !== rejected.length) {
    throw new OptionError(
      `preferences: ${chosen.length} chosen and ${rejected.length} rejected answers — give one of each for every prompt.`,
    );
  }
  return preferenceSet(memorySet(chosen.flatMap((good, i) => [good, rejected[i]!])));
}
