/**
 * Bottleneck adapters, for comparison: layers of few units with a non-linearity, which do not merge.
 *
 *   sequential   y ← y + s U relu(D y)      behind attention's output and the feed-forward layer
 *   parallel     y ← y + s U relu(D x)      beside the feed-forward layer, x its input
 *
 * Houlsby et al. 2019, arXiv:1902.00751; Chen et al. "AdaptFormer" 2022, arXiv:2205.13535. Without biases, so
 * that numbers of parameters can be equal.
 */
import type { Adapter } from "../adapters/adapter.ts";
import { add, mul, relu } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { dot } from "../ir/linear.ts";
import type { PretrainedModel } from "../models/model.ts";
import { kaimingUniform } from "../nn/init.ts";
import type { Module, SiteFn, TensorRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

export interface BottleneckOptions {
  readonly form: "sequential" | "parallel";
  readonly rank: number;
  readonly scale: number;
  /** Layers whose output gets a branch, by path. */
  readonly outputs: readonly string[];
  /** Of the parallel form: the layer whose input the branch of an output reads. */
  readonly inputOf?: (output: string) => string;
}

export function bottleneck(model: PretrainedModel, options: BottleneckOptions): Adapter {
  const { form, rank, scale, outputs, inputOf = (path) => path } = options;
  const branches = outputs.map((path) => {
    const layer = model.targets.get(path)!;
    const reads = form === "parallel" ? model.targets.get(inputOf(path))! : layer;
    const width = form === "parallel" ? reads.inFeatures : layer.outFeatures;
    return { path, layer, reads, width, down: `${path}.down`, up: `${path}.up` };
  });
  return {
    kind: "BOTTLENECK",
    title: "Bottleneck adapter",
    targets: outputs,
    mergeable: "no",
    init: (rng) =>
      Object.fromEntries(
        branches.flatMap(({ down, up, layer, width }): [string, Tensor][] => {
          const shape = [rank, width];
          return [
            [down, new Tensor("float32", shape, kaimingUniform(rng.fold(down), shape))],
            [up, Tensor.zeros([layer.outFeatures, rank], "float32")],
          ];
        }),
      ),
    context: (values) => {
      const seen = new Map<string, Value>();
      const sites = new Map<Module, SiteFn>();
      for (const { path, layer, reads, down, up } of branches) {
        if (form === "parallel") {
          sites.set(reads, (x, y) => {
            seen.set(path, x);
            return y;
          });
        }
        sites.set(layer, (_, y) => {
          const input = form === "parallel" ? seen.get(path)! : y;
          const inner = relu(dot(input, values[down]!, { transB: true }));
          return add(y, mul(dot(inner, values[up]!, { transB: true }), scale));
        });
      }
      return { sites };
    },
    merge: (): TensorRecord => ({}),
    config: () => ({}),
  };
}
