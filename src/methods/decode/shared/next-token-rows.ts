/** Sparse distributions over next tokens by context, in bounded memory. */
import { OptionError } from "../../../errors.ts";

/** Places that a context may take: its set. Of a full one the row that was written longest ago makes room. */
const ways = 8;

/** Bytes of a place beside its tokens and probabilities: context, moment of writing, size. */
const placeBytes = 13;

export interface RowsOptions {
  /** Tokens of a row at most: the likeliest. */
  readonly width: number;
  /** Memory for all rows at most; it grows up to there by doubling. */
  readonly maxBytes: number;
}

/**
 * A table context → (token, probability) pairs in falling order, which sum to 1. Contexts are whole numbers
 * below 2^53. Nothing decays but by being written: a rare context stays as it is until its place is needed.
 */
export class NextTokenRows {
  readonly width: number;
  readonly #maxSets: number;
  #sets = 0;
  #contexts: Float64Array = new Float64Array(0);
  #written: Uint32Array = new Uint32Array(0);
  #sizes: Uint8Array = new Uint8Array(0);
  #tokens: Int32Array = new Int32Array(0);
  #shares: Float32Array = new Float32Array(0);
  #writes = 0;
  #rows = 0;
  #dropped = 0;

  /** @throws OptionError when not even one set of rows fits. */
  constructor({ width, maxBytes }: RowsOptions) {
    this.width = width;
    const most = Math.floor(maxBytes / (ways * (placeBytes + 8 * width)));
    if (most < 1) {
      throw new OptionError(
        `table: ${maxBytes} bytes do not hold ${ways} rows of ${width} tokens — allow more memory.`,
      );
    }
    this.#maxSets = 2 ** Math.floor(Math.log2(most));
    this.#allocate(Math.min(64, this.#maxSets));
  }

  get rows(): number {
    return this.#rows;
  }

  /** Rows that made room for others. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Memory of all places, taken or not. */
  get bytes(): number {
    return this.#sets * ways * (placeBytes + 8 * this.width);
  }

  /** Where a context's row is, or -1. */
  find(context: number): number {
    const first = this.#setOf(context) * ways;
    for (let place = first; place < first + ways; place++) {
      if (this.#contexts[place] === context) return place;
    }
    return -1;
  }

  sizeAt(place: number): number {
    return this.#sizes[place]!;
  }

  /** The i-th likeliest token of a row. */
  tokenAt(place: number, i: number): number {
    return this.#tokens[place * this.width + i]!;
  }

  shareAt(place: number, i: number): number {
    return this.#shares[place * this.width + i]!;
  }

  /**
   * Writes a context's row: the `width` largest weights, divided by their sum. Weights that are not above 0
   * are left out; without any nothing is written.
   */
  write(context: number, tokens: ArrayLike<number>, weights: ArrayLike<number>): void {
    const order = Array.from({ length: tokens.length }, (_, i) => i)
      .filter((i) => weights[i]! > 0)
      .sort((a, b) => weights[b]! - weights[a]! || tokens[a]! - tokens[b]!)
      .slice(0, this.width);
    if (order.length === 0) return;
    const place = this.#placeFor(context);
    const sum = order.reduce((total, i) => total + weights[i]!, 0);
    order.forEach((i, k) => {
      this.#tokens[place * this.width + k] = tokens[i]!;
      this.#shares[place * this.width + k] = weights[i]! / sum;
    });
    this.#sizes[place] = order.length;
    this.#written[place] = ++this.#writes;
  }

  /** (1 - rate) of the row as it is and `rate` of a distribution; all of it where there is no row. */
  blend(context: number, tokens: ArrayLike<number>, shares: ArrayLike<number>, rate: number): void {
    const place = this.find(context);
    if (place < 0) {
      this.write(context, tokens, shares);
      return;
    }
    const weights = new Map<number, number>();
    for (let i = 0; i < this.sizeAt(place); i++) {
      weights.set(this.tokenAt(place, i), (1 - rate) * this.shareAt(place, i));
    }
    for (let i = 0; i < tokens.length; i++) {
      weights.set(tokens[i]!, (weights.get(tokens[i]!) ?? 0) + rate * shares[i]!);
    }
    this.write(context, [...weights.keys()], [...weights.values()]);
  }

  #setOf(context: number): number {
    let hash = Math.imul(Math.floor(context / 2 ** 32) | 0, 0x9e3779b1) ^ (context >>> 0);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return ((hash ^ (hash >>> 16)) >>> 0) & (this.#sets - 1);
  }

  /** The context's place, a free one, or that of the row written longest ago in a table that is full. */
  #placeFor(context: number): number {
    const held = this.find(context);
    if (held >= 0) return held;
    while (true) {
      const first = this.#setOf(context) * ways;
      let oldest = first;
      for (let place = first; place < first + ways; place++) {
        if (this.#sizes[place] === 0) {
          this.#rows++;
          this.#contexts[place] = context;
          return place;
        }
        if (this.#written[place]! < this.#written[oldest]!) oldest = place;
      }
      if (this.#sets < this.#maxSets) {
        this.#grow();
        continue;
      }
      this.#dropped++;
      this.#contexts[oldest] = context;
      return oldest;
    }
  }

  #allocate(sets: number): void {
    const places = sets * ways;
    this.#sets = sets;
    this.#contexts = new Float64Array(places).fill(-1);
    this.#written = new Uint32Array(places);
    this.#sizes = new Uint8Array(places);
    this.#tokens = new Int32Array(places * this.width);
    this.#shares = new Float32Array(places * this.width);
  }

  /** Twice the sets: each one's rows go to two, so that all find a place. */
  #grow(): void {
    const [contexts, written, sizes] = [this.#contexts, this.#written, this.#sizes];
    const [tokens, shares, width] = [this.#tokens, this.#shares, this.width];
    this.#allocate(2 * this.#sets);
    for (let from = 0; from < contexts.length; from++) {
      if (sizes[from] === 0) continue;
      let to = this.#setOf(contexts[from]!) * ways;
      while (this.#sizes[to] !== 0) to++;
      this.#contexts[to] = contexts[from]!;
      this.#written[to] = written[from]!;
      this.#sizes[to] = sizes[from]!;
      this.#tokens.set(tokens.subarray(from * width, (from + 1) * width), to * width);
      this.#shares.set(shares.subarray(from * width, (from + 1) * width), to * width);
    }
  }
}
