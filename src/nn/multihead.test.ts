import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectRecorded,
  fixture,
  parityBackend,
  relativeDifference,
  replay,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { add } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { concat, expand, reshape, slice, swapAxes } from "../ir/layout.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Conv2d } from "./conv.ts";
import { zeros } from "./init.ts";
import { Linear } from "./linear.ts";
import { crossEntropy } from "./losses.ts";
import { type Context, Module, ModuleList, type TensorRecord, type ValueRecord } from "./module.ts";
import { MultiHeadAttention, type MultiHeadInputs, type MultiHeadOptions } from "./multihead.ts";
import { LayerNorm } from "./norm.ts";
import { ropeTable } from "./rope.ts";

async function run(
  layer: MultiHeadAttention,
  params: TensorRecord,
  x: Tensor,
  inputs: (x: Value) => MultiHeadInputs = () => ({}),
): Promise<Tensor> {
  return evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, v: Value) => layer.forward(layer.context(p), v, inputs(v)),
    params,
    x,
  );
}

function draw(seed: number, ...shape: number[]): Tensor<"float32"> {
  return new Tensor("float32", shape, new Rng(seed).normals(shape.reduce((a, b) => a * b)));
}

describe("MultiHeadAttention", () => {
  const causal = (options: MultiHeadOptions = {}): MultiHeadAttention =>
    new MultiHeadAttention(8, 4, { causal: true, ...options });

  test("does not see the future", async () => {
    const layer = causal();
    const { params } = layer.init(new Rng(1));
    const x = draw(2, 1, 5, 8);
    const changed = x.clone();
    changed.data.fill(9, 24);
    const [a, b] = [await run(layer, params, x), await run(layer, params, changed)];
    allclose(
      Tensor.from((b.data as Float32Array).subarray(0, 24)),
      Tensor.from((a.data as Float32Array).subarray(0, 24)),
      0,
    );
  });

  test("with a window of 1 sees itself alone", async () => {
    const layer = causal({ window: 1 });
    const { params } = layer.init(new Rng(1));
    const x = draw(2, 2, 3, 8);
    const [y, alone] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, v: Value) => {
        const context = layer.context(p);
        const values = layer.v_proj.forward(context, v);
        return [layer.forward(context, v), layer.out_proj.forward(context, values)];
      },
      params,
      x,
    );
    allclose(y, alone, tolerance.float32);
  });

  test("does not depend on the order of keys without positions, but does with alibi", async () => {
    const params = new MultiHeadAttention(8, 4).init(new Rng(1)).params;
    const x = draw(2, 1, 4, 8);
    const memory = (v: Value, turned: boolean): MultiHeadInputs => ({
      memory: turned ? concat([slice(v, 1, 2), slice(v, 1, 0, 2)], 1) : v,
    });
    const distance = async (layer: MultiHeadAttention): Promise<number> => {
      const [a, b] = [
        await run(layer, params, x, (v) => memory(v, false)),
        await run(layer, params, x, (v) => memory(v, true)),
      ];
      return relativeDifference(b, a);
    };
    expect(await distance(new MultiHeadAttention(8, 4))).toBeLessThan(1e-5);
    expect(await distance(new MultiHeadAttention(8, 4, { alibi: true }))).toBeGreaterThan(1e-3);
  });

  test("reads keys of other features and fewer heads", async () => {
    const layer = new MultiHeadAttention(8, 4, { kvFeatures: 6, nKvHeads: 2, bias: false });
    const shapes = Object.fromEntries(
      Object.entries(layer.specs().params).map(([name, { shape }]) => [name, shape]),
    );
    expect(shapes).toEqual({
      "q_proj.weight": [8, 8],
      "k_proj.weight": [4, 6],
      "v_proj.weight": [4, 6],
      "out_proj.weight": [8, 8],
    });
    const memory = draw(3, 2, 5, 6);
    const y = await run(layer, layer.init(new Rng(1)).params, draw(2, 2, 3, 8), (v) => ({
      memory: v.graph.lift(memory),
    }));
    expect(y.shape).toEqual([2, 3, 8]);
  });

  test("turns queries and keys where a rotation is given", async () => {
    const layer = new MultiHeadAttention(8, 2);
    const { params } = layer.init(new Rng(1));
    const table = ropeTable({ headDim: 4, theta: 100, maxPositions: 8 }, 3);
    const x = draw(2, 1, 3, 8);
    const [plain, turned] = [
      await run(layer, params, x),
      await run(layer, params, x, () => ({ rotation: table })),
    ];
    expect(relativeDifference(turned, plain)).toBeGreaterThan(1e-3);
  });

  test("refuses heads that do not divide, and inputs that are not sequences", async () => {
    expect(() => new MultiHeadAttention(8, 3)).toThrow(
      "multiHeadAttention: dModel 8 must be a multiple of nHeads 3.",
    );
    expect(() => new MultiHeadAttention(8, 4, { nKvHeads: 3 })).toThrow(
      "multiHeadAttention: nHeads 4 must be a multiple of nKvHeads 3.",
    );
    const layer = causal();
    await expect(run(layer, layer.init(new Rng(1)).params, draw(1, 5, 8))).rejects.toThrow(
      "multiHeadAttention: needs (B, T, features), got (5, 8) and (5, 8).",
    );
  });
});

