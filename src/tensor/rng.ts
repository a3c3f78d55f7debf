/**
 * Counter-based random numbers: the bits depend on (key, counter) alone, so a stream can be resumed,
 * split by name or recomputed anywhere.
 *
 * Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011: Philox4x32-10.
 */
const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

function mulHigh(a: number, b: number): number {
  const aHigh = a >>> 16;
  const aLow = a & 0xffff;
  const bHigh = b >>> 16;
  const bLow = b & 0xffff;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const other = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(other / 65536)) >>> 0;
}

/** Ten rounds of Philox4x32 on the counter; writes four 32-bit words into `out`. */
export function philox(
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  key0: number,
  key1: number,
  out: Uint32Array,
): void {
  let k0 = key0;
  let k1 = key1;
  let x0 = c0;
  let x1 = c1;
  let x2 = c2;
  let x3 = c3;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, x0);
    const low0 = Math.imul(M0, x0) >>> 0;
    const high1 = mulHigh(M1, x2);
    const low1 = Math.imul(M1, x2) >>> 0;
    x0 = (high1 ^ x1 ^ k0) >>> 0;
    x1 = low1;
    x2 = (high0 ^ x3 ^ k1) >>> 0;
    x3 = low0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[0] = x0;
  out[1] = x1;
  out[2] = x2;
  out[3] = x3;
}

/** FNV-1a over UTF-16 units: gives names a number. */
function hashName(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** A position in a stream: enough to go on with the same bits. */
export interface RngState {
  readonly key: readonly [number, number];
  readonly counter: number;
}

export class Rng {
  #key0: number;
  #key1: number;
  #counter: number;
  readonly #words: Uint32Array = new Uint32Array(4);
  #left = 0;

  /** A stream for a whole number below 2^53. */
  constructor(seed: number, state?: RngState) {
    this.#key0 = state ? state.key[0] : seed >>> 0;
    this.#key1 = state ? state.key[1] : Math.floor(seed / 2 ** 32) >>> 0;
    this.#counter = state ? state.counter : 0;
  }

  static restore(state: RngState): Rng {
    return new Rng(0, state);
  }

  /** The state after the last whole block of four words; a partly used block is dropped. */
  get state(): RngState {
    return { key: [this.#key0, this.#key1], counter: this.#counter };
  }

  /** An independent stream for a name or number; does not advance this one. */
  fold(...path: readonly (string | number)[]): Rng {
    let key0 = this.#key0;
    let key1 = this.#key1;
    const words = new Uint32Array(4);
    for (const part of path) {
      const value = typeof part === "number" ? part : hashName(part);
      const tag = typeof part === "number" ? 1 : 2;
      philox(value >>> 0, Math.floor(value / 2 ** 32) >>> 0, tag, 0x464f4c44, key0, key1, words);
      key0 = words[0]!;
      key1 = words[1]!;
    }
    return new Rng(0, { key: [key0, key1], counter: 0 });
  }

  /** 32 random bits. */
  bits(): number {
    if (this.#left === 0) {
      const high = Math.floor(this.#counter / 2 ** 32) >>> 0;
      philox(this.#counter >>> 0, high, 0, 0, this.#key0, this.#key1, this.#words);
      this.#counter++;
      this.#left = 4;
    }
    return this.#words[4 - this.#left--]!;
  }

  /** Uniform in [0, 1) with 24 bits, exactly representable in float32. */
  uniform(): number {
    return (this.bits() >>> 8) / 2 ** 24;
  }

  /** A whole number in [0, below), without bias. */
  integer(below: number): number {
    const limit = 2 ** 32 - (2 ** 32 % below);
    let bits = this.bits();
    while (bits >= limit) bits = this.bits();
    return bits % below;
  }

  /** Standard normal (Box–Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log((this.bits() + 1) / 2 ** 32));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  uniforms(size: number): Float32Array<ArrayBuffer> {
    const values = new Float32Array(size);
    for (let i = 0; i < size; i++) values[i] = this.uniform();
    return values;
  }

  normals(size: number, scale = 1): Float32Array<ArrayBuffer> {
    const values = new Float32Array(size);
    for (let i = 0; i < size; i++) values[i] = scale * this.normal();
    return values;
  }

  /** 0 … size-1 in random order (Fisher–Yates). */
  permutation(size: number): Int32Array<ArrayBuffer> {
    const order = Int32Array.from({ length: size }, (_, i) => i);
    for (let i = size - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const held = order[i]!;
      order[i] = order[j]!;
      order[j] = held;
    }
    return order;
  }
}
