import { describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { uniforms } from "../../../test/support/by-rule.ts";
import { parityBackend } from "../../../test/support/fixture.ts";
import { nodeHost } from "../../host/node.ts";
import { probeLogits } from "../../infer/verify.ts";
import { loadModel } from "../../models/folder.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { matrix, svd } from "../../tensor/linalg/index.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { TrainProgram } from "../../train/program.ts";
import { traineeOf } from "../../train/trainee.ts";
import { loha } from "./loha.ts";
import { lokr } from "./lokr.ts";

const backend = await parityBackend();
const { model, params: base } = await loadModel(
  nodeHost().files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);

function filled(params: TensorRecord): TensorRecord {
  return Object.fromEntries(
    Object.entries(params).map(([name, { shape, size }]) => [
      name,
      new Tensor(
        "float32",
        shape,
        Float32Array.from(uniforms(name, size), (x) => x - 0.5),
      ),
    ]),
  );
}

describe("LoHa", () => {
  it("adds a matrix whose rank is the square of its own", () => {
    const adapter = loha(model, { rank: 3, targetModules: ["q_proj"] });
    const params = filled(adapter.init(new Rng(0)));
    const path = "model.layers.0.self_attn.q_proj.weight";
    const [after, before] = [adapter.merge(base, params)[path]!, base[path]!.numbers()];
    const delta = Float64Array.from(after.numbers(), (x, i) => x - before[i]!);
    const { s } = svd(matrix(16, 16, delta));
    // 3 · 3 of 16; the rest is rounding.
    expect(s[8]! / s[0]!).toBeGreaterThan(1e-3);
    expect(s[9]! / s[0]!).toBeLessThan(1e-5);
  });

  it.each([1, 2, 4])(
    "computes the same in both ways, of rank %i, as its merged weights",
    async (rank) => {
      // 4 · 4 · 32 is not below 16 · 16, 2 · 2 · 32 is.
      const adapter = loha(model, { rank, targetModules: ["q_proj", "down_proj"] });
      const params = filled(adapter.init(new Rng(0)));
      const ids = Tensor.from([3, 1, 7, 9], [1, 4], "int32");
      const beside = await probeLogits(backend, model, base, ids, { adapter, params });
      const merged = { ...base, ...adapter.merge(base, params) };
      allclose(await probeLogits(backend, model, merged, ids), beside, 1e-5);
    },
  );

  it("refuses patterns that match no layer", () => {
    expect(() => loha(model, { rankPattern: { gate_proj: 2 } })).toThrow(
      'loha: rankPattern: "gate_proj" matches none of the layers that are adapted',
    );
  });
});

describe.each([
  ["LoHa", loha],
  ["LoKr", lokr],
])("dropout of %s", (_, bind) => {
  const lossOf = async (options: object, seed: number): Promise<number> => {
    const adapter = bind(model, { rank: 2, targetModules: ["q_proj", "v_proj"], ...options });
    const params = filled(adapter.init(new Rng(0)));
    const trainee = traineeOf(model, base, { adapter, params });
    const program = new TrainProgram(trainee, backend);
    const gradients = Object.fromEntries(
      Object.entries(params).map(([name, { shape }]) => [name, Tensor.zeros(shape, "float32")]),
    );
    const batch = {
      ids: Tensor.from([3, 1, 7, 9], [1, 4], "int32"),
      targets: Tensor.from([1, 7, 9, 2], [4], "int32"),
      weights: Tensor.from(new Float32Array(4).fill(1)),
    };
    try {
      return await program.lossAndGradients(batch, params, gradients, 4, new Rng(seed));
    } finally {
      await program.release();
    }
  };

  it("leaves out outputs, or whole layers, by chance", async () => {
    const whole = await lossOf({}, 1);
    expect(await lossOf({}, 2)).toBe(whole);
    const outputs = [await lossOf({ rankDropout: 0.5 }, 1), await lossOf({ rankDropout: 0.5 }, 2)];
    expect(new Set([whole, ...outputs]).size).toBe(3);
    // Nearly all layers are left out: the base alone.
    const none = await lossOf({ moduleDropout: 0.999999 }, 1);
    const ids = Tensor.from([3, 1, 7, 9], [1, 4], "int32");
    const logits = await probeLogits(backend, model, base, ids);
    const targets = [1, 7, 9, 2];
    const width = logits.size / 4;
    const numbers = logits.numbers();
    const loss = targets.reduce((total, target, i) => {
      const row = Array.from({ length: width }, (_unused, j) => numbers[i * width + j]!);
      const most = Math.max(...row);
      const log = most + Math.log(row.reduce((sum, x) => sum + Math.exp(x - most), 0));
      return total + (log - row[target]!) / 4;
    }, 0);
    expect(Math.abs(none - loss)).toBeLessThan(1e-5);
  });
});
