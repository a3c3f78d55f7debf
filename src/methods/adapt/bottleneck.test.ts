import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { backend, kinds, noisy, tiny, tinyParams } from "../../../test/support/contract.ts";
import { adaptedContext } from "../../adapters/adapted.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeHost } from "../../host/node.ts";
import { Decoder } from "../../infer/decoder.ts";
import type { Value } from "../../ir/graph.ts";
import { families } from "../../models/families.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import {
  type BottleneckAdapter,
  type BottleneckOptions,
  bindBottleneck,
  bottleneckKind,
} from "./bottleneck.ts";

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-bottleneck-"));
afterAll(() => rm(scratch, { recursive: true }));
const ids = Tensor.from([5, 9, 7, 8, 6, 10], [2, 3], "int32");
const gpt2 = new Gpt2({ vocabSize: 20, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 24 });
const gpt2Params = gpt2.init(new Rng(1)).params;

function logits(
  model: LanguageModel,
  params: TensorRecord,
  adapter: BottleneckAdapter | undefined,
  own: TensorRecord = {},
): Promise<Tensor> {
  return evaluate<Tensor>(
    backend,
    (p: ValueRecord, q: ValueRecord, x: Value) => {
      const options = adapter ? adaptedContext(adapter, model, q) : {};
      return model.forward(model.context(p, {}, options), x).logits;
    },
    params,
    own,
    ids,
  );
}

/** What a site's function makes of an input, an output and a stream: one row of two numbers each. */
function atSite(
  options: BottleneckOptions,
  numbers: Readonly<Record<string, readonly number[]>>,
  [input, output, stream]: readonly [number[], number[], number[]],
): Promise<Tensor> {
  const narrow = new Gpt2({ vocabSize: 4, dModel: 2, nLayers: 1, nHeads: 1, maxPositions: 4 });
  const adapter = bindBottleneck(narrow, { ...options, width: 1 });
  const place = adapter.places.at(-1)!;
  const params = Object.fromEntries(
    Object.entries(adapter.init(new Rng(0))).map(([name, tensor]) => {
      const given = numbers[name.slice(place.name.length + 1)];
      return [name, given ? new Tensor("float32", tensor.shape, Float32Array.from(given)) : tensor];
    }),
  );
  const row = (values: number[]): Tensor => Tensor.from(values, [1, 2]);
  return evaluate<Tensor>(
    backend,
    (values: ValueRecord, x: Value, y: Value, h: Value) => {
      const site = adapter.context(values).sites!.get(place.module) as SiteFn;
      return site(x, y, narrow.context({}), { stream: h });
    },
    params,
    row(input),
    row(output),
    row(stream),
  );
}