/** A block of torch.nn.TransformerEncoder with norm_first. */
class Block extends Module {
  readonly self_attn = this.child("self_attn", new MultiHeadAttention(8, 2));
  readonly linear1 = this.child("linear1", new Linear(8, 16));
  readonly linear2 = this.child("linear2", new Linear(16, 8));
  readonly norm1 = this.child("norm1", new LayerNorm(8));
  readonly norm2 = this.child("norm2", new LayerNorm(8));

  forward(context: Context, x: Value): Value {
    const y = add(x, this.self_attn.forward(context, this.norm1.forward(context, x)));
    const inner = gelu(this.linear1.forward(context, this.norm2.forward(context, y)));
    return add(y, this.linear2.forward(context, inner));
  }
}

class Encoder extends Module {
  readonly layers = this.child("layers", new ModuleList([new Block(), new Block()]));
}

/** The vision transformer of `scripts/parity/vit-train.py`. */
class Vit extends Module {
  readonly cls = this.parameter("cls", [1, 1, 8], zeros);
  readonly pos = this.parameter("pos", [1, 5, 8], zeros);
  readonly patch = this.child("patch", new Conv2d(3, 8, 4, { stride: 4 }));
  readonly encoder = this.child("encoder", new Encoder());
  readonly norm = this.child("norm", new LayerNorm(8));
  readonly head = this.child("head", new Linear(8, 5));

  forward(context: Context, images: Value): Value {
    const batch = images.shape[0]!;
    const patches = reshape(this.patch.forward(context, images), [batch, 8, 4]);
    const first = expand(context.get(this.cls), [batch, 1, 8]);
    let x = add(concat([first, swapAxes(patches)], 1), context.get(this.pos));
    for (const block of this.encoder.layers.items) x = block.forward(context, x);
    const rows = reshape(slice(this.norm.forward(context, x), 1, 0, 1), [batch, 8]);
    return this.head.forward(context, rows);
  }
}

describe("a vision transformer", () => {
  const record = fixture<TrainingRecord>("vit-train");
  const parts = ["q_proj", "k_proj", "v_proj"];

  /** torch stacks the rows of the three projections: in_proj_weight (3D, D), in_proj_bias (3D,). */
  function apart(tensors: TensorRecord): TensorRecord {
    return Object.fromEntries(
      Object.entries(tensors).flatMap(([name, tensor]): [string, Tensor][] => {
        const found = /^(.*)in_proj_(weight|bias)$/.exec(name);
        if (!found) return [[name, tensor]];
        const size = tensor.size / 3;
        return parts.map((part, i) => [
          `${found[1]}${part}.${found[2]}`,
          Tensor.from((tensor.data as Float32Array).slice(i * size, (i + 1) * size), [
            8,
            ...tensor.shape.slice(1),
          ]),
        ]);
      }),
    );
  }

  const raw = (tensors: TensorRecord): TrainingRecord["weights"] =>
    Object.fromEntries(
      Object.entries(tensors).map(([name, { shape, dtype, data }]) => [
        name,
        { shape, dtype, data: Array.from(data as Float32Array) },
      ]),
    );

  const model = new Vit();
  const params = apart(tensorsOf(record.weights));

  test("gives PyTorch's logits", async () => {
    expect(Object.keys(model.specs().params).sort()).toEqual(Object.keys(params).sort());
    const logits = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, x: Value) => model.forward(model.context(p), x),
      params,
      tensorOf(record.inputs["images"]!),
    );
    expect(relativeDifference(logits, tensorOf(record.logits))).toBeLessThan(tolerance.float32);
  });

  test("trains five Nesterov steps as PyTorch does", async () => {
    const replayed = await replay(
      record,
      (p, _, x) => {
        const logits = model.forward(model.context(p), x["images"]!);
        return [crossEntropy(logits, x["labels"]!, { labelSmoothing: 0.1 }), {}];
      },
      { params },
    );
    const split = (tensors: TrainingRecord["weights"]): TrainingRecord["weights"] =>
      raw(apart(tensorsOf(tensors)));
    expectRecorded(
      {
        ...record,
        gradients: split(record.gradients),
        finalWeights: split(record.finalWeights),
      },
      replayed,
    );
  });
});
