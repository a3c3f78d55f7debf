import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectGradients,
  numbersByRule,
  paramsByRule,
  type ShortGradient,
} from "../../test/support/by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  relativeDifference,
  tensorOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { lora } from "../adapters/lora.ts";
import { grad, valueAndGrad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { crossEntropy, type TensorRecord, type ValueRecord } from "../nn/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { configText, parseConfig } from "./config.ts";
import { families } from "./families.ts";
import { loadModel, saveModel } from "./folder.ts";
import { Mamba, mambaFromConfig } from "./mamba.ts";
import { type Mamba2, mamba2FromConfig } from "./mamba2.ts";
import type { ForwardOptions, LanguageModel } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

interface Case {
  readonly config: Json;
  readonly newConfig: Json;
  readonly inputs: { readonly ids: RawTensor };
  readonly logits: RawTensor;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
  readonly state: RawTensors;
  readonly lora?: {
    readonly targets: readonly string[];
    readonly names: readonly string[];
    readonly logits: RawTensor;
  };
}

const records = ["mamba", "mamba2"].flatMap((family) =>
  Object.entries(fixture<{ cases: Record<string, Case> }>(family).cases).map(
    ([name, record]) => [`${family}, ${name}`, record] as const,
  ),
);
const modelOf = (config: Json): LanguageModel =>
  families[config["model_type"] as string]!(config) as LanguageModel;

type Run = { readonly logits: Tensor; readonly state: TensorRecord };

/** A forward pass on the rows as they are. */
async function run(
  model: LanguageModel,
  params: TensorRecord,
  ids: Tensor,
  options: Readonly<Record<string, Tensor | TensorRecord>> = {},
): Promise<Run> {
  const { logits, state } = await evaluate<Run>(
    await parityBackend(),
    (p: ValueRecord, x: Value, more: ForwardOptions) => {
      const result = model.forward(model.context(p), x, more);
      return { logits: result.logits, state: result.state! };
    },
    params,
    ids,
    options,
  );
  return { logits: logits.reshape([...ids.shape, model.sizes.vocabSize]), state };
}

function columns(ids: Tensor, from: number, to: number): Tensor {
  const [rows, width] = ids.shape as [number, number];
  const taken = Array.from({ length: rows * (to - from) }, (_, i) => {
    const row = Math.floor(i / (to - from));
    return ids.data[row * width + from + (i % (to - from))] as number;
  });
  return Tensor.from(taken, [rows, to - from], "int32");
}

const values = (x: Tensor): number[] => Array.from(x.numbers());

/** One row's logits, (T, V), of the first `length` tokens. */
function rowOf(logits: Tensor, row: number, from: number, length: number): Tensor {
  const [, steps, width] = logits.shape as [number, number, number];
  const start = (row * steps + from) * width;
  return Tensor.from(values(logits).slice(start, start + length * width), [length, width]);
}

const { files } = nodeHost();
let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-mamba-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

describe.each(records)("%s of transformers", (name, record) => {
  const model = modelOf(record.config);
  const params = paramsByRule(model);
  const ids = tensorOf(record.inputs.ids);
  const inputs = columns(ids, 0, 11);

  test("has its logits, and its state after the last token", async () => {
    const { logits, state } = await run(model, params, inputs);
    expect(relativeDifference(logits, tensorOf(record.logits))).toBeLessThan(tolerance.float32);
    expect(Object.keys(state)).toEqual(Object.keys(record.state));
    for (const [part, expected] of Object.entries(record.state)) {
      expect(state[part]!.shape.slice(1), part).toEqual(model.stateShapes![part]);
      expect(relativeDifference(state[part]!, tensorOf(expected)), part).toBeLessThan(
        tolerance.float32,
      );
    }
  });

  test("has its loss and the gradient of every parameter, also when blocks are checkpointed", async () => {
    for (const checkpoint of [false, true]) {
      const [loss, gradients] = await evaluate<readonly [Tensor, TensorRecord]>(
        await parityBackend(),
        (p: ValueRecord, x: Value) =>
          valueAndGrad((q: ValueRecord) => {
            const context = model.context(q, {}, { checkpoint });
            const { logits } = model.forward(context, slice(x, 1, 0, -1));
            return crossEntropy(logits, reshape(slice(x, 1, 1), [-1]));
          })(p),
        params,
        ids,
      );
      expect(Math.abs(loss.item() - record.loss) / record.loss).toBeLessThan(tolerance.float32);
      expectGradients(gradients, record.gradients, tolerance.float32);
    }
  });

  test("goes on from its state as over the joined sequence, token by token too", async () => {
    const { logits } = await run(model, params, inputs);
    let { state } = await run(model, params, columns(inputs, 0, 4));
    const middle = await run(model, params, columns(inputs, 4, 8), { state });
    allclose(rowOf(middle.logits, 1, 0, 4), rowOf(logits, 1, 4, 4), 1e-5);
    state = middle.state;
    for (let t = 8; t < 11; t++) {
      const step = await run(model, params, columns(inputs, t, t + 1), { state });
      allclose(rowOf(step.logits, 0, 0, 1), rowOf(logits, 0, t, 1), 1e-5);
      state = step.state;
    }
  });

  test("is not changed by padding at the end, of whatever tokens", async () => {
    const lengths = Tensor.from([2, 7], [2], "int32");
    const { logits, state } = await run(model, params, inputs, { lengths });
    for (const [row, length] of [2, 7].entries()) {
      const alone = await run(model, params, columns(inputs, 0, length));
      allclose(rowOf(logits, row, 0, length), rowOf(alone.logits, row, 0, length), 1e-5);
      for (const [part, value] of Object.entries(alone.state)) {
        const size = value.size / 2;
        const own = (x: Tensor): Tensor =>
          Tensor.from(values(x).slice(row * size, (row + 1) * size));
        allclose(own(state[part]!), own(value), 1e-5, part);
      }
    }
  });

  test("keeps texts of a packed row apart", async () => {
    const positions = Tensor.from(
      [0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1],
      [2, 11],
      "int32",
    );
    const packed = await run(model, params, inputs, { positions });
    for (const [row, from, to] of [
      [0, 0, 3],
      [0, 3, 4],
      [0, 4, 11],
      [1, 0, 9],
      [1, 9, 11],
    ] as const) {
      const alone = await run(model, params, columns(inputs, from, to));
      const own = rowOf(alone.logits, row, 0, to - from);
      allclose(rowOf(packed.logits, row, from, to - from), own, 1e-5, `${row}: ${from}`);
    }
  });

  test("has for packed texts the gradients of the texts apart", async () => {
    const positions = Tensor.from([0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 11], "int32");
    const [packed, apart] = await evaluate<readonly [TensorRecord, TensorRecord]>(
      await parityBackend(),
      (p: ValueRecord, x: Value, at: Value) => {
        const squares = (q: ValueRecord, ids: Value, options: ForwardOptions = {}): Value => {
          const { logits } = model.forward(model.context(q), ids, options);
          return sum(mul(logits, logits));
        };
        return [
          grad((q: ValueRecord) => squares(q, x, { positions: at }))(p),
          grad((q: ValueRecord) => add(squares(q, slice(x, 1, 0, 2)), squares(q, slice(x, 1, 2))))(
            p,
          ),
        ] as const;
      },
      params,
      Tensor.from(values(inputs).slice(0, 11), [1, 11], "int32"),
      positions,
    );
    for (const [path, gradient] of Object.entries(packed)) {
      expect(relativeDifference(gradient, apart[path]!), path).toBeLessThan(tolerance.float32);
    }
  });

  test("is saved, loaded and read from transformers' own config to the same", async () => {
    const path = join(scratch, name.replace(", ", "-"));
    await saveModel(files, path, model, params);
    const loaded = await loadModel(files, path);
    expect(loaded.params).toEqual(params);
    expect(loaded.model.config).toEqual(model.config);
    expect(modelOf(record.newConfig).config).toEqual(model.config);
  });
});

describe.each(records.filter(([, record]) => record.lora))("%s with LoRA", (_, record) => {
  test("gives PEFT's logits, under its names", async () => {
    const model = modelOf(record.config);
    const { targets, names, logits } = record.lora!;
    expect(model.defaultTargets).toEqual(targets);
    expect(() => lora(model, { targetModules: ["out_proj"] })).toThrow("match no layer");
    const adapter = lora(model, { rank: 2, alpha: 4 });
    const own = Object.entries(adapter.init(new Rng(0)));
    expect(own.map(([path]) => path).sort()).toEqual(names);
    const numbers = own.map(([path, { shape }]) => [path, numbersByRule(path, shape)]);
    const ids = columns(tensorOf(record.inputs.ids), 0, 11);
    const adapted = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, q: ValueRecord, x: Value) =>
        model.forward(model.context(p, {}, adapter.context(q)), x).logits,
      paramsByRule(model),
      Object.fromEntries(numbers) as TensorRecord,
      ids,
    );
    const expected = tensorOf(logits).reshape(adapted.shape);
    expect(relativeDifference(adapted, expected)).toBeLessThan(tolerance.float32);
  });
});

