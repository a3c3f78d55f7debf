/**
 * A 64-bit hash of data as it streams, to tell on resume whether it is the same data: two 32-bit
 * MurmurHash3 states (Austin Appleby, public domain) of different seeds. It guards against accidents,
 * not against forgery; WebCrypto's SHA-256 takes only whole buffers, so it cannot follow a stream.
 */
import type { Example } from "./example.ts";

export class DataHash {
  #a = 0x9747b28c | 0;
  #b = 0x5bd1e995 | 0;
  #count = 0;

  word(value: number): void {
    let k = Math.imul(value, 0xcc9e2d51);
    k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
    let a = this.#a ^ k;
    a = (a << 13) | (a >>> 19);
    this.#a = (Math.imul(a, 5) + 0xe6546b64) | 0;
    // The second state mixes with the other pair of constants of the 128-bit form.
    let m = Math.imul(value, 0x239b961b);
    m = Math.imul((m << 16) | (m >>> 16), 0xab0e9789 | 0);
    let b = this.#b ^ m;
    b = (b << 17) | (b >>> 15);
    this.#b = (Math.imul(b, 5) + 0x561ccd1b) | 0;
    this.#count++;
  }

  words(values: Int32Array): void {
    for (let i = 0; i < values.length; i++) this.word(values[i]!);
  }

  /** Bytes with their number, so that borders between calls count. */
  bytes(values: Uint8Array): void {
    this.word(values.length);
    const whole = values.length & ~3;
    for (let i = 0; i < whole; i += 4) {
      this.word(
        values[i]! | (values[i + 1]! << 8) | (values[i + 2]! << 16) | (values[i + 3]! << 24),
      );
    }
    let rest = 0;
    for (let i = whole; i < values.length; i++) rest |= values[i]! << (8 * (i - whole));
    if (whole < values.length) this.word(rest);
  }

  text(value: string): void {
    this.bytes(new TextEncoder().encode(value));
  }

  example({ ids, mask, segments, isGood }: Example): void {
    this.word(ids.length);
    this.words(ids);
    this.bytes(mask);
    if (segments) this.words(segments);
    if (isGood) this.word(1);
  }

  /** 16 hexadecimal digits; more may be added afterwards. */
  digest(): string {
    const end = (h: number): string => {
      let x = h ^ this.#count;
      x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
      x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
      return ((x ^ (x >>> 16)) >>> 0).toString(16).padStart(8, "0");
    };
    return end(this.#a) + end(this.#b);
  }
}
