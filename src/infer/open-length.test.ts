import { describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { spec, trace } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice, transpose } from "../ir/layout.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { attention } from "../nn/attention.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { openLength, standInLength } from "./open-length.ts";

const backend = await nodeOrt({ threads: 1 });

describe("standInLength", () => {
  it("is a prime that divides no size of the model", () => {
    const model = new Gpt2({
      vocabSize: 11 * 13,
      dModel: 17 * 2,
      nLayers: 1,
      nHeads: 2,
      maxPositions: 19,
      dropout: 0,
    });
    // 11 and 13 divide the vocabulary, 17 the width; 19 is the number of positions.
    expect(standInLength(model)).toBe(23);
  });
});

describe("openLength", () => {
  it("lets one program take every length, with the causal rule for each", async () => {
    const [heads, headDim, length] = [2, 4, 11];
    const { program } = trace(
      ((x: Value) => {
        const parts = transpose(reshape(x, ["rows", length, heads, headDim]), [0, 2, 1, 3]);
        const mixed = attention(parts, parts, parts, { causal: true });
        return reshape(transpose(mixed, [0, 2, 1, 3]), [-1, heads * headDim]);
      }) as never,
      [spec(["rows", length, heads * headDim])],
    );
    const opened = openLength(program, length, "tokens");
    expect(opened.graph.inputs[0]!.shape).toEqual(["rows", "tokens", 8]);
    const loaded = await backend.load(opened);
    for (const tokens of [1, 2, 5, 11, 16]) {
      const x = new Tensor("float32", [3, tokens, 8], new Rng(tokens).normals(24 * tokens));
      const [given] = await loaded.run([x]);
      const known = trace(
        ((value: Value) => {
          const parts = transpose(reshape(value, [3, tokens, heads, headDim]), [0, 2, 1, 3]);
          const mixed = attention(parts, parts, parts, { causal: true });
          return reshape(transpose(mixed, [0, 2, 1, 3]), [-1, heads * headDim]);
        }) as never,
        [spec([3, tokens, 8])],
      );
      const [wanted] = await (await reference().load(known.program)).run([x]);
      expect(given!.shape).toEqual([3 * tokens, 8]);
      allclose(given!, wanted!, 1e-5);
    }
    await loaded.release();
  });

  it("refuses operators that take the length apart, and other constants of its size", () => {
    const cut = trace(((x: Value) => slice(x, 1, 0, 5)) as never, [spec(["rows", 11])]);
    expect(() => openLength(cut.program, 11, "tokens")).toThrow(
      "export: slice of shape (rows, 5) depends on the sequence length in a way that cannot be exported.",
    );
    const shifted = trace(((x: Value) => add(x, Tensor.zeros([11], "float32"))) as never, [
      spec(["rows", 11]),
    ]);
    expect(() => openLength(shifted.program, 11, "tokens")).toThrow(
      "export: constant of shape (11,) depends on the sequence length",
    );
  });
});
