import { describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import { parityBackend } from "../../../../test/support/fixture.ts";
import { evaluate } from "../../../backend/compile.ts";
import type { Value } from "../../../ir/graph.ts";
import { identity, type Matrix, multiply, tensorOf } from "../../../tensor/linalg/index.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import {
  cayley,
  cayleyMatrix,
  cayleyNeumann,
  cayleyNeumannMatrix,
  rotateBlocks,
  rotateWeight,
  skewMatrix,
  skewOf,
} from "./orthogonal.ts";

const backend = await parityBackend();
const free = (count: number, size: number, scale: number): Tensor<"float32"> => {
  const width = (size * (size - 1)) / 2;
  return new Tensor("float32", [count, width], new Rng(3).normals(count * width, scale));
};
const matrices = (above: Tensor, size: number): Matrix[] =>
  Array.from({ length: above.shape[0]! }, (_, i) =>
    skewMatrix(above.numbers(), i * above.shape[1]!, size),
  );
const run = (f: (above: Value) => Value, above: Tensor): Promise<Tensor> =>
  evaluate<Tensor>(backend, f as never, above);

describe.each([
  [4, 0.3],
  [7, 3],
  [32, 6],
])("of blocks of %i, numbers about %d", (size, scale) => {
  const above = free(3, size, scale);

  it("Cayley's matrices are orthogonal, and those of the host", async () => {
    const found = await run((q) => cayley(skewOf(q, size)), above);
    for (const [i, q] of matrices(above, size).entries()) {
      const exact = cayleyMatrix(q);
      allclose(tensorOf(multiply(exact, exact, { transB: true })), tensorOf(identity(size)), 1e-7);
      const part = Float32Array.from(found.numbers()).slice(i * size * size, (i + 1) * size * size);
      allclose(new Tensor("float32", [size, size], part), tensorOf(exact), 2e-5);
    }
  });
});

describe("the series", () => {
  it("of small matrices is near orthogonal, nearer with more terms", () => {
    const q = matrices(free(1, 6, 0.05), 6)[0]!;
    const off = (terms: number): number => {
      const r = cayleyNeumannMatrix(q, terms);
      const product = multiply(r, r, { transB: true });
      return Math.max(...product.data.map((x, i) => Math.abs(x - (i % 7 === 0 ? 1 : 0))));
    };
    expect(off(5)).toBeLessThan(1e-3);
    expect(off(9)).toBeLessThan(off(5) / 10);
  });

  it.each([2, 3, 4, 5, 8])("of %i terms is the host's", async (terms) => {
    const above = free(2, 5, 0.2);
    const found = await run((q) => cayleyNeumann(skewOf(q, 5), terms), above);
    for (const [i, q] of matrices(above, 5).entries()) {
      const part = Float32Array.from(found.numbers()).slice(i * 25, (i + 1) * 25);
      const exact = tensorOf(cayleyNeumannMatrix(q, terms));
      allclose(new Tensor("float32", [5, 5], part), exact, 1e-5);
    }
  });
});

describe("rotated rows", () => {
  it.each([
    ["of their own", 3],
    ["that are shared", 1],
  ])("with blocks %s give what a rotated weight gives", async (_, count) => {
    const above = free(count, 4, 0.7);
    const blocks = matrices(above, 4).map(cayleyMatrix);
    const x = new Tensor("float32", [5, 12], new Rng(4).normals(60, 1));
    const w = new Tensor("float32", [2, 12], new Rng(5).normals(24, 1));
    const rotated = await evaluate<Tensor>(
      backend,
      ((rows: Value, q: Value) => rotateBlocks(rows, cayley(skewOf(q, 4)))) as never,
      x,
      above,
    );
    const asMatrix = (t: Tensor, rows: number): Matrix => ({
      rows,
      columns: 12,
      data: Float64Array.from(t.numbers()),
    });
    const one = multiply(asMatrix(rotated, 5), asMatrix(w, 2), { transB: true });
    const two = multiply(asMatrix(x, 5), rotateWeight(asMatrix(w, 2), blocks), { transB: true });
    allclose(tensorOf(one), tensorOf(two), 1e-5);
  });
});