describe("bottleneck adapters", () => {
  const numbers = {
    "down.weight": [1, 2],
    "down.bias": [0.5],
    "up.weight": [3, -1],
    "up.bias": [0.25, 0],
  };
  const rows = [
    [1, 1],
    [2, -0.5],
    [0, 4],
  ] as const satisfies readonly (readonly number[])[];
  const places = rows.map((row) => [...row]) as [number[], number[], number[]];

  it.each([
    // u = (2, -0.5): 2 - 1 + 0.5 = 1.5; up (4.5, -1.5) + (0.25, 0).
    ["pfeiffer", { scale: 1 }, [2 + 4.75, -0.5 - 1.5]],
    // u = (1, 1): 1 + 2 + 0.5 = 3.5; up (10.5, -3.5) + (0.25, 0), four times.
    ["parallel", {}, [2 + 4 * 10.75, -0.5 - 4 * 3.5]],
    // u = (0, 4), its norm off: 8.5; up (25.5, -8.5) + (0.25, 0), a tenth of it.
    ["adaptformer", { layerNorm: false }, [2 + 2.575, -0.5 - 0.85]],
    // The norm makes (-1, 1) of it: -1 + 2 + 0.5 = 1.5.
    ["adaptformer", {}, [2 + 0.475, -0.5 - 0.15]],
    // silu(1.5) = 1.5 / (1 + e^-1.5) = 1.226361.
    ["houlsby", {}, [2 + 3 * 1.226361 + 0.25, -0.5 - 1.226361]],
    ["houlsby", { activation: "tanh", bias: false }, [2 + 3 * 0.761594, -0.5 - 0.761594]],
  ] as const)("compute by hand what %s does (%o)", async (style, given, expected) => {
    const got = await atSite({ style, ...given }, numbers, places);
    allclose(got, Tensor.from([...expected], [1, 2]), 1e-4);
  });

  it("take a scale that is trained from its parameter", async () => {
    const got = await atSite(
      { style: "pfeiffer", trainScale: true },
      { ...numbers, scale: [-2] },
      places,
    );
    allclose(got, Tensor.from([2 - 2 * 4.75, -0.5 + 2 * 1.5], [1, 2]), 1e-5);
    const adapter = bindBottleneck(tiny, { style: "parallel", trainScale: true });
    const first = adapter.init(new Rng(0));
    const scales = Object.keys(first).filter((name) => name.endsWith(".scale"));
    expect(scales).toHaveLength(2);
    for (const name of scales) expect(first[name]!.numbers()[0]).toBe(4);
  });

  it("zero a share of the inner numbers in training, and scale the rest", async () => {
    const adapter = bindBottleneck(gpt2, { width: 4, dropout: 0.5, bias: false, scale: 1 });
    const [place] = adapter.places;
    const values: TensorRecord = Object.fromEntries(
      Object.entries(adapter.init(new Rng(0))).map(([name, { shape, size }]) => [
        name,
        new Tensor("float32", shape, new Float32Array(size).fill(1)),
      ]),
    );
    const run = (training: boolean): Promise<Tensor> =>
      evaluate<Tensor>(
        backend,
        (own: ValueRecord, x: Value, noise: Value) => {
          const context = gpt2.context({}, {}, { training, noise: () => noise });
          const site = adapter.context(own).sites!.get(place!.module) as SiteFn;
          return site(x, x, context, {});
        },
        values,
        Tensor.from(new Float32Array(16).fill(1), [1, 16]),
        Tensor.from([0.1, 0.6, 0.9, 0.2], [1, 4]),
      );
    // Each inner number is 16; two of four stay, doubled.
    expect((await run(false)).numbers()[0]).toBe(1 + 4 * 16);
    expect((await run(true)).numbers()[0]).toBe(1 + 2 * 32);
  });

  it.each(["houlsby", "pfeiffer", "parallel", "adaptformer"] as const)(
    "leave models as they are at first, and change them later (%s)",
    async (style) => {
      for (const [model, params] of [
        [tiny, tinyParams],
        [gpt2, gpt2Params],
      ] as const) {
        const adapter = bindBottleneck(model, { style, width: 3 });
        expect(adapter.places.length).toBe(style === "houlsby" ? 4 : 2);
        const first = adapter.init(new Rng(2));
        const plain = await logits(model, params, undefined);
        allclose(await logits(model, params, adapter, first), plain, 1e-6);
        const moved = await logits(model, params, adapter, noisy(first, 3, 0.3));
        const most = Math.max(
          ...Array.from(moved.numbers(), (x, i) => Math.abs(x - plain.numbers()[i]!)),
        );
        expect(most).toBeGreaterThan(1e-3);
      }
    },
  );

  it("sit on the blocks that are named, narrower than the stream by a factor", () => {
    const adapter = bindBottleneck(gpt2, { blocks: [1], reduction: 4 });
    expect(adapter.targets).toEqual(["transformer.h.1"]);
    const shapes = Object.entries(adapter.init(new Rng(0))).map(([name, { shape }]) => [
      name,
      shape,
    ]);
    const name = "base_model.model.transformer.h.1.bottleneck_ffn";
    expect(shapes).toEqual([
      [`${name}.down.weight`, [4, 16]],
      [`${name}.down.bias`, [4]],
      [`${name}.up.weight`, [16, 4]],
      [`${name}.up.bias`, [16]],
    ]);
  });

  it.each([
    ["a llama", tiny, { style: "houlsby", trainScale: true, layerNorm: true, blocks: [1] }],
    ["a gpt2", gpt2, { style: "adaptformer", activation: "gelu", scale: 0.5, dropout: 0.1 }],
    ["a vit", kinds.find(([family]) => family === "vit")![1], { width: 5, bias: false }],
    ["a bert", kinds.find(([family]) => family === "bert")![1], { style: "parallel" }],
  ] as const)("are the same after they were saved and loaded (%s)", async (name, model, given) => {
    const adapter = bindBottleneck(model, given as BottleneckOptions);
    const params = noisy(adapter.init(new Rng(2)), 3);
    const folder = join(scratch, name);
    await saveAdapter(files, folder, adapter, params);
    const again = await loadAdapter(files, folder, model, [bottleneckKind]);
    expect(again.adapter.config()).toEqual(adapter.config());
    expect(Object.keys(again.params)).toEqual(Object.keys(params));
    for (const [key, tensor] of Object.entries(params)) {
      expect(again.params[key]!.numbers()).toEqual(tensor.numbers());
    }
  });

  it("decode with a cache as without one", async () => {
    const adapter = bindBottleneck(tiny, { style: "houlsby", width: 4 });
    const params = noisy(adapter.init(new Rng(2)), 3, 0.3);
    const decoder = new Decoder(tiny, tinyParams, backend, { adapter: { adapter, params } });
    try {
      const [made] = await decoder.generate([Int32Array.of(5, 9, 7)], {
        maxNewTokens: 1,
        temperature: 0,
      });
      const all = Array.from((await logits(tiny, tinyParams, adapter, params)).numbers());
      const third = all.slice(2 * 20, 3 * 20);
      expect([...made!]).toEqual([third.indexOf(Math.max(...third))]);
      const [more] = await decoder.generate([Int32Array.of(5, 9, 7)], {
        maxNewTokens: 6,
        temperature: 0,
      });
      const [rest] = await decoder.generate([Int32Array.of(5, 9, 7, ...more!.subarray(0, 3))], {
        maxNewTokens: 3,
        temperature: 0,
      });
      expect([...rest!]).toEqual([...more!.subarray(3)]);
    } finally {
      await decoder.release();
    }
  });

  it("refuse what does not fit, by a sentence", () => {
    expect(() => bindBottleneck(tiny, { blocks: [0, 2] })).toThrow(
      "bottleneck: blocks must name some of 0 to 1, each once, got 2.",
    );
    expect(() => bindBottleneck(tiny, { blocks: [1, 1] })).toThrow(
      "bottleneck: blocks must name some of 0 to 1, each once, got 1.",
    );
    expect(() => bindBottleneck(tiny, { blocks: [] })).toThrow(
      "bottleneck: blocks must name some of 0 to 1, each once, got none.",
    );
    expect(() => bindBottleneck(tiny, { style: "sideways" } as never)).toThrow(
      `bottleneck: style must be houlsby or pfeiffer or parallel or adaptformer, got "sideways".`,
    );
    const mamba = families["mamba"]!({
      model_type: "mamba",
      ...{ vocab_size: 20, hidden_size: 8, state_size: 4, num_hidden_layers: 1 },
      ...{ expand: 2, conv_kernel: 3, time_step_rank: 2 },
    });
    expect(() => bindBottleneck(mamba)).toThrow(
      "bottleneck: a mamba has no blocks of attention and feed-forward layers — take an adapter of single layers, as lora.",
    );
    const adapter = bindBottleneck(tiny);
    expect(() => adapter.merge({}, {})).toThrow(
      "bottleneck: cannot be merged — what stands between its layers is not linear; use it beside the model.",
    );
    const read = (change: object): unknown =>
      bottleneckKind.read({ ...adapter.config(), ...change } as never, "x", tiny);
    expect(() => read({ bias: 1 })).toThrow("x: bias must be true or false, got 1.");
    expect(() => read({ width: "wide" })).toThrow(`x: width must be a number, got "wide".`);
    expect(() => read({ target_modules: ["q_proj"] })).toThrow(
      `x: target_modules ["q_proj"] is not supported.`,
    );
  });
});