describe("mambaFromConfig", () => {
  const config = records[0]![1].config;

  test("refuses what it does not compute", () => {
    const broken =
      (change: Json): (() => Mamba) =>
      () =>
        mambaFromConfig({ ...config, ...change });
    expect(broken({ hidden_act: "gelu" })).toThrow('mamba: hidden_act "gelu" is not supported.');
    expect(broken({ conv_kernel: 1 })).toThrow(
      'mamba: "conv_kernel" must be a whole number from 2 to 64, got 1.',
    );
    expect(broken({ time_step_rank: "large" })).toThrow(
      'mamba: "time_step_rank" must be a whole number from 1 to 16777216, got "large".',
    );
    expect(() => mamba2FromConfig({ hidden_size: 12, num_heads: 4, head_dim: 5 })).toThrow(
      "mamba2: num_heads 4 times head_dim 5 must be hidden_size 12 times expand 2.",
    );
    expect(() =>
      mamba2FromConfig({ hidden_size: 12, num_heads: 4, head_dim: 6, time_step_limit: [1, 0] }),
    ).toThrow(
      "mamba2: time_step_limit must be two numbers, the first from 0 and the second above it, got [1,0].",
    );
  });

  test("takes a step limit without end, and writes it as transformers does", () => {
    const sizes = { hidden_size: 12, num_heads: 4, head_dim: 6, n_groups: 1 };
    const read = (limit: string): Mamba2 =>
      mamba2FromConfig({
        ...sizes,
        ...parseConfig(`{"time_step_limit": ${limit}}`, "config.json"),
      });
    expect(read("[0.0, Infinity]").config).not.toHaveProperty("time_step_limit");
    expect(configText(read("[1.0, Infinity]").config).replace(/\s/g, "")).toContain(
      '"time_step_limit":[1.0,{"__float__":"Infinity"}]',
    );
    expect(configText(read("[0, 2]").config).replace(/\s/g, "")).toContain(
      '"time_step_limit":[0.0,2.0]',
    );
  });

  test("refuses keys and values, and a mask of pairs without positions", async () => {
    const model = new Mamba({ vocabSize: 5, dModel: 4, nLayers: 1 });
    const { params } = model.init(new Rng(1));
    const ids = Tensor.from([0, 1], [1, 2], "int32");
    await expect(run(model, params, ids, { past: {} })).rejects.toThrow(
      "mamba: carries a state from token to token and has no keys and values — a program that takes them in, as ONNX export writes one, cannot be made of it.",
    );
    const mask = Tensor.from([1, 0, 1, 1], [1, 1, 2, 2], "bool");
    await expect(run(model, params, ids, { mask })).rejects.toThrow(
      "mamba: a recurrent model reads every token before it, a mask of pairs cannot be followed — give positions that begin each text at 0.",
    );
  });
});
