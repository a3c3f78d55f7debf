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
import type { Value } from "../ir/graph.ts";
import { concat, reshape, slice } from "../ir/layout.ts";
import { asRows, dot } from "../ir/linear.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Embedding } from "./embedding.ts";
import { crossEntropy } from "./losses.ts";
import { Mamba2Mixer, MambaMixer, type MixerOptions, type MixerState } from "./mamba.ts";
import { type Context, Module, ModuleList, type ValueRecord } from "./module.ts";
import { RmsNorm } from "./norm.ts";

type Mixer = Module & {
  forward(context: Context, x: Value, options?: MixerOptions): { y: Value; state: MixerState };
};

class Block extends Module {
  readonly norm: RmsNorm;
  readonly mixer: Mixer;

  constructor(dModel: number, mixer: Mixer) {
    super();
    this.norm = this.child("norm", new RmsNorm(dModel, { epsilon: 1e-5 }));
    this.mixer = this.child("mixer", mixer);
  }

  forward(context: Context, x: Value): Value {
    return add(x, this.mixer.forward(context, this.norm.forward(context, x)).y);
  }
}

class Backbone extends Module {
  readonly embeddings = this.child("embeddings", new Embedding(29, 8));
  readonly layers: ModuleList<Block>;
  readonly norm_f: RmsNorm;

  constructor(mixer: () => Mixer) {
    super();
    const blocks = [0, 1].map(() => new Block(8, mixer()));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm_f = this.child("norm_f", new RmsNorm(8, { epsilon: 1e-5 }));
  }
}

/** transformers' MambaForCausalLM with tied embeddings. */
class Model extends Module {
  readonly backbone: Backbone;

  constructor(mixer: () => Mixer) {
    super();
    this.backbone = this.child("backbone", new Backbone(mixer));
  }

  forward(context: Context, ids: Value): Value {
    const { embeddings, layers, norm_f } = this.backbone;
    let x = embeddings.forward(context, ids);
    for (const block of layers.items) x = block.forward(context, x);
    const rows = asRows(norm_f.forward(context, x));
    return dot(rows, context.get(embeddings.weight), { transB: true });
  }
}

const records = fixture<{ mamba: TrainingRecord; mamba2: TrainingRecord }>("ssm-train");
const models = {
  mamba: new Model(() => new MambaMixer(8, { stateSize: 4, rank: 2, chunk: 3 })),
  mamba2: new Model(() => new Mamba2Mixer(8, { stateSize: 4, headDim: 4, groups: 2, chunk: 4 })),
};

describe.each(["mamba", "mamba2"] as const)("%s", (kind) => {
  const [record, model] = [records[kind], models[kind]];

  test("names the parameters of transformers' checkpoints", () => {
    expect(Object.keys(model.specs().params).sort()).toEqual(Object.keys(record.weights).sort());
  });

  test("gives transformers' logits", async () => {
    const logits = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, ids: Value) => model.forward(model.context(p), slice(ids, 1, 0, -1)),
      tensorsOf(record.weights),
      tensorOf(record.inputs["ids"]!),
    );
    const expected = tensorOf(record.logits).reshape([20, 29]);
    expect(relativeDifference(logits, expected)).toBeLessThan(tolerance.float32);
  });

  test("trains five AdamW steps as PyTorch does", async () => {
    const replayed = await replay(record, (p, _, x) => {
      const ids = x["ids"]!;
      const logits = model.forward(model.context(p), slice(ids, 1, 0, -1));
      return [crossEntropy(logits, reshape(slice(ids, 1, 1), [-1])), {}];
    });
    expectRecorded(record, replayed);
  });

  test("token by token gives what it gives over the sequence", async () => {
    const mixer = model.backbone.layers.items[0]!.mixer;
    const { params } = mixer.init(new Rng(1));
    const [whole, steps] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, x: Value) => {
        const context = mixer.context(p);
        const first = mixer.forward(context, slice(x, 1, 0, 3));
        const ys = [first.y];
        let state = first.state;
        for (let t = 3; t < 6; t++) {
          const next = mixer.forward(context, slice(x, 1, t, t + 1), { state });
          ys.push(next.y);
          state = next.state;
        }
        return [mixer.forward(context, x).y, concat(ys, 1)];
      },
      params,
      new Tensor("float32", [2, 6, 8], new Rng(2).normals(96)),
    );
    allclose(steps, whole, tolerance.float32);
  });
});

test("Mamba-2 refuses heads that do not divide its channels", () => {
  expect(() => new Mamba2Mixer(8, { stateSize: 4, headDim: 5 })).toThrow(
    "mamba2: headDim 5 must divide 16 inner channels into heads, and 1 groups the heads.",
  );
});
