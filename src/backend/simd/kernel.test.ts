import { describe, expect, it } from "vitest";
import { DtypeError, OptionError, StateError, UnsupportedError } from "../../errors.ts";
import {
  abs,
  add,
  and,
  ceil,
  div,
  equal,
  exp,
  floor,
  greater,
  less,
  lessOrEqual,
  maximum,
  minimum,
  mul,
  neg,
  not,
  or,
  reciprocal,
  round,
  sign,
  sqrt,
  square,
  sub,
  where,
  xor,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { Arena } from "./arena.ts";
import { Kernel } from "./kernel.ts";

const f = Math.fround;
const lengths = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 1000];
const special = [
  ...[0, -0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 0.1, 3e38, -3e38],
  ...[1e-45, -1e-45, 1e-38, Infinity, -Infinity, Number.NaN, 16777216, -8388609.5],
];

function fill(tensor: Tensor<"float32">, seed: number): void {
  const rng = new Rng(seed);
  for (let i = 0; i < tensor.size; i++) {
    tensor.data[i] = rng.uniform() < 0.4 ? special[rng.integer(special.length)]! : rng.normal();
  }
}

/** Where two arrays first differ, zeros of different sign included. */
const firstUnlike = (a: Float32Array, b: Float32Array): number =>
  a.findIndex((value, i) => !Object.is(value, b[i]));

const rounded = (x: number): number => {
  const low = Math.floor(x);
  const even = low % 2 === 0 ? low : low + 1;
  return x - low === 0.5 ? even : Math.round(x);
};

type Body = (x: Value, y: Value, s: Value) => Value;
type Plain = (x: number, y: number, s: number) => number;

/** Each operator, and the same in float32 arithmetic of plain JavaScript. */
const cases: Readonly<Record<string, readonly [Body, Plain]>> = {
  add: [(x, y) => add(x, y), (x, y) => f(x + y)],
  sub: [(x, y) => sub(x, y), (x, y) => f(x - y)],
  mul: [(x, y) => mul(x, y), (x, y) => f(x * y)],
  div: [(x, y) => div(x, y), (x, y) => f(x / y)],
  minimum: [(x, y) => minimum(x, y), (x, y) => Math.min(x, y)],
  maximum: [(x, y) => maximum(x, y), (x, y) => Math.max(x, y)],
  neg: [(x) => neg(x), (x) => -x],
  abs: [(x) => abs(x), (x) => Math.abs(x)],
  sqrt: [(x) => sqrt(x), (x) => f(Math.sqrt(x))],
  floor: [(x) => floor(x), (x) => Math.floor(x)],
  ceil: [(x) => ceil(x), (x) => Math.ceil(x)],
  "round, ties to even": [(x) => add(round(x), 0), (x) => f(rounded(x) + 0)],
  reciprocal: [(x) => reciprocal(x), (x) => f(1 / x)],
  "sign, of numbers": [
    (x, y) => sign(where(equal(x, x), x, y)),
    (x, y) => ((v) => (v > 0 ? 1 : v < 0 ? -1 : 0))(Number.isNaN(x) ? y : x),
  ],
  "where less": [(x, y, s) => where(less(x, y), x, s), (x, y, s) => (x < y ? x : s)],
  "where lessOrEqual": [(x, y) => where(lessOrEqual(x, y), 1, y), (x, y) => (x <= y ? 1 : y)],
  "where equal": [(x, y, s) => where(equal(x, y), s, x), (x, y, s) => (x === y ? s : x)],
  "where not": [(x, y, s) => where(not(less(x, y)), x, s), (x, y, s) => (x < y ? s : x)],
  "where and": [
    (x, y, s) => where(and(less(x, y), less(x, s)), 1, 2),
    (x, y, s) => (x < y && x < s ? 1 : 2),
  ],
  "where or": [
    (x, y, s) => where(or(less(x, y), less(x, s)), 1, 2),
    (x, y, s) => (x < y || x < s ? 1 : 2),
  ],
  "where xor": [
    (x, y, s) => where(xor(less(x, y), less(x, s)), 1, 2),
    (x, y, s) => (x < y !== x < s ? 1 : 2),
  ],
  "a number computed before the loop": [
    (x, _, s) => mul(x, add(mul(s, s), 0.1)),
    (x, _, s) => f(x * f(f(s * s) + f(0.1))),
  ],
  "a polynomial": [
    (x, y, s) => sub(mul(add(mul(x, s), 0.3), x), div(y, add(sqrt(abs(y)), 1e-3))),
    (x, y, s) => f(f(f(f(x * s) + f(0.3)) * x) - f(y / f(f(Math.sqrt(Math.abs(y))) + f(1e-3)))),
  ],
};

