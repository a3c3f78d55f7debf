import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  relativeDifference,
  tensorOf,
} from "../../test/support/fixture.ts";
import { ruleNumbers, ruleWeights } from "../../test/support/rule-weights.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGradWithAux } from "../autodiff/grad.ts";
import type { Executable } from "../backend/backend.ts";
import { evaluate, spec, trace } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import type { Value } from "../ir/graph.ts";
import { concat, reshape, slice } from "../ir/layout.ts";
import { crossEntropy, type TensorRecord, type ValueRecord } from "../nn/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { configText, parseConfig } from "./config.ts";
import { families } from "./families.ts";
import { loadModel, saveModel } from "./folder.ts";
import type { LanguageModel } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** What is recorded of a gradient. */
interface Brief {
  readonly norm: number;
  /** Its product with the rule's numbers. */
  readonly product: number;
  readonly largest: number;
  readonly at: readonly number[];
  readonly values: readonly number[];
}

interface DecoderRecord {
  readonly config: Json;
  readonly newConfig: Json;
  readonly normMean: number;
  readonly inputs: { readonly ids: RawTensor };
  readonly logits: RawTensor;
  readonly early: RawTensor;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, Brief>>;
}

const cases = [
  "qwen2",
  "qwen3",
  "mistral",
  "gemma3",
  "phi3",
  "phi3-long",
  "gpt-neox",
  "gpt-neox-serial",
  "llama-bias",
  "llama-linear",
  "llama-dynamic",
  "llama-yarn",
  "llama-yarn-mscale",
  "llama-longrope",
];

const modelOf = (config: Json): LanguageModel =>
  families[config["model_type"] as string]!(config) as LanguageModel;
/** transformers calls GPT-NeoX's published embed_out lm_head. */
const nameOf = (path: string): string => path.replace(/^embed_out\./, "lm_head.");

async function logitsOf(
  model: LanguageModel,
  params: TensorRecord,
  ids: Tensor,
  positions?: Tensor,
): Promise<Tensor> {
  const flat = await evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, x: Value, at: Value[]) =>
      model.forward(model.context(p), x, at[0] ? { positions: at[0] } : {}).logits,
    params,
    ids,
    positions ? [positions] : [],
  );
  return flat.reshape([...ids.shape, model.sizes.vocabSize]);
}

/** The first `length` columns. */
function first(ids: Tensor, length: number): Tensor {
  const [rows, width] = ids.shape as [number, number];
  const taken = Array.from({ length: rows * length }, (_, i) => {
    return ids.data[Math.floor(i / length) * width + (i % length)] as number;
  });
  return Tensor.from(taken, [rows, length], "int32");
}

const { files } = nodeHost();
let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-causal-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function anyLength(model: LanguageModel, params: TensorRecord): Promise<Executable> {
  const traced = trace(
    ((p: ValueRecord, x: Value) => model.forward(model.context(p), x).logits) as never,
    [params, spec(["rows", "length"], "int32")],
  );
  return (await parityBackend()).load(traced.program);
}

