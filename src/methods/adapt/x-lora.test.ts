import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import {
  fixture,
  type RawTensor,
  type RawTensors,
  tensorOf,
} from "../../../test/support/fixture.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { type LoraOptions, lora, loraKind } from "../../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { nodeHost } from "../../host/node.ts";
import { Decoder } from "../../infer/decoder.ts";
import { probeLogits } from "../../infer/verify.ts";
import { loadModel } from "../../models/folder.ts";
import { Llama } from "../../models/llama.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { finetune } from "../../train/finetune.ts";
import { traineeOf } from "../../train/trainee.ts";
import { bindXLora, type Experts, mixExperts, type XLoraAdapter, xLoraKind } from "./x-lora.ts";
import { gatePrefix } from "./x-lora-gate.ts";
import type { XLoraOptions } from "./x-lora-options.ts";
import { effectiveExperts, tokenScalings } from "./x-lora-scalings.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-x-lora-"));
afterAll(() => rm(scratch, { recursive: true }));
const kinds = [loraKind, xLoraKind];

const model = new Llama({
  vocabSize: 20,
  dModel: 16,
  dFeedForward: 24,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 32,
  initializerRange: 0.3,
});
const base = model.init(new Rng(1)).params;
const random = (like: TensorRecord, seed: number, deviation = 0.3): TensorRecord =>
  Object.fromEntries(
    Object.entries(like).map(([name, { shape, size }]) => [
      name,
      new Tensor("float32", shape, new Rng(seed).fold(name).normals(size, deviation)),
    ]),
  );
const expert = (seed: number, options: LoraOptions): LoadedAdapter => {
  const adapter = lora(model, options);
  return { adapter, params: random(adapter.init(new Rng(0)), seed) };
};
const experts: Experts = {
  bio: expert(11, { rank: 2, alpha: 6, targetModules: ["q_proj", "down_proj"] }),
  law: expert(12, { rank: 3, alpha: 3, targetModules: ["q_proj", "v_proj"] }),
  art: expert(13, { rank: 1, alpha: 2, rankStabilized: true, targetModules: "all-linear" }),
};
type Mixed = LoadedAdapter & { readonly adapter: XLoraAdapter };
const mixed = (options: XLoraOptions = {}, seed = 21): Mixed => {
  const adapter = mixExperts(model, experts, options);
  return {
    adapter,
    params: random(adapter.init(new Rng(0)), seed, 0.6),
    buffers: adapter.initBuffers!(),
  };
};
const text = Tensor.from([3, 7, 1, 12, 5, 9, 2, 17, 4], [1, 9], "int32");
const logitsOf = (loaded?: LoadedAdapter, ids = text): Promise<Tensor> =>
  probeLogits(backend, model, base, ids, loaded);
const scalingsIn = (loaded: Mixed, ids = text): Promise<Tensor> =>
  tokenScalings(backend, model, base, loaded, ids);
/** The experts merged into the base, each counting as much as said. */
const mergedBy = (weights: Readonly<Record<string, number>>): TensorRecord => {
  let merged = { ...base };
  for (const [name, weight] of Object.entries(weights)) {
    const { adapter, params } = experts[name]!;
    const scaled = Object.fromEntries(
      Object.entries(params).map(([path, tensor]) => [
        path,
        path.includes("lora_B")
          ? new Tensor(
              "float32",
              tensor.shape,
              Float32Array.from(tensor.numbers(), (x) => x * weight),
            )
          : tensor,
      ]),
    );
    merged = { ...merged, ...adapter.merge(merged, scaled) };
  }
  return merged;
};
/** The gate's numbers such that its outputs are the same for every token. */
const constant = (loaded: Mixed, outputs: readonly number[]): Mixed => {
  const params = Object.fromEntries(
    Object.entries(loaded.params).map(([name, { shape, size }]) => [
      name,
      name.endsWith("bias")
        ? Tensor.from(
            Array.from({ length: size }, (_, i) => outputs[i % outputs.length]!),
            shape,
          )
        : Tensor.zeros(shape, "float32"),
    ]),
  );
  return { ...loaded, params };
};

