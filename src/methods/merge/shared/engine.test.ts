/** Whole merges on folders of tiny models. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import { tolerance } from "../../../../test/support/tolerance.ts";
import { lora } from "../../../adapters/lora.ts";
import { saveAdapter } from "../../../adapters/peft.ts";
import { nodeOrt } from "../../../backend/ort/node.ts";
import type { OrtBackend } from "../../../backend/ort/ort.ts";
import type { Files } from "../../../host/host.ts";
import { nodeHost } from "../../../host/node.ts";
import { mergeAdapter } from "../../../infer/merge-adapter.ts";
import { openCheckpoint } from "../../../io/checkpoint.ts";
import { writeSafetensors } from "../../../io/safetensors.ts";
import { Bert } from "../../../models/bert.ts";
import { loadAnyModel, loadModel, saveModel } from "../../../models/folder.ts";
import { Gpt2 } from "../../../models/gpt2.ts";
import { Llama } from "../../../models/llama.ts";
import type { PretrainedModel } from "../../../models/model.ts";
import { ResNet } from "../../../models/resnet.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { type MergedReport, mergeMethods, openMerge, type RunMergeOptions } from "../index.ts";
import type { MergeConfig } from "./config.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-merge-"));
const at = (...parts: readonly string[]): string => join(root, ...parts);
let backend: OrtBackend;

const llama = new Llama({
  vocabSize: 61,
  dModel: 16,
  dFeedForward: 24,
  nLayers: 3,
  nHeads: 2,
  maxPositions: 32,
  initializerRange: 0.3,
});
const base = llama.init(new Rng(1)).params;

/** Float parameters moved a little; counts stay. */
function tuned(params: TensorRecord, seed: number): TensorRecord {
  const rng = new Rng(seed);
  return Object.fromEntries(
    Object.entries(params).map(([name, tensor]) => {
      if (tensor.dtype !== "float32") return [name, tensor];
      const data = (tensor.data as Float32Array).map((value) => value + 0.05 * rng.normal());
      return [name, new Tensor("float32", tensor.shape, data)];
    }),
  );
}

