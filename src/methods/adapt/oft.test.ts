import { describe, expect, it } from "vitest";
import { uniforms } from "../../../test/support/by-rule.ts";
import { nodeHost } from "../../host/node.ts";
import { loadModel } from "../../models/folder.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { matrixOf, multiply } from "../../tensor/linalg/index.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { boft, butterflyOrder } from "./boft.ts";
import { nearestDivisor, oft, oftKind } from "./oft.ts";

const { model, params: base } = await loadModel(
  nodeHost().files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);
const path = "model.layers.0.mlp.down_proj.weight";

function filled(
  params: TensorRecord,
  isKept: (name: string) => boolean = () => false,
): TensorRecord {
  return Object.fromEntries(
    Object.entries(params).map(([name, first]) => {
      if (isKept(name)) return [name, first];
      const numbers = Float32Array.from(uniforms(name, first.size), (x) => 2 * x - 1);
      return [name, new Tensor("float32", first.shape, numbers)];
    }),
  );
}

/** W Wᵀ: lengths of outputs' weights, and angles between them. */
const angles = (weight: Tensor): Float64Array =>
  multiply(matrixOf(weight), matrixOf(weight), { transB: true }).data;

describe("rotations", () => {
  it.each([
    [
      "OFT",
      () => oft(model, { blockSize: 6, targetModules: ["down_proj"], useCayleyNeumann: false }),
    ],
    [
      "OFT with one rotation",
      () =>
        oft(model, {
          blockSize: 8,
          targetModules: ["down_proj"],
          useCayleyNeumann: false,
          blockShare: true,
        }),
    ],
    ["BOFT", () => boft(model, { blockSize: 6, targetModules: ["down_proj"], factors: 3 })],
  ])("of %s keep lengths of weights and angles between them", (_, bind) => {
    const adapter = bind();
    const merged = adapter.merge(
      base,
      filled(adapter.init(new Rng(0)), (name) => name.endsWith("boft_s")),
    )[path]!;
    const [before, after] = [angles(base[path]!), angles(merged)];
    for (const [i, x] of before.entries()) expect(Math.abs(after[i]! - x)).toBeLessThan(1e-5);
    const change = Array.from(merged.numbers(), (x, i) => x - base[path]!.numbers()[i]!);
    expect(Math.max(...change.map(Math.abs))).toBeGreaterThan(0.1);
  });

  it("of a butterfly mix every input with every other; of blocks alone only their own", () => {
    const mixed = (factors: number): number => {
      const adapter = boft(model, { blockSize: 2, targetModules: ["down_proj"], factors });
      const params = filled(adapter.init(new Rng(0)), (name) => name.endsWith("boft_s"));
      const one = new Float32Array(16 * 24);
      one[0] = 1;
      const only = { ...base, [path]: new Tensor("float32", [16, 24], one) };
      const row = Array.from(adapter.merge(only, params)[path]!.numbers()).slice(0, 24);
      return row.filter((x) => Math.abs(x) > 1e-6).length;
    };
    // Each factor doubles the reach: 2, 4, 8 of 24 inputs.
    expect([1, 2, 3].map(mixed)).toEqual([2, 4, 8]);
  });
});

describe("OFT", () => {
  it("takes the nearest size that divides the inputs", () => {
    expect([nearestDivisor(24, 32), nearestDivisor(24, 5), nearestDivisor(16, 3)]).toEqual([
      24, 4, 2,
    ]);
    const adapter = oft(model, { blockSize: 7, targetModules: ["down_proj"] });
    // 24 = 3 · 8, and 8 · 7 / 2 numbers in each.
    expect(Object.values(adapter.init(new Rng(0)))[0]!.shape).toEqual([4, 15]);
  });

  it("pulls numbers back to the radius after a step, and merges as if they were", () => {
    const adapter = oft(model, {
      blockSize: 6,
      targetModules: ["down_proj"],
      coft: true,
      eps: 0.2,
    });
    const params = filled(adapter.init(new Rng(0)));
    const about = { step: 1, steps: 2, loss: 0, rng: new Rng(0), buffers: {}, gradients: {} };
    const pulled = adapter.hook!.after!({ ...about, params })!.params!;
    for (const tensor of Object.values(pulled)) {
      const numbers = tensor.numbers();
      for (let row = 0; row < 4; row++) {
        const own = Array.from(numbers).slice(row * 15, row * 15 + 15);
        // ‖Q‖ has each number twice; 4 blocks share eps.
        expect(Math.SQRT2 * Math.hypot(...own)).toBeCloseTo(0.1, 6);
      }
    }
    const [one, two] = [adapter.merge(base, params)[path]!, adapter.merge(base, pulled)[path]!];
    for (const [i, x] of Array.from(one.numbers()).entries()) {
      expect(Math.abs(two.numbers()[i]! - x)).toBeLessThan(1e-6);
    }
  });

  it("says which options do not go together, and which files it cannot read", () => {
    expect(() => oft(model, { blocks: 4 })).toThrow(
      "oft: give one of blocks and blockSize and 0 for the other, got 4 and 32.",
    );
    expect(() => oft(model, { blocks: 16, blockSize: 0 })).toThrow(
      'oft: "model.layers.0.self_attn.q_proj" falls into blocks of 1, which nothing rotates — give fewer blocks.',
    );
    expect(() => oftKind.read({ target_modules: ["q_proj"] }, "here", model)).toThrow(
      "here: lacks oft_block_size, as PEFT before 0.14 wrote it — train the adapter anew.",
    );
  });
});

describe("BOFT", () => {
  it("reads every second half block first, in groups that double", () => {
    expect([...butterflyOrder(8, 2, 0)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect([...butterflyOrder(8, 2, 1)]).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
    expect([...butterflyOrder(8, 2, 2)]).toEqual([0, 2, 4, 6, 1, 3, 5, 7]);
  });

  it("says which blocks and factors do not fit a layer", () => {
    expect(() => boft(model, { blockSize: 5 })).toThrow(
      'boft: the 16 inputs of "model.layers.0.self_attn.q_proj" do not fall into blocks of 5 — give a divisor.',
    );
    expect(() => boft(model, { blockSize: 8, factors: 3 })).toThrow(
      "fall into 2 blocks of 8, and 3 factors need an even size and a multiple of 4 blocks — give fewer factors.",
    );
    expect(() => boft(model, { blockNum: 4 })).toThrow(
      "boft: give one of blockSize and blockNum and 0 for the other, got 4 and 4.",
    );
  });
});