describe.each(cases)("%s of transformers", (name) => {
  const record = fixture<DecoderRecord>(`decoders/${name}`);
  const model = modelOf(record.config);
  const params = ruleWeights(model.init(new Rng(0)).params, record.normMean, nameOf);
  const ids = tensorOf(record.inputs.ids);
  const inputs = first(ids, ids.shape[1]! - 1);

  test("has its parameters", () => {
    const names = Object.keys(model.specs().params).map(nameOf);
    expect(names.sort()).toEqual(Object.keys(record.gradients).sort());
  });

  test("has its logits, for long and short sequences", async () => {
    const long = await logitsOf(model, params, inputs);
    expect(relativeDifference(long, tensorOf(record.logits))).toBeLessThan(tolerance.float32);
    const short = await logitsOf(model, params, first(ids, 5));
    expect(relativeDifference(short, tensorOf(record.early))).toBeLessThan(tolerance.float32);
  });

  test("has its loss and the gradient of every parameter", async () => {
    const [loss, , gradients] = await evaluate<readonly [Tensor, Tensor, TensorRecord]>(
      await parityBackend(),
      (p: ValueRecord, x: Value) =>
        valueAndGradWithAux((q: ValueRecord) => {
          const { logits } = model.forward(model.context(q), slice(x, 1, 0, -1));
          return [crossEntropy(logits, reshape(slice(x, 1, 1), [-1])), logits] as const;
        })(p),
      params,
      ids,
    );
    expect(Math.abs(loss.item() - record.loss) / record.loss).toBeLessThan(tolerance.float32);
    for (const [path, gradient] of Object.entries(gradients)) {
      const { norm, product, largest, at, values } = record.gradients[nameOf(path)]!;
      const along = ruleNumbers(`${nameOf(path)}:gradient`, gradient.size);
      const numbers = Array.from(gradient.numbers());
      const within = (actual: number, expected: number, size: number): void => {
        expect(Math.abs(actual - expected), path).toBeLessThan(1e-4 * size);
      };
      within(Math.hypot(...numbers), norm, norm);
      within(
        numbers.reduce((sum, g, i) => sum + g * along[i]!, 0),
        product,
        norm,
      );
      at.forEach((index, i) => {
        within(numbers[index]!, values[i]!, largest);
      });
    }
  });

  test("can be traced for any length", async () => {
    const length = Math.min(inputs.shape[1]!, model.sizes.maxPositions);
    const traced = await anyLength(model, params);
    for (const ids of [first(inputs, 4), first(inputs, length)]) {
      const [logits] = await traced.run([...Object.values(params), ids]);
      const expected = await logitsOf(model, params, ids);
      allclose((logits as Tensor).reshape(expected.shape), expected, tolerance.float32);
    }
    await traced.release();
  });

  test("is the same by transformers' newer config, and by its own", async () => {
    const expected = await logitsOf(model, params, inputs);
    for (const config of [record.newConfig, model.config]) {
      const other = modelOf(config);
      expect(other.config).toEqual(model.config);
      expect(await logitsOf(other, params, inputs)).toEqual(expected);
    }
  });

  test("is saved and loaded to the same, with fields that it does not know", async () => {
    const path = join(scratch, name);
    const config = { ...record.config, a_field_of_others: { kept: [1, null] } };
    await saveModel(files, path, model, params, { config });
    const loaded = await loadModel(files, path);
    expect(loaded.params).toEqual(params);
    expect(loaded.config).toEqual({ ...config, dtype: "float32" });
    expect(loaded.model.config).toEqual(model.config);
  });

  test("gives with a past what it gives over the joined sequence", async () => {
    const [rows, length] = inputs.shape as [number, number];
    // Where angles depend on the length, all of it is below the limit.
    const n = Math.min(length, model.cacheLimit ?? length, model.sizes.maxPositions);
    const whole = first(inputs, n);
    const [late, joined] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, x: Value, mask: Value, early: Value, positions: Value) => {
        const context = model.context(p);
        const { present } = model.forward(context, slice(x, 1, 0, n - 3), { positions: early });
        const options = { past: { layers: present, mask }, positions };
        const rest = model.forward(context, slice(x, 1, n - 3), options);
        const at = { positions: concat([early, positions], 1) };
        const all = model.forward(context, x, at).logits;
        const vocab = model.sizes.vocabSize;
        return [
          reshape(rest.logits, [rows, 3, vocab]),
          slice(reshape(all, [rows, n, vocab]), 1, n - 3),
        ];
      },
      params,
      whole,
      Tensor.from(new Float32Array(rows * (n - 3)), [rows, 1, 1, n - 3]),
      positionsFrom(rows, 0, n - 3),
      positionsFrom(rows, n - 3, 3),
    );
    allclose(late, joined, tolerance.float32);
  });
});

describe("configText", () => {
  test("writes a point where transformers wants a float, at any depth", () => {
    const text = configText({
      initializer_factor: 1,
      rope_theta: 10000,
      text_config: { final_logit_softcapping: 30, layer_norm_eps: 1e-5, note: "1" },
    });
    expect(JSON.parse(text)).toEqual({
      initializer_factor: 1,
      rope_theta: 10000,
      text_config: { final_logit_softcapping: 30, layer_norm_eps: 1e-5, note: "1" },
    });
    expect(text.match(/: [0-9.e-]+/g)).toEqual([": 1.0", ": 10000", ": 30.0", ": 0.00001"]);
  });

  test("writes numbers again as they were written, and no other string as a number", () => {
    const text =
      '{"a":1.0,"b":[1e-05,-0.50,10000.0,3],"hidden_size":7,"init_std":2,"note":"1.0","c":"\\u0001x"}';
    const config = parseConfig(text, "config.json", { asWritten: true });
    expect(configText(config).replace(/\s/g, "")).toBe(
      text.replace('"init_std":2', '"init_std":2.0'),
    );
  });

  test("reads and writes a number without end as transformers does", () => {
    // json.dumps of Python writes the first, PreTrainedConfig.to_json_string the second.
    const old = '{"time_step_limit": [0.0, Infinity]}';
    const now = '{"time_step_limit":[0.0,{"__float__":"Infinity"}]}';
    for (const asWritten of [false, true]) {
      const config = parseConfig(old, "config.json", { asWritten });
      expect(configText(config).replace(/\s/g, "")).toBe(now);
    }
    expect(() => parseConfig('{"hidden_size": -Infinity}', "config.json")).toThrow(
      'config.json: invalid JSON at byte 17: a digit is needed, got "I".',
    );
    expect(() => parseConfig("[]", "config.json")).toThrow("config.json: must be an object.");
  });
});

function positionsFrom(rows: number, start: number, length: number): Tensor {
  const ids = Array.from({ length: rows * length }, (_, i) => start + (i % length));
  return Tensor.from(ids, [rows, length], "int32");
}