describe("the mixture", () => {
  it("is the base where all scalings are zero", async () => {
    const none = constant(mixed({ softmax: false }), [0]);
    allclose(await logitsOf(none), await logitsOf(), 1e-5);
  });

  it("is each expert at its own scale, times its scaling and the global weight", async () => {
    // Experts in the order of their names: art, bio, law.
    const fixed = constant(mixed({ softmax: false, globalWeight: 2 }), [0.5, -0.25, 0.1]);
    const merged = mergedBy({ art: 1, bio: -0.5, law: 0.2 });
    expect(fixed.adapter.experts).toEqual(["art", "bio", "law"]);
    allclose(await logitsOf(fixed), await probeLogits(backend, model, merged, text), 2e-4);
  });

  it("counts all experts by the constant in the first pass, and none by default", async () => {
    const options: XLoraOptions = { softmax: false };
    const [plain, seen] = [mixed(options), mixed({ ...options, scalingPassValue: 0.5 })];
    const of = async (params: TensorRecord): Promise<Tensor> => {
      // What the gate makes of hidden states that a merged model has of its own.
      const alone = { ...plain, adapter: mixExperts(model, experts, options) };
      return tokenScalings(backend, model, params, alone, text);
    };
    allclose(await scalingsIn(seen), await of(mergedBy({ art: 0.5, bio: 0.5, law: 0.5 })), 2e-4);
    allclose(await scalingsIn(plain), await of(base), 1e-5);
  });
});

describe("scalings", () => {
  it("sum to one for each token and layer with softmax, and are not alike", async () => {
    const loaded = mixed({ layerwise: true, depth: 2, size: 12, temperature: 0.5 });
    const scalings = await scalingsIn(loaded);
    expect(scalings.shape).toEqual([9, 14, 3]);
    const numbers = scalings.numbers();
    for (let i = 0; i < numbers.length; i += 3) {
      expect(numbers[i]! + numbers[i + 1]! + numbers[i + 2]!).toBeCloseTo(1, 5);
    }
    expect(Math.abs(numbers[0]! - numbers[3]!)).toBeGreaterThan(1e-3);
    expect(Math.abs(numbers[0]! - numbers[3 * 14]!)).toBeGreaterThan(1e-3);
  });

  it("keep the k largest, the first of equal ones, and give them a softmax of their own", async () => {
    const outputs = [1, 3, 1];
    const of = async (options: XLoraOptions): Promise<number[]> =>
      Array.from((await scalingsIn(constant(mixed(options), outputs))).numbers()).slice(0, 3);
    expect(await of({ softmax: false, topK: 2 })).toEqual([1, 3, 0]);
    // e / (2 e + e³) = 0.1065, e³ / (2 e + e³) = 0.7870.
    const [one, three] = [Math.E, Math.E ** 3];
    const kept = await of({ topK: 2 });
    expect(kept[0]).toBeCloseTo(one / (2 * one + three), 5);
    expect(kept[2]).toBe(0);
    // 1 / (1 + e²) of the two that are kept.
    const own = await of({ softmax: false, topK: 2, softmaxTopK: true });
    expect(own[0]).toBeCloseTo(1 / (1 + Math.E ** 2), 5);
    expect(own[1]).toBeCloseTo(1 - 1 / (1 + Math.E ** 2), 5);
    expect(own[2]).toBe(0);
  });

  it("say how many experts count: exp of the entropy", () => {
    const scalings = Tensor.from([0.5, 0.5, 0, 1, 0, 0, 0, 0, 0, -2, 2, 2], [2, 2, 3]);
    const [first, second] = effectiveExperts(scalings);
    expect(first![0]).toBeCloseTo(2, 6);
    expect(first![1]).toBeCloseTo(1, 6);
    expect(second![0]).toBe(0);
    expect(second![1]).toBeCloseTo(3, 6);
  });
});

