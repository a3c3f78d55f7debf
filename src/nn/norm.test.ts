import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectCall,
  expectRecorded,
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  recordedCalls,
  relativeDifference,
  replay,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGradWithAux } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { mul, relu } from "../ir/elementwise.ts";
import { layerNorm, rmsNorm } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { reshape } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { checkpointed } from "./checkpoint.ts";
import { Conv2d, ConvTranspose2d } from "./conv.ts";
import { Linear } from "./linear.ts";
import { crossEntropy } from "./losses.ts";
import {
  type Context,
  type ContextOptions,
  Module,
  type TensorRecord,
  type ValueRecord,
} from "./module.ts";
import { BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RmsNorm } from "./norm.ts";
import { avgPool, maxPool } from "./pool.ts";

type Norm = { forward(context: Context, x: Value): Value } & Module;

/** Output and new state of one norm on an input. */
async function run(
  norm: Norm,
  x: Tensor,
  state: TensorRecord,
  options: ContextOptions,
): Promise<[Tensor, TensorRecord]> {
  const { params } = norm.init(new Rng(1));
  return evaluate<[Tensor, TensorRecord]>(
    await parityBackend(),
    (p: ValueRecord, s: ValueRecord, v: Value) =>
      norm.apply(p, s, (context) => norm.forward(context, v), options),
    params,
    state,
    x,
  );
}

describe("norms equal PyTorch's, with their gradients", () => {
  test("LayerNorm", async () => {
    for (const call of recordedCalls("layer_norm")) {
      await expectCall(call, ({ input, weight, bias }) => {
        const fill = (value: number): Tensor => Tensor.from(new Float32Array(6).fill(value));
        return layerNorm(input!, weight ?? fill(1), bias ?? fill(0), call.options["eps"]);
      });
    }
  });

  test("RmsNorm", async () => {
    for (const call of recordedCalls("rms_norm")) {
      await expectCall(call, ({ input, weight }) => rmsNorm(input!, weight!, call.options["eps"]));
    }
  });

  test("GroupNorm", async () => {
    for (const call of recordedCalls("group_norm")) {
      const norm = new GroupNorm(call.options["num_groups"], 6, { epsilon: call.options["eps"] });
      await expectCall(call, ({ input, weight, bias }) =>
        norm.forward(norm.context({ weight: weight!, bias: bias! }), input!),
      );
    }
  });
});

describe("GroupNorm", () => {
  test("gives each group mean 0 and variance 1", async () => {
    // Group of channels 0 and 1: 1, 3, 5, 7 → mean 4, variance 5.
    const x = Tensor.from([1, 3, 5, 7, 2, 2, 2, 2], [1, 4, 2]);
    const [y] = await run(new GroupNorm(2, 4, { affine: false, epsilon: 1e-12 }), x, {}, {});
    const unit = [-3, -1, 1, 3].map((v) => v / Math.sqrt(5));
    allclose(y, Tensor.from([...unit, 0, 0, 0, 0], [1, 4, 2]), tolerance.float32);
  });

  test("has the gradient of its formula", async () => {
    const rng = new Rng(2);
    const norm = new GroupNorm(2, 4);
    await checkGradient(
      (x, weight, bias) =>
        norm.forward(norm.context({ weight: weight!, bias: bias! } as never), x!),
      [randomTensor(rng, [2, 4, 3]), randomTensor(rng, [4]), randomTensor(rng, [4])],
    );
  });

  test("refuses groups that do not divide the channels, and other channels", async () => {
    expect(() => new GroupNorm(3, 4)).toThrow("groupNorm: groups must divide 4 channels, got 3.");
    const x = Tensor.zeros([1, 3, 2], "float32");
    await expect(run(new GroupNorm(2, 4), x, {}, {})).rejects.toThrow(
      "groupNorm: needs (N, 4, spatial…), got (1, 3, 2).",
    );
  });
});

