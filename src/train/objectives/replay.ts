/**
 * Continued pre-training with replay: a share of every batch is text of the kind that the model knows, so
 * that it does not forget it.
 *
 * Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019, arXiv:1811.11682; Ibrahim et
 * al., "Simple and Scalable Strategies to Continually Pre-train Large Language Models", TMLR 2024,
 * arXiv:2403.08763 (5% replay suffices for related texts, 25% to 50% for far ones).
 *
 *   of each batch of B examples round(s B) are replayed, at least one and at most B - 1    s → share
 *
 * The objective stays the next token (`causalLm`); what is mixed is the data. Which replayed examples a
 * batch takes depends on the epoch's stream alone, so that a run which is taken up again takes the same.
 */
import { DataHash } from "../../data/data-hash.ts";
import { epochBatches } from "../../data/epochs.ts";
import { checkIndex, type ExampleSet } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";

export interface ReplayOptions {
  /** Share of every batch that is replayed, in (0, 1); default 0.05. */
  readonly share?: number;
}

/**
 * Own examples first, then those to replay. An epoch passes over all of its own once; with packing, where
 * rows are filled before batches are made, the whole set is an epoch.
 * @throws OptionError for a share outside its range, or without examples to replay.
 */
export function replaySet<E>(
  own: ExampleSet<E>,
  general: ExampleSet<E>,
  { share = 0.05 }: ReplayOptions = {},
): ExampleSet<E> {
  if (!(share > 0 && share < 1)) {
    throw new OptionError(`replay: share must be between 0 and 1, got ${share}.`);
  }
  if (general.count === 0) throw new OptionError("replay: there are no examples to replay.");
  const count = own.count + general.count;
  const lengths = new Int32Array(count);
  lengths.set(own.lengths);
  lengths.set(general.lengths, own.count);
  const hash = new DataHash();
  hash.text(`${own.dataHash} ${general.dataHash} ${share}`);
  return {
    count,
    lengths,
    tokens: own.tokens + general.tokens,
    lossTokens: own.lossTokens + general.lossTokens,
    dataHash: hash.digest(),
    batches(batchSize, rng) {
      if (batchSize < 2) {
        throw new OptionError("replay: a batch of one example has no room for a replayed one.");
      }
      const replayed = Math.min(batchSize - 1, Math.max(1, Math.round(share * batchSize)));
      // Drawn without repetition as long as there are fresh ones.
      let round = 0;
      let fresh: number[] = [];
      const draw = (): number => {
        if (fresh.length === 0) {
          fresh = [...rng.fold("replay", round++).permutation(general.count)];
        }
        return own.count + fresh.pop()!;
      };
      return epochBatches(own.lengths, batchSize - replayed, rng).map((batch) => [
        ...batch,
        ...Array.from({ length: replayed }, draw),
      ]);
    },
    async get(indices) {
      const all = Array.from(indices);
      for (const index of all) checkIndex(index, count);
      const isOwn = (index: number): boolean => index < own.count;
      const [mine, others] = [
        await own.get(all.filter(isOwn)),
        await general.get(all.filter((index) => !isOwn(index)).map((index) => index - own.count)),
      ];
      let [a, b] = [0, 0];
      return all.map((index) => (isOwn(index) ? mine[a++]! : others[b++]!));
    },
    async close() {
      await own.close();
      await general.close();
    },
  };
}
