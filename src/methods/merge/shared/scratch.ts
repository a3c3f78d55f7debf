/** Memory that is used again for tensor after tensor, so that it is not made and cleared each time. */

/** Buffers above this are let go once much smaller ones are asked for: few tensors of a model are so large. */
const large = 32e6;

export class Scratch {
  #free: ArrayBuffer[] = [];

  /** Bytes with any contents, from the start of a buffer. */
  take(bytes: number): Uint8Array<ArrayBuffer> {
    this.#free = this.#free.filter(({ byteLength }) => byteLength <= Math.max(large, 8 * bytes));
    let best = -1;
    for (const [i, { byteLength }] of this.#free.entries()) {
      const fits = byteLength >= bytes && byteLength <= Math.max(4 * bytes, 2 ** 16);
      if (fits && (best < 0 || byteLength < this.#free[best].byteLength)) best = i;
    }
    const found = best < 0 ? undefined : this.#free.splice(best, 1)[0];
    return new Uint8Array(found ?? new ArrayBuffer(Math.max(bytes, 256)), 0, bytes);
  }

  give({ buffer }: { readonly buffer: ArrayBuffer }): void {
    if (this.#free.length < 64) this.#free.push(buffer);
  }
}