describe("BatchNorm", () => {
  const fresh = (): TensorRecord => new BatchNorm1d(2).init(new Rng(1)).state;

  test("uses and keeps the statistics of the batch in training", async () => {
    // Channel 0: 1, 3 → mean 2, variance 1, unbiased 2; channel 1: 0, 4 → mean 2, variance 4, unbiased 8.
    const x = Tensor.from([1, 0, 3, 4], [2, 2]);
    const norm = new BatchNorm1d(2, { epsilon: 1e-12 });
    const [y, state] = await run(norm, x, fresh(), { training: true });
    allclose(y, Tensor.from([-1, -1, 1, 1], [2, 2]), tolerance.float32);
    allclose(state["running_mean"]!, Tensor.from([0.2, 0.2]), tolerance.float32);
    allclose(state["running_var"]!, Tensor.from([0.9 + 0.2, 0.9 + 0.8]), tolerance.float32);
    expect(state["num_batches_tracked"]!.item()).toBe(1);
  });

  test("uses the running statistics otherwise, and leaves them", async () => {
    const state = {
      ...fresh(),
      running_mean: Tensor.from([1, 2]),
      running_var: Tensor.from([4, 9]),
    };
    const norm = new BatchNorm1d(2, { epsilon: 1e-12 });
    const [y, after] = await run(norm, Tensor.from([3, 5], [1, 2]), state, {});
    allclose(y, Tensor.from([1, 1], [1, 2]), tolerance.float32);
    allclose(after["running_mean"]!, state.running_mean, 0);
  });

  test("gives the same result twice from the same state", async () => {
    const x = new Tensor("float32", [3, 2], new Rng(4).normals(6));
    const state = fresh();
    const first = await run(new BatchNorm1d(2), x, state, { training: true });
    const second = await run(new BatchNorm1d(2), x, state, { training: true });
    expect(second).toEqual(first);
    expect(state["num_batches_tracked"]!.item()).toBe(0);
  });

  test("updates its state inside a checkpointed block as outside", async () => {
    const x = new Tensor("float32", [3, 2], new Rng(4).normals(6));
    const norm = new BatchNorm1d(2);
    const { params, state } = norm.init(new Rng(1));
    const step = async (checkpoint: boolean): Promise<[Tensor, TensorRecord, TensorRecord]> =>
      evaluate<[Tensor, TensorRecord, TensorRecord]>(
        await parityBackend(),
        (p: ValueRecord, s: ValueRecord, v: Value) =>
          valueAndGradWithAux((q: ValueRecord) => {
            const options = { training: true, checkpoint };
            const [y, next] = norm.apply(
              q,
              s,
              (context) => checkpointed(context, v, (input) => norm.forward(context, input)),
              options,
            );
            return [sum(mul(y, mul(y, v))), next] as const;
          })(p),
        params,
        state,
        x,
      );
    const [plain, again] = [await step(false), await step(true)];
    expect(again[0].item()).toBe(plain[0].item());
    for (const part of [1, 2] as const) {
      for (const [name, value] of Object.entries(plain[part])) {
        allclose(again[part][name]!, value, tolerance.float32, name);
      }
    }
    expect(again[1]["num_batches_tracked"]!.item()).toBe(1);
  });

  test("has the gradient of its formula in training", async () => {
    const rng = new Rng(2);
    const norm = new BatchNorm2d(2);
    const scale = [randomTensor(rng, [2]), randomTensor(rng, [2])];
    const state = [randomTensor(rng, [2]), randomTensor(rng, [2])];
    await checkGradient(
      (x, weight, bias) => {
        const lift = (t: Tensor): Value => x!.graph.lift(t);
        const running = {
          running_mean: lift(state[0]!),
          running_var: lift(state[1]!),
          num_batches_tracked: lift(Tensor.from([0], [], "int32")),
        };
        const context = norm.context({ weight: weight!, bias: bias! }, running, { training: true });
        return norm.forward(context, x!);
      },
      [randomTensor(rng, [2, 2, 3, 2]), ...scale],
    );
  });

  test("refuses one number per channel in training, and other ranks", async () => {
    const one = Tensor.zeros([1, 2], "float32");
    await expect(run(new BatchNorm1d(2), one, fresh(), { training: true })).rejects.toThrow(
      "batchNorm: training needs more than one number per channel, got (1, 2) — use a larger batch.",
    );
    await expect(run(new BatchNorm2d(2), one, fresh(), {})).rejects.toThrow(
      "batchNorm: needs 4 dimensions, got (1, 2).",
    );
    expect(() => new BatchNorm1d(2, { momentum: 0 })).toThrow(
      "batchNorm: momentum must be in (0, 1], got 0.",
    );
  });
});