describe("time", () => {
  it("does not run backwards: a later token changes nothing before it", async () => {
    const loaded = mixed({ layerwise: true });
    const other = Tensor.from([...Array.from(text.numbers()).slice(0, 8), 11], [1, 9], "int32");
    const [one, two] = [await logitsOf(loaded), await logitsOf(loaded, other)];
    expect(Array.from(one.numbers()).slice(0, 8 * 20)).toEqual(
      Array.from(two.numbers()).slice(0, 8 * 20),
    );
    expect(Array.from(one.numbers()).slice(8 * 20)).not.toEqual(
      Array.from(two.numbers()).slice(8 * 20),
    );
    const [a, b] = [await scalingsIn(loaded), await scalingsIn(loaded, other)];
    expect(Array.from(a.numbers()).slice(0, 8 * 42)).toEqual(
      Array.from(b.numbers()).slice(0, 8 * 42),
    );
  });

  it("decodes with kept keys and values of both passes as without", async () => {
    const loaded = mixed({ layerwise: true, depth: 2, size: 8, scalingPassValue: 0.3 });
    const decoder = new Decoder(model, base, backend, { adapter: loaded });
    const prompts = [Int32Array.of(3, 7, 1), Int32Array.of(5, 2, 8, 4, 6)];
    const made = await decoder.complete(prompts, { maxNewTokens: 8, logprobs: 0 });
    await decoder.release();
    for (const [i, prompt] of prompts.entries()) {
      const ids = Int32Array.from([...prompt, ...made[i]!.tokens]);
      const whole = await logitsOf(loaded, new Tensor("int32", [1, ids.length], ids));
      const rows = whole.numbers();
      for (const [at, token] of made[i]!.tokens.entries()) {
        const row = Array.from({ length: 20 }, (_, v) => rows[(prompt.length + at - 1) * 20 + v]!);
        expect(row.indexOf(Math.max(...row))).toBe(token);
        const total = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
        expect(made[i]!.logprobs![at]!.logprob).toBeCloseTo(row[token]! - total, 3);
      }
    }
    // And what it says is not what the base says.
    const plain = new Decoder(model, base, backend);
    expect(await plain.generate(prompts, { maxNewTokens: 8 })).not.toEqual(
      made.map(({ tokens }) => tokens),
    );
    await plain.release();
  });
});

describe("training", () => {
  const examples = Array.from({ length: 8 }, (_, i) => ({
    ids: Int32Array.from([1 + i, 4, 9, 3 + i, 2]),
    mask: Uint8Array.of(0, 1, 1, 1, 1),
  }));
  const settings = { steps: 24, batchSize: 8, learningRate: 0.02, seed: 2, weightDecay: 0 };

  it("lets the loss fall by the gate alone: experts stay as they are", async () => {
    const loaded = mixed({ layerwise: true, depth: 2, size: 8, dropout: 0 });
    const before = Object.values(loaded.buffers!).map((tensor) => Array.from(tensor.numbers()));
    const trainee = traineeOf(model, base, loaded);
    expect(Object.keys(trainee.trained).every((name) => name.startsWith(gatePrefix))).toBe(true);
    const losses: number[] = [];
    const { params } = await finetune(trainee, examples, backend, {
      ...settings,
      onStep: ({ loss }) => losses.push(loss),
    });
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.05);
    for (const [name, tensor] of Object.entries(params)) {
      expect([name, Array.from(tensor.numbers())]).not.toEqual([
        name,
        Array.from(loaded.params[name]!.numbers()),
      ]);
    }
    expect(Object.values(loaded.buffers!).map((tensor) => Array.from(tensor.numbers()))).toEqual(
      before,
    );
  });

  it("takes the same steps where blocks are recomputed", async () => {
    const run = async (checkpoint: boolean): Promise<number[]> => {
      const losses: number[] = [];
      await finetune(traineeOf(model, base, mixed({ layerwise: true })), examples, backend, {
        ...settings,
        steps: 4,
        checkpoint,
        onStep: ({ loss }) => losses.push(loss),
      });
      return losses;
    };
    const [kept, again] = [await run(false), await run(true)];
    for (const [i, loss] of kept.entries()) expect(again[i]).toBeCloseTo(loss, 4);
  });

  it("trains the experts too where that is asked, and keeps them in the file", async () => {
    const loaded = mixed({ trainableAdapters: true, dropout: 0 });
    expect(Object.keys(loaded.buffers!)).toEqual([]);
    const own = { ...loaded, params: { ...loaded.adapter.init(new Rng(3)) } };
    const { params } = await finetune(traineeOf(model, base, own), examples, backend, settings);
    const name = Object.keys(params).find((one) => one.includes("law") && one.includes("lora_B"))!;
    expect(Array.from(params[name]!.numbers())).not.toEqual(
      Array.from(own.params[name]!.numbers()),
    );
    const stored = loaded.adapter.file!.pack({ params, buffers: {} });
    const again = loaded.adapter.file!.unpack(stored, "file");
    expect(Object.keys(again.params).sort()).toEqual(Object.keys(params).sort());
  });
});

