/**
 * `sample` for large vocabularies, many times a step: the same choice by the same random number, in less time.
 *
 * `sample` sorts what filters keep out of all tokens. Here one pass puts the tokens into classes by their
 * distance from the likeliest one, with the mass and the number of each class; the classes that can hold
 * what the filters keep are few tokens, and `sample` chooses among these alone.
 */
import type { Rng } from "../../tensor/rng.ts";
import { argMaxOf, type SampleOptions, sample, type TokenHistory } from "../sample.ts";

/** Classes of half a nat; the last one takes all that is further. */
const classes = 64;
const perNat = 2;

/** Draws of one vocabulary; it only keeps memory. */
export class Drawer {
  readonly #weights: Float64Array<ArrayBuffer>;
  readonly #classOf: Uint8Array<ArrayBuffer>;
  readonly #mass: Float64Array<ArrayBuffer> = new Float64Array(classes);
  readonly #count: Int32Array<ArrayBuffer> = new Int32Array(classes);

  constructor(vocabSize: number) {
    this.#weights = new Float64Array(vocabSize);
    this.#classOf = new Uint8Array(vocabSize);
  }

  /** As `sample`. Where top-p filters alone, its border may fall otherwise within rounding, 1e-15 of the mass. */
  draw(
    logits: Float32Array,
    options: SampleOptions,
    rng: Rng,
    history: TokenHistory | undefined,
  ): number {
    const { temperature = 0, topK, topP = 1, minP = 0, typicalP = 1 } = options;
    const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
    const isPlain = repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0;
    const best = argMaxOf(logits);
    const top = logits[best]!;
    // What is left over here is slow or broken: `sample` knows what to say.
    if (!isPlain || typicalP < 1 || !Number.isFinite(top)) {
      return sample(logits, options, rng, history);
    }
    if (temperature === 0) return best;
    const isFiltered = topK !== undefined || topP < 1 || minP > 0;
    const total = this.#weigh(logits, top, temperature, isFiltered);
    if (!(total > 0 && total < Infinity)) return sample(logits, options, rng, history);
    if (!isFiltered) return this.#drawAll(logits, total, rng);

    let last = 0;
    let mass = this.#mass[0]!;
    let count = this.#count[0]!;
    const isEnough = (): boolean => {
      if (topK !== undefined) return count >= topK;
      // A hair more, since sums in another order differ in their last bits.
      if (topP < 1) return mass >= topP * total * (1 + 1e-12);
      return last / perNat > -Math.log(minP) + 1;
    };
    while (last < classes - 1 && !isEnough()) {
      last++;
      mass += this.#mass[last]!;
      count += this.#count[last]!;
    }
    if (count === logits.length) return sample(logits, options, rng, history);
    const ids = new Int32Array(count);
    // `sample` puts what it keeps of some into order, and leaves all as they are: one more stands for the rest.
    const kept = new Float32Array(count + 1).fill(-Infinity);
    for (let id = 0, at = 0; at < count; id++) {
      if (this.#classOf[id]! > last) continue;
      ids[at] = id;
      kept[at++] = logits[id]!;
    }
    const share = topK === undefined && topP < 1 ? Math.min(1, (topP * total) / mass) : topP;
    return ids[sample(kept, { ...options, topP: share }, rng)]!;
  }

  /** Weights of all tokens, and their classes if they are wanted; the sum. */
  #weigh(logits: Float32Array, top: number, temperature: number, withClasses: boolean): number {
    const [weights, classOf, mass, count] = [this.#weights, this.#classOf, this.#mass, this.#count];
    mass.fill(0);
    count.fill(0);
    let total = 0;
    for (let id = 0; id < logits.length; id++) {
      const distance = (logits[id]! - top) / temperature;
      const weight = Math.exp(distance);
      weights[id] = weight;
      total += weight;
      if (!withClasses) continue;
      const own = Math.min(classes - 1, Math.floor(-distance * perNat));
      classOf[id] = own;
      mass[own]! += weight;
      count[own]!++;
    }
    return total;
  }

  /** The token whose share of all holds the number that is drawn. */
  #drawAll(logits: Float32Array, total: number, rng: Rng): number {
    let left = rng.uniform();
    let last = logits.length - 1;
    while (logits[last] === -Infinity) last--;
    for (let id = 0; id < last; id++) {
      const share = this.#weights[id]! / total;
      if (left < share) return id;
      left -= share;
    }
    return last;
  }
}
