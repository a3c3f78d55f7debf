/** Writes a WebAssembly module with one function that loops over memory: just what `kernel.ts` needs. */

/** The binary opcodes used; SIMD ones follow the prefix 0xfd. */
export const simd = {
  load: 0x00,
  store: 0x0b,
  constant: 0x0c,
  shuffle: 0x0d,
  i32Splat: 0x11,
  splat: 0x13,
  f64Splat: 0x14,
  f64Extract: 0x21,
  i32Greater: 0x3b,
  eq: 0x41,
  lt: 0x43,
  le: 0x45,
  not: 0x4d,
  and: 0x4e,
  or: 0x50,
  xor: 0x51,
  bitselect: 0x52,
  promoteLow: 0x5f,
  ceil: 0x67,
  floor: 0x68,
  nearest: 0x6a,
  abs: 0xe0,
  neg: 0xe1,
  sqrt: 0xe3,
  add: 0xe4,
  sub: 0xe5,
  mul: 0xe6,
  div: 0xe7,
  min: 0xe8,
  max: 0xe9,
  f64Add: 0xf0,
} as const;

export const types = { i32: 0x7f, f32: 0x7d, f64: 0x7c, v128: 0x7b } as const;

export function uleb(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  do {
    const low = rest & 127;
    rest >>>= 7;
    bytes.push(rest ? low | 128 : low);
  } while (rest);
  return bytes;
}

/** Code of one function, an instruction a call. */
export class Code {
  readonly bytes: number[] = [];

  simd(op: number): void {
    this.bytes.push(0xfd, ...uleb(op));
  }

  get(local: number): void {
    this.bytes.push(0x20, ...uleb(local));
  }

  set(local: number): void {
    this.bytes.push(0x21, ...uleb(local));
  }

  tee(local: number): void {
    this.bytes.push(0x22, ...uleb(local));
  }

  i32(value: number): void {
    // Small positive numbers only: one byte of signed LEB holds up to 63.
    this.bytes.push(0x41, value);
  }

  f32(value: number): void {
    this.bytes.push(0x43, ...new Uint8Array(Float32Array.of(value).buffer));
  }

  /** Four whole numbers as a vector. */
  i32Vector(...values: readonly [number, number, number, number]): void {
    this.simd(simd.constant);
    this.bytes.push(...new Uint8Array(Int32Array.from(values).buffer));
  }

  i32Add(): void {
    this.bytes.push(0x6a);
  }

  i32Sub(): void {
    this.bytes.push(0x6b);
  }

  /** Loads four floats from the address in a local. */
  load(address: number): void {
    this.get(address);
    this.simd(simd.load);
    this.bytes.push(4, 0);
  }

  /** Stores the vector on the stack; the address was pushed before it. */
  store(): void {
    this.simd(simd.store);
    this.bytes.push(4, 0);
  }

  /** Brings the upper two floats of a local to the lower half. */
  upperHalf(local: number): void {
    this.get(local);
    this.get(local);
    this.simd(simd.shuffle);
    this.bytes.push(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  }

  f64Lane(lane: 0 | 1): void {
    this.simd(simd.f64Extract);
    this.bytes.push(lane);
  }

  /** Repeats the body while the i32 local is above zero; the body counts it down. */
  whilePositive(counter: number, body: () => void): void {
    this.bytes.push(0x02, 0x40, 0x03, 0x40); // block, loop
    this.get(counter);
    this.i32(0);
    this.bytes.push(0x4c, 0x0d, 1); // i32.le_s, br_if 1
    body();
    this.bytes.push(0x0c, 0, 0x0b, 0x0b); // br 0, end, end
  }
}

const vector = (items: readonly (readonly number[])[]): number[] => [
  ...uleb(items.length),
  ...items.flat(),
];
const section = (id: number, content: readonly number[]): number[] => [
  id,
  ...uleb(content.length),
  ...content,
];
const text = (value: string): number[] => [
  ...uleb(value.length),
  ...new TextEncoder().encode(value),
];

/** A module that imports memory `env.memory` and exports one function `run`. */
export function assemble(
  params: readonly number[],
  results: readonly number[],
  locals: readonly number[],
  code: Code,
): Uint8Array<ArrayBuffer> {
  const type = [0x60, ...vector(params.map((t) => [t])), ...vector(results.map((t) => [t]))];
  const body = [...vector(locals.map((t) => [1, t])), ...code.bytes, 0x0b];
  return Uint8Array.from([
    0x00,
    0x61,
    0x73,
    0x6d,
    0x01,
    0x00,
    0x00,
    0x00,
    ...section(1, vector([type])),
    ...section(2, vector([[...text("env"), ...text("memory"), 0x02, 0x00, 0x00]])),
    ...section(3, vector([[0]])),
    ...section(7, vector([[...text("run"), 0x00, 0]])),
    ...section(10, vector([[...uleb(body.length), ...body]])),
  ]);
}
