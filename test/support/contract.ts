/** What the contract of methods is tried on: tiny models, their data, and what every method is given. */
import type { BindScene, PrepareScene } from "../../src/adapters/adapter.ts";
import { lora } from "../../src/adapters/lora.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import type { OrtBackend } from "../../src/backend/ort/ort.ts";
import type { DataKind } from "../../src/data/encode.ts";
import type { Example } from "../../src/data/example.ts";
import { type AnyExampleSet, memoryPreferences, memorySet } from "../../src/data/set.ts";
import type { AnyMethod } from "../../src/methods/method.ts";
import { families } from "../../src/models/families.ts";
import { Llama } from "../../src/models/llama.ts";
import type { PretrainedModel } from "../../src/models/model.ts";
import type { TensorRecord } from "../../src/nn/module.ts";
import { type GivenOptions, type OptionSpec, readOptions } from "../../src/options.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import type { PolicyPrompt } from "../../src/train/policy.ts";
import { prepareScene } from "../../src/train/prepare.ts";
import { tinyConfigs } from "./tiny-encoder.ts";

export const backend: OrtBackend = await nodeOrt({ threads: 1 });

export const tiny: Llama = new Llama({
  vocabSize: 20,
  dModel: 16,
  dFeedForward: 24,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 24,
  initializerRange: 0.2,
});
export const tinyParams: TensorRecord = tiny.init(new Rng(1)).params;

/** One whose layers are wide enough for blocks of 4 bits. */
export const wide: Llama = new Llama({
  ...{ vocabSize: 20, dModel: 32, dFeedForward: 64, nLayers: 2, nHeads: 2, maxPositions: 24 },
  initializerRange: 0.2,
});
export const wideParams: TensorRecord = wide.init(new Rng(1)).params;

/** Other models of the same tokens, to learn from or to compare with. */
export function other(i: number): { readonly model: Llama; readonly params: TensorRecord } {
  return { model: tiny, params: tiny.init(new Rng(2).fold(i)).params };
}

/** Tiny models of other kinds, by family. */
export const kinds: readonly (readonly [string, PretrainedModel, TensorRecord])[] = [
  ["bert", tinyConfigs["bert"]!],
  ["t5", tinyConfigs["t5"]!],
  [
    "vit",
    {
      model_type: "vit",
      architectures: ["ViTModel"],
      ...{ hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 3 },
      ...{ intermediate_size: 48, image_size: 16, patch_size: 4 },
    },
  ] as const,
].map(([family, config]) => {
  const model = families[family as string]!(config as Readonly<Record<string, unknown>>);
  const { params, state } = model.init(new Rng(3));
  return [family as string, model, { ...params, ...state }] as const;
});

const rng = new Rng(4);
const examples: readonly Example[] = Array.from({ length: 12 }, (_, i) => ({
  ids: Int32Array.from(rng.fold(i).permutation(4 + (i % 5)), (id) => id + (i % 9)),
  mask: Uint8Array.from({ length: 4 + (i % 5) }, (_v, at) => (at > 1 ? 1 : 0)),
  isGood: i % 2 === 0,
}));

/** Examples of the kind that an objective learns from. */
export function dataOf(kind: DataKind): AnyExampleSet {
  if (kind !== "preference") return memorySet(examples);
  return memoryPreferences({ chosen: examples.slice(0, 6), rejected: examples.slice(6) });
}

export const prompts: readonly PolicyPrompt[] = examples.slice(0, 6).map((example) => ({
  ids: example.ids.slice(0, 2),
  prompt: [...example.ids.slice(0, 2)].join(" "),
  expected: "7",
  example,
}));

export function scene(seed = 0): PrepareScene {
  const trainee = { model: tiny, frozen: tinyParams, trained: {}, maxLength: 24 };
  return prepareScene(trainee, memorySet(examples), backend, { batchSize: 4, seed });
}

/** Other adapters on the tiny model, where one is made of several: LoRAs whose numbers are their path's. */
export const binding: BindScene = {
  load: async (path) => {
    const adapter = lora(tiny, { rank: 2, targetModules: "all-linear" });
    return { adapter, params: noisy(adapter.init(new Rng(5).fold(path)), 6, 0.1) };
  },
};

/** Options for the tiny model, complete. */
export function tinyOptions(method: AnyMethod): GivenOptions {
  return readOptions(method.id, method.options as never, method.tiny ?? {}) as GivenOptions;
}

/** Numbers moved a little, so that nothing is zero. */
export function noisy(params: TensorRecord, seed: number, scale = 0.05): TensorRecord {
  return Object.fromEntries(
    Object.entries(params).map(([name, tensor]) => {
      const noise = new Rng(seed).fold(name).normals(tensor.size, scale);
      const data = Float32Array.from(tensor.numbers(), (x, i) => x + noise[i]!);
      return [name, new Tensor("float32", tensor.shape, data)];
    }),
  );
}

/** Numbers for comparison bit by bit. */
export function bits(tensors: Readonly<TensorRecord>): Record<string, number[]> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, tensor]) => [name, Array.from(tensor.numbers())]),
  );
}

/** Values that an option must not take, by its description. */
export function badValues(spec: OptionSpec): readonly unknown[] {
  switch (spec.type) {
    case "number":
    case "integer": {
      const [least, most] = spec.range;
      const ends = (spec.open ?? [false, false]).flatMap((isOpen, i) =>
        isOpen ? [spec.range[i]!] : [],
      );
      const between = spec.type === "integer" ? [least + 0.5] : [];
      return [least - 1, most + 1, Number.NaN, "many", true, [1], ...ends, ...between];
    }
    case "flag":
      return ["perhaps", 1, []];
    case "text":
      return spec.choices ? ["no-such-word", 1] : [1, true];
    case "list":
      return [1, [1], [""], { a: 1 }];
    case "numbers":
      return [1, ["x"], [spec.range[0] - 1], [spec.range[1] + 1], "1+x"];
    case "table":
      return [1, ["a"], { a: "x" }, { a: spec.range[1] + 1 }, "a"];
  }
}