beforeAll(async () => {
  backend = await nodeOrt({ threads: 1 });
  await saveModel(files, at("base"), llama, base, {
    files: {
      "tokenizer_config.json": '{"of": "base"}',
      "README.md": "the base's own",
      "adapter_config.json": "{}",
    },
  });
  await saveModel(files, at("a"), llama, tuned(base, 2), { maxShardBytes: 5000 });
  await saveModel(files, at("b"), llama, tuned(base, 3), {
    dtype: "bfloat16",
    files: { "tokenizer_config.json": '{"of": "b"}' },
  });
  await saveModel(files, at("c"), llama, tuned(base, 4), { dtype: "float16" });
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A merge of whole models. */
function of(
  method: string,
  models: readonly string[],
  more: Partial<MergeConfig> = {},
): MergeConfig {
  return {
    method,
    slices: [{ sources: models.map((model) => ({ model: at(model) })) }],
    isWhole: true,
    ...more,
  };
}

const onBase = { baseModel: at("base") };

function mean(x: Tensor, y: Tensor): Tensor {
  const [a, b] = [x.data, y.data] as [Float32Array, Float32Array];
  return new Tensor(
    "float32",
    x.shape,
    a.map((value, i) => (value + b[i]!) / 2),
  );
}

async function merge(
  config: MergeConfig,
  out: string,
  options: RunMergeOptions = {},
  own: Files = files,
): Promise<MergedReport> {
  const opened = await openMerge(own, config, mergeMethods);
  try {
    return await opened.run(at(out), { backend, ...options });
  } finally {
    await opened.close();
  }
}

async function bytesOf(folder: string): Promise<Record<string, string>> {
  const checkpoint = await openCheckpoint(files, at(folder));
  const found: Record<string, string> = {};
  for (const { name, dtype } of checkpoint.entries.values()) {
    found[name] = `${dtype} ${Buffer.from(await checkpoint.readBytes(name)).toString("base64")}`;
  }
  await checkpoint.close();
  return found;
}

describe("a merge", () => {
  it("reads shards and all three types, and writes a folder that loads", async () => {
    const report = await merge(of("ties", ["a", "b", "c"], onBase), "ties");
    expect(report.dtypes).toEqual(["F32"]);
    expect(report.areInputsEqual).toBe(false);
    expect(report.outputs.map(({ model }) => model)).toEqual(
      ["base", "a", "b", "c"].map((name) => at(name)),
    );
    expect(readdirSync(at("ties")).sort()).toEqual([
      "README.md",
      "config.json",
      "model.safetensors",
      "tokenizer_config.json",
    ]);
    expect(report.leftOut).toEqual(["adapter_config.json"]);
    expect(readFileSync(at("ties", "README.md"), "utf8")).toContain("# Merged by TIES-Merging");
    const loaded = await loadModel(files, at("ties"));
    // Each weight is the base's, or that and a mean of changes: none is far away.
    for (const [name, tensor] of Object.entries(loaded.params)) {
      const start = base[name]!.data as Float32Array;
      let moved = 0;
      (tensor.data as Float32Array).forEach((value, i) => {
        expect(Math.abs(value - start[i]!)).toBeLessThan(0.5);
        if (value !== start[i]) moved++;
      });
      // Each of three models keeps a fifth: between a fifth and three fifths of the entries move.
      expect(moved).toBeGreaterThanOrEqual(Math.floor(tensor.size / 5));
      expect(moved).toBeLessThanOrEqual(3 * Math.max(1, Math.floor(tensor.size / 5)));
    }
  });

  it("gives the average, number by number, whatever the shards", async () => {
    await merge(of("linear", ["base", "a"]), "mean", { maxShardBytes: 3000 });
    expect(existsSync(at("mean", "model.safetensors.index.json"))).toBe(true);
    const merged = await loadModel(files, at("mean"));
    const other = await loadModel(files, at("a"));
    for (const [name, tensor] of Object.entries(merged.params)) {
      allclose(tensor, mean(base[name]!, other.params[name]!), tolerance.float32, name);
    }
  });

  it("of one model thrice is that model, bit for bit, in its own type; its outputs are its own", async () => {
    for (const method of ["linear", "task-arithmetic", "breadcrumbs"]) {
      const out = `same-${method}`;
      const config = of(method, ["b", "b", "b"], { baseModel: at("b") });
      const report = await merge(config, out);
      expect(report.areInputsEqual).toBe(true);
      expect(report.outputs[0]!.maxAbsolute).toBe(0);
      expect(report.weights.every(({ relative }) => relative === 0)).toBe(true);
      expect(await bytesOf(out)).toEqual(await bytesOf("b"));
    }
  });

  it("draws the same bits whatever the files, and others with another seed", async () => {
    const config = of("dare-ties", ["a", "b"], onBase);
    await merge(config, "dare-1", { seed: 5 });
    await merge(config, "dare-2", { seed: 5, maxShardBytes: 2000 });
    await merge(config, "dare-3", { seed: 6 });
    const [one, two, three] = await Promise.all(["dare-1", "dare-2", "dare-3"].map(bytesOf));
    expect(two).toEqual(one);
    expect(three).not.toEqual(one);
  });

  it("stores the type that is asked for, and says so in config.json", async () => {
    const report = await merge(of("linear", ["base", "a"], { dtype: "float16" }), "half");
    expect(report.dtypes).toEqual(["F16"]);
    const { dtype } = JSON.parse(readFileSync(at("half", "config.json"), "utf8"));
    expect(dtype).toBe("float16");
    await loadModel(files, at("half"));
  });

  it("takes the tokenizer from the model that is named", async () => {
    await merge(of("linear", ["base", "b"], { tokenizerSource: at("b") }), "tokens");
    expect(readFileSync(at("tokens", "tokenizer_config.json"), "utf8")).toBe('{"of": "b"}');
  });

  it("writes a LoRA in on the way, as if it had been merged before", async () => {
    const models: [string, PretrainedModel, readonly string[]][] = [
      ["lora-llama", llama, ["q_proj", "down_proj"]],
      [
        "lora-gpt2",
        // GPT-2 stores its matrices with the inputs first.
        new Gpt2({ vocabSize: 61, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 32 }),
        ["c_attn", "c_proj"],
      ],
    ];
    for (const [name, model, targetModules] of models) {
      const start = model === llama ? base : model.init(new Rng(1)).params;
      await saveModel(files, at(name), model, start);
      await saveModel(files, at(`${name}-other`), model, tuned(start, 8));
      const adapter = lora(model, { rank: 3, alpha: 5, targetModules, rankStabilized: true });
      const fresh = adapter.init(new Rng(2));
      const params = tuned(fresh, 6);
      await saveAdapter(files, at(`${name}-adapter`), adapter, params);
      const paths = { model: at(name), adapter: at(`${name}-adapter`), out: at(`${name}-merged`) };
      await mergeAdapter(files, backend, paths);
      const on = { baseModel: at(name) };
      await merge(
        of("ties", [`${name}+${at(`${name}-adapter`)}`, `${name}-other`], on),
        `${name}-1`,
      );
      await merge(of("ties", [`${name}-merged`, `${name}-other`], on), `${name}-2`);
      const [one, two] = await Promise.all([`${name}-1`, `${name}-2`].map(bytesOf));
      expect(one).toEqual(two);
      expect(one).not.toEqual(await bytesOf(name));
    }
  });

  it("stacks layers of slices and counts them in config.json", async () => {
    const range = (model: string, first: number, end: number) => ({
      model: at(model),
      layerRange: [first, end] as const,
    });
    const config: MergeConfig = {
      method: "linear",
      isWhole: false,
      slices: [
        { sources: [range("base", 0, 2)] },
        { sources: [range("a", 0, 3), range("base", 0, 3)] },
      ],
    };
    await merge(config, "stacked");
    const merged = await loadModel(files, at("stacked"));
    expect(merged.model.sizes.nLayers).toBe(5);
    const other = await loadModel(files, at("a"));
    const name = (layer: number): string => `model.layers.${layer}.mlp.up_proj.weight`;
    expect(merged.params[name(1)]).toEqual(base[name(1)]);
    const expected = mean(base[name(2)]!, other.params[name(2)]!);
    allclose(merged.params[name(4)]!, expected, tolerance.float32);
  });

  it("tries encoders and models of pictures as well, and copies whole numbers", async () => {
    const bert = new Bert({
      vocabSize: 61,
      dModel: 16,
      dFeedForward: 24,
      nLayers: 2,
      nHeads: 2,
      maxPositions: 32,
    });
    const resnet = new ResNet({
      dEmbedding: 8,
      widths: [8, 16],
      depths: [1, 1],
      layerType: "basic",
    });
    for (const [name, model] of [
      ["bert", bert],
      ["resnet", resnet],
    ] as [string, PretrainedModel][]) {
      const { params, state } = model.init(new Rng(4));
      const all = { ...params, ...state };
      await saveModel(files, at(name), model, all);
      await saveModel(files, at(`${name}-2`), model, tuned(all, 5));
      const report = await merge(of("linear", [name, `${name}-2`]), `${name}-merged`);
      expect(report.outputs).toHaveLength(2);
      expect(report.outputs[0]!.maxRelative).toBeGreaterThan(0);
      await loadAnyModel(files, at(`${name}-merged`));
    }
    const counts = Object.entries(await bytesOf("resnet-merged")).filter(([, text]) =>
      text.startsWith("I64"),
    );
    expect(counts.length).toBeGreaterThan(0);
    const seen = Object.entries((await loadAnyModel(files, at("resnet"))).params).map(
      ([name, tensor]): [string, Tensor] =>
        tensor.dtype === "int32" ? [name, Tensor.from([7], [], "int32")] : [name, tensor],
    );
    await saveModel(files, at("resnet-3"), resnet, Object.fromEntries(seen));
    const report = await merge(of("linear", ["resnet", "resnet-3"]), "resnet-counts");
    expect(report.warnings).toEqual([
      expect.stringMatching(
        /^\d+ tensors of whole numbers, as "[\w.]+", differ between the models: those of "\S+resnet" were kept\.$/,
      ),
    ]);
  });

  it("of an unknown architecture is written, and said not to have been tried", async () => {
    for (const name of ["new-1", "new-2"]) {
      await files.makeDirectory(at(name));
      await writeSafetensors(files, at(name, "model.safetensors"), [
        ["layers.0.w", Tensor.from([name === "new-1" ? 1 : 3])],
      ]);
      writeFileSync(at(name, "config.json"), '{"model_type": "new"}');
    }
    const report = await merge(of("linear", ["new-1", "new-2"]), "new");
    expect(report.notTried).toBe('the architecture "new" is not known here');
    const written = await openCheckpoint(files, at("new"));
    expect((await written.read("layers.0.w")).data).toEqual(Float32Array.of(2));
    await written.close();
  });
});

describe("a merge that is refused", () => {
  const refused = async (
    config: MergeConfig,
    said: string | RegExp,
    own: Files = files,
  ): Promise<void> => {
    await expect(merge(config, "never", {}, own)).rejects.toThrow(said);
    expect(existsSync(at("never"))).toBe(false);
  };

  async function variant(
    name: string,
    change: (params: TensorRecord) => TensorRecord,
    config: Readonly<Record<string, unknown>> = {},
  ): Promise<void> {
    await files.makeDirectory(at(name));
    const tensors = Object.entries(change({ ...tuned(base, 9) }));
    await writeSafetensors(files, at(name, "model.safetensors"), tensors);
    const own = JSON.parse(readFileSync(at("base", "config.json"), "utf8"));
    writeFileSync(at(name, "config.json"), JSON.stringify({ ...own, ...config }));
  }

  it("names method, models and options that do not fit", async () => {
    await refused(
      of("tie", ["a"]),
      /^merge: the method "tie" is not known — known are breadcrumbs, /,
    );
    await refused(
      of("ties", ["a", "b"]),
      "ties: needs the model that the others were trained from — name it as the base (base_model, --base).",
    );
    await refused(of("slerp", ["a", "b", "c"]), "slerp: takes 2 models, got 3.");
    await refused(
      of("model-stock", ["a"], onBase),
      "model-stock: takes 2 or more models beside the base, got 1.",
    );
    await refused(
      of("ties", ["a"], { ...onBase, parameters: { dencity: 1 } }),
      'parameters: ties has no option "dencity" — it has weight, density, normalize, lambda.',
    );
    await refused(
      of("ties", ["a"], { ...onBase, parameters: { density: 0 } }),
      "ties: density must be a number in (0, 1], got 0.",
    );
    const sources = [{ model: at("a"), parameters: { normalize: true } }];
    await refused(
      { ...of("ties", ["a"], onBase), slices: [{ sources }] },
      'models[0].parameters: "normalize" is one for all models — put it under the parameters of the whole merge; a model has weight, density of its own.',
    );
    await refused(of("linear", ["nowhere"]), /nowhere: not a model folder, it has no config\.json/);
  });

  it("names the tensor of another shape, that is missing, or that nobody else has", async () => {
    const embed = "model.embed_tokens.weight";
    await variant("vocabulary", (params) => ({
      ...params,
      [embed]: Tensor.zeros([64, 16], "float32"),
    }));
    await refused(
      of("linear", ["base", "vocabulary"]),
      `linear: tensor "${embed}" of "${at("vocabulary")}" has shape (64, 16), that of "${at("base")}" (61, 16) — the vocabularies differ; bring both to one size first, or take models of one vocabulary.`,
    );
    const up = "model.layers.1.mlp.up_proj.weight";
    await variant("wide", (params) => ({ ...params, [up]: Tensor.zeros([25, 16], "float32") }));
    await refused(
      of("linear", ["base", "wide"]),
      `linear: tensor "${up}" of "${at("wide")}" has shape (25, 16), that of "${at("base")}" (24, 16) — models must have one architecture and size.`,
    );
    await variant("less", ({ [up]: _, ...params }) => params);
    await refused(
      of("linear", ["base", "less"]),
      `linear: "${at("less")}" lacks the tensor "${up}" — every model must have the tensors of "${at("base")}".`,
    );
    await variant("more", (params) => ({ ...params, "model.extra.weight": Tensor.from([1]) }));
    await refused(
      of("linear", ["base", "more"]),
      `linear: "${at("more")}" has the tensor "model.extra.weight", which "${at("base")}" lacks — every model must have the same tensors.`,
    );
    await variant("other", (params) => params, { model_type: "qwen2" });
    await refused(
      of("linear", ["base", "other"]),
      `linear: "${at("other")}" is of the architecture "qwen2", "${at("base")}" of "llama" — models must be of one.`,
    );
    await variant("bytes", (params) => ({ ...params, [up]: params[up]!.to("int8") }));
    await refused(
      of("linear", ["base", "bytes"]),
      `linear: tensor "${up}" of "${at("bytes")}" has dtype I8, merged are F32, F16 and BF16 — convert the model first.`,
    );
  });

  it("finds numbers that are none, before and after they are stored", async () => {
    const norm = "model.norm.weight";
    const change = (value: number) => (params: TensorRecord) => ({
      ...params,
      [norm]: Tensor.from(new Array(16).fill(value)),
    });
    await variant("nan", change(Number.NaN));
    await refused(
      of("linear", ["base", "nan"]),
      `linear: tensor "${norm}" comes out as NaN at element 0 — one of the models is damaged, or a weight is far too large.`,
    );
    await variant("large", change(1e6));
    await refused(
      of("linear", ["large"], { dtype: "float16" }),
      `linear: tensor "${norm}" holds 1000000 at element 0, which F16 cannot — store it as bfloat16 or float32.`,
    );
    // Finite weights whose outputs are not.
    await variant("huge", (params) => ({
      ...change(1e25)(params),
      "lm_head.weight": new Tensor("float32", [61, 16], new Float32Array(61 * 16).fill(1e25)),
    }));
    await refused(
      of("linear", ["huge"]),
      /^linear: the merged model gives (NaN|-?Infinity) for a probe input — nothing was kept/,
    );
  });

  it("has tokenizers in which one token has two ids", async () => {
    const tokenizer = (vocab: object): string => JSON.stringify({ model: { type: "BPE", vocab } });
    await variant("tokens-1", (params) => params);
    await variant("tokens-2", (params) => params);
    writeFileSync(at("tokens-1", "tokenizer.json"), tokenizer({ a: 0, b: 1 }));
    writeFileSync(at("tokens-2", "tokenizer.json"), tokenizer({ a: 0, b: 2 }));
    await refused(
      of("linear", ["tokens-1", "tokens-2"]),
      `linear: the tokenizers differ: token "b" has id 2 in "${at("tokens-2")}" and 1 in "${at("tokens-1")}" — merged embeddings would mean nothing; take models of one vocabulary.`,
    );
    writeFileSync(at("tokens-2", "tokenizer.json"), tokenizer({ a: 0, b: 1, "<|chat|>": 2 }));
    const report = await merge(of("linear", ["tokens-1", "tokens-2"]), "tokens-merged");
    expect(report.warnings).toEqual([
      `"${at("tokens-2")}" has 1 tokens, as "<|chat|>", that the written tokenizer lacks.`,
    ]);
  });

  it("reads back other bytes than it wrote", async () => {
    const broken: Files = {
      ...files,
      open: async (path) => {
        const file = await files.open(path);
        if (!path.includes("never")) return file;
        return {
          ...file,
          bytes: file.bytes,
          read: async (into, offset) => {
            await file.read(into, offset);
            if (offset > 4000) into[into.length - 1]! ^= 1;
          },
        };
      },
    };
    await refused(
      of("linear", ["base", "a"]),
      /^linear: tensor "[\w.]+" reads back as other bytes than were written — the disk is at fault; nothing was kept\.$/,
      broken,
    );
  });

  it("is stopped, or finds the disk full: nothing that loads is left", async () => {
    const abort = new AbortController();
    const opened = await openMerge(files, of("linear", ["base", "a"]), mergeMethods);
    await expect(
      opened.run(at("never"), { signal: abort.signal, onProgress: () => abort.abort() }),
    ).rejects.toThrow(/^merge: stopped at "[\w.]+"; nothing was kept\.$/);
    await opened.close();
    const full: Files = {
      ...files,
      create: async (path) => {
        const writer = await files.create(path);
        let written = 0;
        return {
          ...writer,
          write: async (bytes) => {
            written += bytes.length;
            if (written > 20_000) {
              await writer.abort();
              throw new Error("no room");
            }
            await writer.write(bytes);
          },
        };
      },
    };
    await refused(of("linear", ["base", "a"]), "no room", full);
  });

  it("keeps away from a folder that holds something", async () => {
    await expect(merge(of("linear", ["a"]), "base")).rejects.toThrow(
      `merge: "${at("base")}" exists already — name a new folder.`,
    );
    expect((await loadModel(files, at("base"))).params).toEqual(base);
  });
});
