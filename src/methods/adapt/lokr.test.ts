import { describe, expect, it } from "vitest";
import { nodeHost } from "../../host/node.ts";
import { loadModel } from "../../models/folder.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { lokr, twoFactors } from "./lokr.ts";

const { model, params: base } = await loadModel(
  nodeHost().files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);

describe("two factors of a size", () => {
  it.each([
    [256, -1, [16, 16]],
    [128, -1, [8, 16]],
    [127, -1, [1, 127]],
    [24, -1, [4, 6]],
    [128, 4, [4, 32]],
    // 5 does not divide 24, and 4 is the largest that does below it.
    [24, 5, [4, 6]],
    [1, -1, [1, 1]],
  ])("of %i with %i are %o", (size, factor, expected) => {
    expect(twoFactors(size, factor)).toEqual(expected);
  });
});

describe("LoKr", () => {
  it("adds the Kronecker product, worked by hand", () => {
    const adapter = lokr(model, { rank: 8, alpha: 4, targetModules: ["q_proj"] });
    const first = adapter.init(new Rng(0));
    const at = "base_model.model.model.layers.0.self_attn.q_proj.lokr_w";
    // 16 = 4 · 4 on both sides; rank 8 is not below 4 / 2, so both matrices are whole.
    expect([first[`${at}1`]!.shape, first[`${at}2`]!.shape]).toEqual([
      [4, 4],
      [4, 4],
    ]);
    const numbered = (scale: number): Tensor =>
      new Tensor(
        "float32",
        [4, 4],
        Float32Array.from({ length: 16 }, (_, i) => scale * (i + 1)),
      );
    const params = { ...first, [`${at}1`]: numbered(1), [`${at}2`]: numbered(0.5) };
    const path = "model.layers.0.self_attn.q_proj.weight";
    const merged = adapter.merge(base, params)[path]!.numbers();
    // Row 6 = 4 · 1 + 2, column 11 = 4 · 2 + 3: C[1, 2] = 7, D[2, 3] = 12 / 2 = 6, scale 4 / 8.
    const where = 6 * 16 + 11;
    expect(merged[where]).toBe(Math.fround(base[path]!.numbers()[where]! + 0.5 * 7 * 6));
  });

  it("takes a product of thin matrices where the rank is low", () => {
    const adapter = lokr(model, { rank: 1, targetModules: ["down_proj"], decomposeBoth: true });
    const shapes = Object.fromEntries(
      Object.entries(adapter.init(new Rng(0))).map(([name, { shape }]) => [
        name.split(".").at(-1),
        shape,
      ]),
    );
    // in 24 = 4 · 6, out 16 = 4 · 4.
    expect(shapes).toEqual({
      lokr_w1_a: [4, 1],
      lokr_w1_b: [1, 4],
      lokr_w2_a: [4, 1],
      lokr_w2_b: [1, 6],
    });
  });
});