describe("a kernel computes what single-precision loops compute, to the bit", () => {
  it.each(Object.keys(cases))("%s", (name) => {
    const [body, plain] = cases[name]!;
    const kernel = new Kernel({
      arrays: ["x", "y"],
      scalars: ["s"],
      body: ({ x, y }, { s }) => ({ write: { x: body(x!, y!, s!) } }),
    });
    for (const length of lengths) {
      const arena = new Arena(1 << 14);
      const [x, y] = [arena.allocate([length], "float32"), arena.allocate([length], "float32")];
      fill(x, 2 * length);
      fill(y, 2 * length + 1);
      const expected = Float32Array.from(x.data, (value, i) => plain(value, y.data[i]!, f(0.7)));
      const untouched = y.data.slice();
      expect(kernel.run(arena, { x, y }, { s: 0.7 })).toBe(0);
      expect(firstUnlike(x.data, expected)).toBe(-1);
      expect(firstUnlike(y.data, untouched)).toBe(-1);
    }
  });

  it("reads every array before it writes any", () => {
    const swap = new Kernel({
      arrays: ["x", "y"],
      scalars: [],
      body: ({ x, y }) => ({ write: { x: y!, y: x! } }),
    });
    const arena = new Arena(4096);
    const [x, y] = [arena.allocate([6], "float32"), arena.allocate([6], "float32")];
    fill(x, 1);
    fill(y, 2);
    const [first, second] = [x.data.slice(), y.data.slice()];
    swap.run(arena, { x, y }, {});
    expect([x.data, y.data]).toEqual([second, first]);
  });

  it("leaves the next tensor alone when the length is no multiple of four", () => {
    const set = new Kernel({
      arrays: ["x"],
      scalars: ["s"],
      body: ({ x }, { s }) => ({ write: { x: add(mul(x!, 0), s!) } }),
    });
    const arena = new Arena(4096);
    const [x, next] = [arena.allocate([13], "float32"), arena.allocate([4], "float32")];
    set.run(arena, { x }, { s: 3 });
    expect([...x.data]).toEqual(new Array(13).fill(3));
    expect([...next.data]).toEqual([0, 0, 0, 0]);
  });

  it("runs on several arenas", () => {
    const twice = new Kernel({
      arrays: ["x"],
      scalars: [],
      body: ({ x }) => ({ write: { x: add(x!, x!) } }),
    });
    for (const value of [3, 5]) {
      const arena = new Arena(64);
      const x = arena.allocate([1], "float32");
      x.data[0] = value;
      twice.run(arena, { x }, {});
      expect(x.data[0]).toBe(2 * value);
    }
  });
});

describe("a kernel's sum", () => {
  const squares = new Kernel({
    arrays: ["x"],
    scalars: ["s"],
    body: ({ x }, { s }) => ({ sum: square(sub(x!, s!)) }),
  });

  it("adds in double precision, lanes 0 + 2 and 1 + 3 apart, and only what is in the array", () => {
    for (const length of lengths) {
      const arena = new Arena(1 << 14);
      const x = arena.allocate([length], "float32");
      x.data.set(new Rng(length).normals(length));
      // (0 - 3)² of the lanes past the end would show.
      const lanes = [0, 0];
      const square = (i: number): number => (i < length ? f(f(x.data[i]! - 3) ** 2) : 0);
      for (let i = 0; i < length; i += 4) {
        lanes[0]! += square(i) + square(i + 2);
        lanes[1]! += square(i + 1) + square(i + 3);
      }
      expect(squares.run(arena, { x }, { s: 3 })).toBe(lanes[0]! + lanes[1]!);
    }
  });

  it("keeps what single precision would lose", () => {
    const total = new Kernel({ arrays: ["x"], scalars: [], body: ({ x }) => ({ sum: x! }) });
    const arena = new Arena(1 << 14);
    const x = arena.allocate([1001], "float32");
    x.data.fill(1);
    x.data[0] = 2 ** 30;
    expect(total.run(arena, { x }, {})).toBe(2 ** 30 + 1000);
  });

  it("comes with writes, of the values before them", () => {
    const kernel = new Kernel({
      arrays: ["x"],
      scalars: [],
      body: ({ x }) => ({ write: { x: mul(x!, 2) }, sum: x! }),
    });
    const arena = new Arena(64);
    const x = arena.allocate([3], "float32");
    x.data.set([1, 2, 3]);
    expect(kernel.run(arena, { x }, {})).toBe(6);
    expect([...x.data]).toEqual([2, 4, 6]);
  });
});