test("LayerNorm and RmsNorm ignore the scale of their input", async () => {
  const x = new Tensor("float32", [2, 8], new Rng(5).normals(16));
  const larger = new Tensor(
    "float32",
    [2, 8],
    x.data.map((v) => 8 * v),
  );
  for (const norm of [new LayerNorm(8, { epsilon: 1e-12 }), new RmsNorm(8, { epsilon: 1e-12 })]) {
    const [[a], [b]] = [await run(norm, x, {}, {}), await run(norm, larger, {}, {})];
    allclose(b, a, tolerance.float32);
  }
});

interface ConvBnRecord extends TrainingRecord {
  readonly buffersAfter: RawTensors;
  readonly evalLogitsAfter: RawTensor;
}

/** The layers of `scripts/parity/convbn-train.py`. */
class ConvBn extends Module {
  readonly conv1 = this.child("conv1", new Conv2d(3, 4, 3, { stride: 2, padding: 1, bias: false }));
  readonly bn1 = this.child("bn1", new BatchNorm2d(4));
  readonly depthwise = this.child(
    "depthwise",
    new Conv2d(4, 4, 3, { padding: 1, groups: 4, bias: false }),
  );
  readonly bn2 = this.child("bn2", new BatchNorm2d(4, { epsilon: 1e-3, momentum: 0.2 }));
  readonly up = this.child("up", new ConvTranspose2d(4, 6, 4, { stride: 2, padding: 1 }));
  readonly gn = this.child("gn", new GroupNorm(2, 6));
  readonly fc = this.child("fc", new Linear(24, 5));

  forward(context: Context, x: Value): Value {
    const first = relu(this.bn1.forward(context, this.conv1.forward(context, x)));
    const second = relu(this.bn2.forward(context, this.depthwise.forward(context, first)));
    const wide = this.up.forward(context, second);
    const pooled = avgPool(maxPool(wide, { kernel: 2 }), { kernel: 2 });
    return this.fc.forward(context, reshape(this.gn.forward(context, pooled), [-1, 24]));
  }
}

test("a network with batch norm trains five AdamW steps as PyTorch does, running statistics too", async () => {
  const record = fixture<ConvBnRecord>("convbn-train");
  const model = new ConvBn();
  const specs = model.specs();
  const all = tensorsOf(record.weights);
  const pick = (names: Record<string, unknown>): TensorRecord =>
    Object.fromEntries(Object.keys(names).map((name) => [name, all[name]!]));
  expect(Object.keys({ ...specs.params, ...specs.state }).sort()).toEqual(Object.keys(all).sort());
  const training = { training: true };
  const replayed = await replay(
    record,
    (p, s, x) => {
      const forward = (context: Context): Value =>
        crossEntropy(model.forward(context, x["images"]!), x["labels"]!);
      return model.apply(p, s, forward, training);
    },
    { params: pick(specs.params), state: pick(specs.state) },
  );
  expectRecorded(record, replayed);
  for (const [name, raw] of Object.entries(record.buffersAfter)) {
    allclose(replayed.state[name]!, tensorOf(raw), tolerance.float32, name);
  }
  const logits = await evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, s: ValueRecord, x: Value) =>
      model.apply(p, s, (context) => model.forward(context, x))[0],
    replayed.params,
    replayed.state,
    tensorOf(record.inputs["images"]!),
  );
  expect(relativeDifference(logits, tensorOf(record.evalLogitsAfter))).toBeLessThan(
    tolerance.float32,
  );
});
