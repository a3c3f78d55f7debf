/**
 * Running statistics of batch norm computed anew from a trained model's own batches, as Wu and Johnson do,
 * "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3 ("PreciseBN").
 */
import type { Backend } from "../../backend/backend.ts";
import { trace } from "../../backend/compile.ts";
import type { PictureExample } from "../../data/picture-set.ts";
import type { ExampleSet } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import type { Value } from "../../ir/graph.ts";
import type { VisionModel } from "../../models/model.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import { BatchNorm2d } from "../../nn/norm.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective } from "../objective.ts";

/**
 * The means and variances of a model's batch norms, averaged over batches of a set.
 * @param params all values of the model, by path
 * @param options at most so many batches, default 64, of so many pictures, default 16
 * @returns new state by path; empty for a model without batch norm
 * @throws OptionError when the set has fewer pictures than one batch needs, two.
 */
export async function batchStatistics(
  model: VisionModel,
  params: TensorRecord,
  objective: Objective<VisionModel, PictureExample>,
  set: ExampleSet<PictureExample>,
  backend: Backend,
  options: { readonly batches?: number; readonly batchSize?: number } = {},
): Promise<TensorRecord> {
  const norms = [...model.modules()].flatMap(([path, module]): [string, BatchNorm2d][] =>
    module instanceof BatchNorm2d ? [[path, module]] : [],
  );
  if (norms.length === 0) return {};
  const batchSize = Math.min(options.batchSize ?? 16, set.count);
  if (batchSize < 2) {
    throw new OptionError(`batchStatistics: needs two pictures or more, got ${set.count}.`);
  }
  const count = Math.min(options.batches ?? 64, Math.floor(set.count / batchSize));
  const momentum = new Map<string, number>();
  const zeroed: TensorRecord = { ...params };
  for (const [path, norm] of norms) {
    for (const name of ["running_mean", "running_var"]) {
      // From 0 an update leaves the batch's statistics times the momentum.
      zeroed[`${path}.${name}`] = Tensor.zeros([norm.channels], "float32");
      momentum.set(`${path}.${name}`, norm.momentum);
    }
  }
  const batchAt = async (i: number): Promise<Tensor> => {
    const indices = Array.from({ length: batchSize }, (_, k) => i * batchSize + k);
    const examples = await set.get(indices);
    return objective.batch(examples as never, { rows: batchSize })["pixels"]!;
  };
  const first = await batchAt(0);
  const paths = [...momentum.keys()];
  const traced = trace(
    ((values: ValueRecord, pixels: Value) => {
      const context = model.context(values);
      model.forward(context, pixels, { statistics: "batch" });
      const updates = new Map(
        [...context.updates].map(([slot, value]) => [context.path(slot), value]),
      );
      return paths.map((path) => updates.get(path)!);
    }) as never,
    [zeroed, first],
  );
  const sums = paths.map((path) => new Float64Array(params[path]!.size));
  const executable = await backend.load(traced.program);
  try {
    for (let i = 0; i < count; i++) {
      const outputs = await executable.run([
        ...Object.values(zeroed),
        i === 0 ? first : await batchAt(i),
      ]);
      outputs.forEach((output, k) => {
        const numbers = output!.numbers();
        for (let j = 0; j < numbers.length; j++) sums[k]![j]! += numbers[j]!;
      });
    }
  } finally {
    await executable.release();
  }
  return Object.fromEntries(
    paths.map((path, k) => [
      path,
      Tensor.from(
        sums[k]!.map((x) => x / (count * momentum.get(path)!)),
        params[path]!.shape,
      ),
    ]),
  );
}
