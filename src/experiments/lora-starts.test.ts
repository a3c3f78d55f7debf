import { describe, expect, it } from "vitest";
import { lora } from "../adapters/lora.ts";
import { takenFromBase } from "../methods/initialise.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { type Matrix, matrix, multiply } from "../tensor/linalg/index.ts";
import { Rng } from "../tensor/rng.ts";
import { loraStart, startFactors } from "./lora-starts.ts";

const of = (rows: readonly (readonly number[])[]): Matrix =>
  matrix(rows.length, rows[0]!.length, Float64Array.from(rows.flat()));

describe("first numbers", () => {
  it("of PiSSA are the weight's first direction, worked by hand", () => {
    // diag(4, 1): the first direction is the first axis with 4; s B A = 4, whatever the scale.
    const { a, b } = startFactors(
      "pissa",
      of([
        [4, 0],
        [0, 1],
      ]),
      1,
      2,
    );
    const product = multiply(b, a);
    expect(2 * product.data[0]!).toBeCloseTo(4, 12);
    expect(product.data[3]).toBeCloseTo(0, 12);
    // √4 / √2 on both sides.
    expect(Math.abs(a.data[0]!)).toBeCloseTo(Math.SQRT2, 12);
    expect(Math.abs(b.data[0]!)).toBeCloseTo(Math.SQRT2, 12);
  });

  it("of OLoRA are the first rows and columns of QR", () => {
    const { a, b } = startFactors(
      "olora",
      of([
        [3, 1],
        [4, 2],
      ]),
      1,
      1,
    );
    // Q's first column is (3, 4) / 5, R's first row (5, 11/5).
    expect([...b.data].map((x) => Math.round(x * 1e12) / 1e12)).toEqual([0.6, 0.8]);
    expect(a.data[0]).toBeCloseTo(5, 12);
    expect(a.data[1]).toBeCloseTo(2.2, 12);
  });

  it("of LoRA-GA take A from the gradient's first directions and B from the next ones", () => {
    const { a, b } = startFactors(
      "lora-ga",
      of([
        [9, 0, 0],
        [0, 4, 0],
        [0, 0, 1],
        [0, 0, 0],
      ]),
      1,
      1,
    );
    const factor = 4 ** 0.25 / 4;
    expect([...a.data].map((x) => Math.abs(x) / factor)).toEqual([1, 0, 0]);
    expect([...b.data].map((x) => Math.abs(x) / factor)).toEqual([0, 1, 0, 0]);
  });

  it.each(["pissa", "olora", "lora-ga"] as const)("of %s leave the model as it is", (start) => {
    const model = new Gpt2({ vocabSize: 11, dModel: 16, nLayers: 1, nHeads: 2, maxPositions: 8 });
    const { params: base } = model.init(new Rng(1));
    const adapter = lora(model, { rank: 2, targetModules: "all-linear" });
    const params = loraStart(start, adapter, (path) => base[`${path}.weight`]!);
    const merged = adapter.merge(takenFromBase(base, adapter, params), params);
    for (const [path, { data }] of Object.entries(merged)) {
      data.forEach((x, i) => {
        expect(Math.abs(Number(x) - Number(base[path]!.data[i]))).toBeLessThan(1e-6);
      });
    }
  });
});
