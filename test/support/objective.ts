/** Objectives on a tiny model in float64: their losses, and their gradients against central differences. */

import { type LoraAdapter, lora } from "../../src/adapters/lora.ts";
import { grad } from "../../src/autodiff/grad.ts";
import { compile } from "../../src/backend/compile.ts";
import { reference } from "../../src/backend/reference/reference.ts";
import type { Example } from "../../src/data/example.ts";
import type { Value } from "../../src/ir/graph.ts";
import { Gpt2 } from "../../src/models/gpt2.ts";
import type { TensorRecord, ValueRecord } from "../../src/nn/module.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import type { AnyObjective, Batch } from "../../src/train/objective.ts";
import { allclose } from "./allclose.ts";
import { tolerance } from "./tolerance.ts";

/** Weights so large that every part of the model has a say. */
export function loud(params: TensorRecord, seed: number, scale = 0.5): TensorRecord {
  const rng = new Rng(seed);
  return Object.fromEntries(
    Object.entries(params).map(([path, tensor]) => {
      const numbers = rng.fold(path).normals(tensor.size, scale);
      const isNorm = tensor.shape.length === 1;
      return [
        path,
        new Tensor(
          "float32",
          tensor.shape,
          Float32Array.from(numbers, (x) => (isNorm ? 1 + 0.2 * x : x)),
        ),
      ];
    }),
  );
}

/** Without rotary positions, whose tables are float32. */
export const tinyModel: Gpt2 = new Gpt2({
  vocabSize: 11,
  dModel: 8,
  nLayers: 1,
  nHeads: 2,
  maxPositions: 16,
});
export const tinyBase: TensorRecord = loud(tinyModel.init(new Rng(1)).params, 2);
export const tinyAdapter: LoraAdapter = lora(tinyModel, {
  rank: 2,
  targetModules: ["c_attn", "c_proj"],
});
export const tinyLora: TensorRecord = loud(tinyAdapter.init(new Rng(3)), 4);

export function example(ids: readonly number[], from: number, isGood?: boolean): Example {
  return {
    ids: Int32Array.from(ids),
    mask: Uint8Array.from(ids, (_, i) => (i >= from ? 1 : 0)),
    ...(isGood !== undefined && { isGood }),
  };
}

const wide = (tensor: Tensor): Tensor =>
  tensor.dtype === "float32"
    ? new Tensor("float64", tensor.shape, Float64Array.from(tensor.data as Float32Array))
    : tensor;
const wideAll = (record: Readonly<Record<string, Tensor>>): TensorRecord =>
  Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, wide(tensor)]));

/**
 * Loss Σ w l / Σ w of a batch in float64; asserts that its gradient is that of central differences, at
 * `samples` places of every trained tensor.
 */
export async function checkObjective(
  objective: AnyObjective,
  batch: Batch,
  options: { readonly samples?: number; readonly trained?: TensorRecord } = {},
): Promise<number> {
  const { samples = 3 } = options;
  const own = objective.init?.(new Rng(9)) ?? {};
  const trained = wideAll({ ...tinyLora, ...own, ...options.trained });
  const frozen = wideAll({ ...tinyBase, ...objective.frozen });
  const parts = wideAll(batch);
  const total = batch.weights.data.reduce((a, b) => a + b, 0);
  const loss = (p: ValueRecord, base: ValueRecord, values: ValueRecord): Value =>
    objective.loss(
      {
        model: tinyModel,
        values: { ...base, ...p },
        context: tinyModel.context(base, {}, tinyAdapter.context(p)),
        reference: () => tinyModel.context(base),
      },
      values,
    ).sum;
  const value = await compile<Tensor>(loss as never, [trained, frozen, parts], {
    backend: reference(),
  });
  const slope = await compile<TensorRecord>(
    grad(loss as never) as never,
    [trained, frozen, parts],
    {
      backend: reference(),
    },
  );
  const found = slope.runSync(trained, frozen, parts);
  const step = 1e-5;
  const rng = new Rng(5);
  for (const [path, tensor] of Object.entries(trained)) {
    const at = Array.from({ length: Math.min(samples, tensor.size) }, () =>
      rng.integer(tensor.size),
    );
    const moved = (index: number, by: number): number => {
      const data = Float64Array.from(tensor.data as Float64Array);
      data[index]! += by;
      const other = { ...trained, [path]: new Tensor("float64", tensor.shape, data) };
      return value.runSync(other, frozen, parts).item();
    };
    const numeric = at.map((i) => (moved(i, step) - moved(i, -step)) / (2 * step));
    allclose(
      Tensor.from(at.map((i) => found[path]!.data[i] as number)),
      Tensor.from(numeric),
      tolerance.gradient,
      `${objective.name}: gradient of ${path}`,
    );
  }
  return value.runSync(trained, frozen, parts).item() / total;
}