describe("a kernel refuses", () => {
  const make = (body: (x: Value) => Value): (() => Kernel) => {
    return () =>
      new Kernel({ arrays: ["x"], scalars: [], body: ({ x }) => ({ write: { x: body(x!) } }) });
  };

  it("operators that are not elementwise, or have no SIMD form", () => {
    expect(make((x) => add(x, sum(x)))).toThrow(
      new UnsupportedError('kernel: operator "sum" is not elementwise, or has no SIMD form.'),
    );
    expect(make((x) => exp(x))).toThrow('operator "exp"');
  });

  it("constants that are no float32 number", () => {
    expect(make((x) => mul(x, Tensor.from([1, 2], [2, 1])))).toThrow(
      "kernel: a constant must be one float32 number, got 2 of float32.",
    );
    expect(make((x) => where(true, x, 0))).toThrow(
      "kernel: a constant must be one float32 number, got 1 of bool.",
    );
  });

  it("truth values as results", () => {
    expect(make((x) => greater(x, 0))).toThrow(
      new DtypeError("kernel: results must be float32, got bool — use where."),
    );
    const counts = {
      arrays: ["x"],
      scalars: [],
      body: ({ x }: Record<string, Value>) => ({ sum: less(x!, 0) }),
    };
    expect(() => new Kernel(counts)).toThrow(DtypeError);
  });

  it("results for arrays that it does not have, and names used twice", () => {
    const body = ({ x }: Readonly<Record<string, Value>>) => ({ write: { y: x! } });
    expect(() => new Kernel({ arrays: ["x"], scalars: [], body })).toThrow(
      new OptionError('kernel: no array "y" — arrays are x.'),
    );
    expect(() => new Kernel({ arrays: ["x"], scalars: ["x"], body })).toThrow(
      "kernel: names must differ, got x, x.",
    );
  });

  it("arrays of another memory, length or type, parts of arrays, and missing numbers", () => {
    const kernel = new Kernel({
      arrays: ["x", "y"],
      scalars: ["s"],
      body: ({ x, y }, { s }) => ({ write: { x: mul(add(x!, y!), s!) } }),
    });
    const arena = new Arena(4096);
    const x = arena.allocate([5], "float32");
    const y = arena.allocate([5], "float32");
    const run = (other: Tensor): (() => number) => {
      return () => kernel.run(arena, { x, y: other }, { s: 1 });
    };
    const sentence = 'kernel: array "y" must be a float32 tensor of the arena with 5 elements, got';
    expect(run(Tensor.from([1, 2, 3, 4, 5]))).toThrow(
      new StateError(`${sentence} float32 with 5.`),
    );
    expect(run(new Arena(64).allocate([5], "float32"))).toThrow(StateError);
    expect(run(arena.allocate([4], "float32"))).toThrow(`${sentence} float32 with 4.`);
    expect(run(arena.allocate([5], "int32"))).toThrow(`${sentence} int32 with 5.`);
    const long = arena.allocate([8], "float32");
    expect(run(new Tensor("float32", [5], long.data.subarray(0, 5)))).toThrow(StateError);
    expect(() => kernel.run(arena, { x } as never, { s: 1 })).toThrow(`${sentence} none.`);
    expect(() => kernel.run(arena, { x, y }, {})).toThrow('kernel: number "s" is not given.');
  });
});
