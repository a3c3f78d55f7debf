import { describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { tinyConfigs } from "../../test/support/tiny-encoder.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { grad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/example.ts";
import { memoryPreferences, memorySet } from "../data/set.ts";
import { taskSet } from "../data/task-examples.ts";
import { OptionError } from "../errors.ts";
import { div } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { families } from "../models/families.ts";
import { Llama } from "../models/llama.ts";
import type { Seq2SeqModel } from "../models/model.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import { prepareScene } from "./prepare.ts";
import { seq2seq } from "./tasks/seq2seq.ts";
import { quantizeModel, traineeOf } from "./trainee.ts";

const backend = await nodeOrt({ threads: 1 });
const model = new Llama({
  vocabSize: 20,
  dModel: 16,
  dFeedForward: 32,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 24,
  initializerRange: 0.2,
});
const { params } = model.init(new Rng(1));
const rng = new Rng(3);
const examples: Example[] = Array.from({ length: 7 }, (_, i) => ({
  ids: Int32Array.from(rng.fold(i).permutation(3 + 2 * i)),
  mask: Uint8Array.from({ length: 3 + 2 * i }, (_v, at) => (at > 1 ? 1 : 0)),
}));
const set = memorySet(examples);
const layers = [
  "model.layers.0.self_attn.q_proj",
  "model.layers.0.self_attn.k_proj",
  "model.layers.1.mlp.down_proj",
];

/** A layer's input for one text without padding. */
async function directly(ids: Int32Array, layer: string): Promise<Tensor> {
  return evaluate<Tensor>(
    backend,
    ((values: ValueRecord, x: Value) => {
      let found: Value | undefined;
      const sites = new Map<Module, SiteFn>([
        [
          model.targets.get(layer)!,
          (input, output) => {
            found = input;
            return output;
          },
        ],
      ]);
      model.forward(model.context(values, {}, { sites }), x);
      return found!;
    }) as never,
    params,
    new Tensor("int32", [1, ids.length], Int32Array.from(ids)),
  );
}

async function all(
  found: AsyncIterable<Readonly<Record<string, Tensor<"float32">>>>,
): Promise<Readonly<Record<string, Tensor<"float32">>>[]> {
  const parts = [];
  for await (const part of found) parts.push(part);
  return parts;
}

/** Rows of a matrix in an order that does not depend on where they stand. */
const sorted = (tensors: readonly Tensor[]): number[][] =>
  tensors
    .flatMap((tensor) => {
      const width = tensor.shape[1]!;
      const numbers = Array.from(tensor.numbers()).map((x) => Math.round(x * 1e4) / 1e4 + 0);
      return Array.from({ length: tensor.shape[0]! }, (_, i) =>
        numbers.slice(i * width, (i + 1) * width),
      );
    })
    .sort((a, b) => (a.join() < b.join() ? -1 : 1));

describe("inputs of layers", () => {
  it("are those of each token of the data, padding left out", async () => {
    const scene = prepareScene(traineeOf(model, params), set, backend, { batchSize: 3 });
    const found = await all(scene.inputs(layers));
    expect(found).toHaveLength(3);
    const tokens = examples.reduce((sum, { ids }) => sum + ids.length - 1, 0);
    for (const layer of layers) {
      const wanted = await Promise.all(
        examples.map(({ ids }) => directly(ids.subarray(0, -1), layer)),
      );
      const rows = sorted(found.map((part) => part[layer]!));
      expect(rows).toHaveLength(tokens);
      const expected = sorted(wanted);
      rows.forEach((row, i) => {
        const off = row.map((x, at) => Math.abs(x - expected[i]![at]!));
        expect(Math.max(...off)).toBeLessThan(2e-4);
      });
    }
  });

  it("begin anew at each call, and are one tensor where layers read the same", async () => {
    const scene = prepareScene(traineeOf(model, params), set, backend, { batchSize: 4, seed: 5 });
    const [first, again] = [await all(scene.inputs(layers)), await all(scene.inputs(layers))];
    expect(first.map((part) => [...part[layers[2]!]!.data])).toEqual(
      again.map((part) => [...part[layers[2]!]!.data]),
    );
    expect(first[0]![layers[0]!]).toBe(first[0]![layers[1]!]);
  });

  it("of preferences are those of the better answers", async () => {
    const pairs = memoryPreferences({
      chosen: examples.slice(0, 3),
      rejected: examples.slice(3, 6),
    });
    const scene = prepareScene(traineeOf(model, params), pairs, backend);
    const [part] = await all(scene.inputs([layers[2]!]));
    const tokens = examples.slice(0, 3).reduce((sum, { ids }) => sum + ids.length - 1, 0);
    expect(part![layers[2]!]!.shape).toEqual([tokens, 32]);
  });

  it("leave the padding of sources and of answers out", async () => {
    const t5 = families["t5"]!(tinyConfigs["t5"]!) as Seq2SeqModel;
    const weights = t5.init(new Rng(7)).params;
    const made = [
      [3, 9],
      [8, 2],
      [5, 5],
    ].map(([source, target]) => ({
      source: Int32Array.from({ length: source! }, (_, i) => i + 5),
      target: Int32Array.from({ length: target! }, (_, i) => i + 6),
      isCut: false,
    }));
    const pairs = taskSet(made, ({ source, target }) => ({
      length: source.length,
      loss: target.length,
      all: [source, target],
    }));
    const objective = seq2seq(t5);
    const scene = prepareScene(
      { model: t5, frozen: {}, trained: weights, objective },
      pairs,
      backend,
    );
    const own = "decoder.block.1.layer.0.SelfAttention.q";
    const crossed = "decoder.block.1.layer.1.EncDecAttention.k";
    const read = "encoder.block.0.layer.0.SelfAttention.q";
    const [part] = await all(scene.inputs([own, crossed, read]));
    expect(part![own]!.shape).toEqual([16, 32]);
    expect(part![crossed]!.shape).toEqual([16, 32]);
    expect(part![read]!.shape).toEqual([16, 32]);
    // As many, but not the same: sums over rows tell them apart.
    expect(part![own]!.data).not.toEqual(part![crossed]!.data);
  });

  it("work beside weights of 4 bits", async () => {
    const packed = quantizeModel(model, params, { bits: 4, blockSize: 16 });
    const scene = prepareScene(
      { model, frozen: packed.params, trained: {}, form: packed.context },
      set,
      backend,
    );
    const [part] = await all(scene.inputs([layers[0]!]));
    expect(part![layers[0]!]!.shape[1]).toBe(16);
    await expect(scene.gradients([`${layers[0]}.weight`], 1)).rejects.toThrow(
      new OptionError(
        `prepare: "${layers[0]}.weight" is kept in 4 or 8 bits and has no gradient — load the model in full.`,
      ),
    );
  });

  it("are refused without data, and of what is no layer", async () => {
    const scene = prepareScene(traineeOf(model, params), undefined, backend);
    await expect(all(scene.inputs(layers))).rejects.toThrow(
      new OptionError("prepare: needs training data, and there is none — give --data."),
    );
    await expect(all(scene.inputs(["model.norm"]))).rejects.toThrow(
      new OptionError('prepare: "model.norm" is no linear layer of this llama.'),
    );
  });
});

describe("gradients of base parameters", () => {
  it("are those of the loss, summed over batches", async () => {
    const paths = ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"];
    const scene = prepareScene(traineeOf(model, params), set, backend, { batchSize: 7 });
    const found = await scene.gradients(paths, 2);
    expect(Object.keys(found)).toEqual(paths);
    const batch = causalLm.batch(examples, { rows: 7, maxLength: 24 });
    const total = batch.weights.data.reduce((a, b) => a + b, 0);
    const own = Object.fromEntries(paths.map((path) => [path, params[path]!]));
    const slope = await evaluate<TensorRecord>(
      backend,
      grad(((some: ValueRecord, rest: ValueRecord, parts: ValueRecord) => {
        const values = { ...rest, ...some };
        const context = model.context(values);
        const scene_ = { model, context, values, reference: () => context };
        return div(causalLm.loss(scene_, parts).sum, total);
      }) as never) as never,
      own,
      params,
      batch,
    );
    // One batch is all of the data, so that there is no second one.
    for (const path of paths) allclose(found[path]!, slope[path]!, tolerance.float32, path);
  });

  it("add up over batches", async () => {
    const path = "model.layers.0.self_attn.q_proj.weight";
    const scene = prepareScene(traineeOf(model, params), set, backend, { batchSize: 3 });
    const [one, two] = [await scene.gradients([path], 1), await scene.gradients([path], 2)];
    const rest = Array.from(two[path]!.numbers()).map((x, i) => x - one[path]!.numbers()[i]!);
    expect(Math.max(...rest.map(Math.abs))).toBeGreaterThan(1e-4);
    await expect(scene.gradients(["nothing"], 1)).rejects.toThrow(
      new OptionError('prepare: "nothing" is no parameter of this llama.'),
    );
  });
});