describe.each(["x-lora", "x-lora-top"])("a folder that PEFT wrote (%s)", async (name) => {
  const folder = (one: string): string =>
    new URL(`../../../test/parity/${one}`, import.meta.url).pathname;
  const record = fixture<{
    readonly inputs: RawTensors;
    readonly scalings: RawTensor;
    readonly logits: RawTensor;
  }>(name);
  const theirs = await loadModel(files, folder("hf-llama"));
  const llama = theirs.model;
  const loaded = (await loadAdapter(files, folder(name), llama, kinds)) as Mixed;
  const ids = tensorOf(record.inputs["ids"]!) as Tensor<"int32">;

  it("gives PEFT's logits and scalings", async () => {
    const logits = await probeLogits(backend, llama, theirs.params, ids, loaded);
    allclose(logits, tensorOf(record.logits).reshape(logits.shape), 1e-4);
    if (name === "x-lora-top") return;
    const [rows, length] = ids.shape as [number, number];
    const expected = tensorOf(record.scalings);
    for (let row = 0; row < rows; row++) {
      const own = Tensor.from(
        Array.from(ids.numbers()).slice(row * length, (row + 1) * length),
        [1, length],
        "int32",
      );
      const found = await tokenScalings(backend, llama, theirs.params, loaded, own);
      const part = Array.from(expected.numbers()).slice(row * found.size, (row + 1) * found.size);
      allclose(found, new Tensor("float32", found.shape, Float32Array.from(part)), 1e-4);
    }
  });

  it("is written again with the same bytes and the same settings", async () => {
    const copy = join(scratch, name);
    await saveAdapter(files, copy, loaded.adapter, loaded.params, {
      base: "hf-llama",
      buffers: loaded.buffers ?? {},
    });
    const weights = "adapter_model.safetensors";
    expect(await readFile(join(copy, weights))).toEqual(
      await readFile(join(folder(name), weights)),
    );
    const read = async (path: string): Promise<Record<string, unknown>> =>
      JSON.parse(await readFile(join(path, "adapter_config.json"), "utf8"));
    const { peft_version: _, ...rest } = await read(folder(name));
    expect(await read(copy)).toEqual(rest);
  });
});

it("keeps names of experts beside the numbers that PEFT wants", async () => {
  const own = mixed({ layerwise: true });
  const { adapters, adapter_names: names } = own.adapter.config();
  expect([adapters, names]).toEqual([{ 0: "art", 1: "bio", 2: "law" }, ["art", "bio", "law"]]);
  const read = xLoraKind.read(
    own.adapter.config() as Parameters<typeof xLoraKind.read>[0],
    "config",
    model,
  );
  const load = async (path: string): Promise<LoadedAdapter> => experts[path]!;
  const again = await bindXLora(model, read, { load });
  expect(again.config()).toEqual(own.adapter.config());
  const loaded = { ...own, adapter: again };
  allclose(await logitsOf(loaded), await logitsOf(own), 0);
});

describe("errors", () => {
  it("say which expert does not fit, and what to give", async () => {
    const odd = { ...experts, odd: expert(1, { useDora: true }) };
    expect(() => mixExperts(model, odd)).toThrow(
      'x-lora: expert "odd" is no plain LoRA of linear layers',
    );
    expect(() => mixExperts(model, experts, { softmaxTopK: true })).toThrow("needs topK");
    await expect(bindXLora(model, {})).rejects.toThrow("needs the folders of experts");
    await expect(bindXLora(model, { adapters: ["a=x", "a=y"] })).rejects.toThrow(
      'two experts are named "a"',
    );
    await expect(bindXLora(model, { adapters: ["a=x"] })).rejects.toThrow("nothing to read");
  });

  it("name the layers of the gate that a file lacks", () => {
    const { adapter, params } = mixed();
    const { [`${gatePrefix}0.weight`]: _, ...rest } = params;
    expect(() => adapter.file!.unpack(rest, "w.safetensors")).toThrow(
      `w.safetensors: is not this gate: missing [${gatePrefix}0.weight], unexpected [] — PEFT 0.21 leaves layers out whose number is an expert's name.`,
    );
  });

  it("refuse a folder that is an expert of itself", async () => {
    const { adapter, params } = mixed();
    const folder = join(scratch, "itself");
    const { adapter_names: _, ...rest } = adapter.config();
    const config = { ...rest, adapters: { "0": "." } };
    await saveAdapter(files, folder, { ...adapter, config: () => config }, params);
    await expect(loadAdapter(files, folder, model, kinds)).rejects.toThrow(
      'peft_type "XLORA" is not supported',
    );
  });

  it("does not merge", () => {
    const { adapter, params } = mixed();
    expect(adapter.mergeable).toBe("no");
    expect(() => adapter.merge(base, params)).toThrow("x-lora: cannot be merged");
  });
});
