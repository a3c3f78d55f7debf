import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { fixture, type RawTensors, tensorOf } from "../../test/support/fixture.ts";
import { compile } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { nodeHost } from "../host/node.ts";
import type { Value } from "../ir/graph.ts";
import { loadModel } from "../models/folder.ts";
import type { ValueRecord } from "../nn/module.ts";
import { adamW } from "../optim/adamw.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { TrainProgram } from "../train/program.ts";
import { Updater } from "../train/updater.ts";
import { lora } from "./lora.ts";
import { loadAdapter, saveAdapter, sortedJson } from "./peft.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const folder = (name: string): string =>
  new URL(`../../test/parity/${name}`, import.meta.url).pathname;

interface PeftFixture {
  readonly inputs: RawTensors;
  readonly logits: RawTensors[string];
  readonly mergedWeights: RawTensors;
  readonly losses: readonly number[];
  readonly finalWeights: RawTensors;
}

const scratch = await mkdtemp(join(tmpdir(), "plasticity-peft-"));
afterAll(() => rm(scratch, { recursive: true }));

describe.each([
  ["peft-lora", "hf-llama"],
  ["peft-lora-gpt2", "hf-gpt2"],
  ["peft-lora-patterns", "hf-llama"],
  ["peft-lora-dora", "hf-llama"],
  ["peft-lora-dora-gpt2", "hf-gpt2"],
  ["peft-lora-bias", "hf-gpt2"],
  ["peft-lora-embed", "hf-llama"],
  ["peft-lora-tokens", "hf-llama"],
])("a folder that PEFT wrote (%s)", async (name, base) => {
  const record = fixture<PeftFixture>(name);
  const { model, params } = await loadModel(files, folder(base));
  const loaded = await loadAdapter(files, folder(name), model);
  const all = tensorOf(record.inputs["ids"]!);
  const [batch, length] = [all.shape[0]!, all.shape[1]! - 1];
  const numbers = all.numbers();
  const at = (offset: number): Tensor<"int32"> =>
    Tensor.from(
      Array.from(
        { length: batch * length },
        (_, i) => numbers[Math.floor(i / length) * (length + 1) + (i % length) + offset]!,
      ),
      [batch, length],
      "int32",
    );

  it("gives PEFT's logits", async () => {
    const forward = await compile<Tensor>(
      ((own: ValueRecord, fixed: ValueRecord, ids: Value) =>
        model.forward(model.context(fixed, {}, loaded.adapter.context(own)), ids).logits) as never,
      [loaded.params, params, at(0)],
      { backend },
    );
    const logits = await forward.run(loaded.params, params, at(0));
    await forward.release();
    allclose(logits, tensorOf(record.logits).reshape(logits.shape), 1e-5);
  });

  it("trains to PEFT's losses over five AdamW steps", async () => {
    const paths = Object.keys(loaded.params);
    const updater = new Updater(loaded.params, [{ paths, optimizer: adamW() }], backend);
    const program = new TrainProgram(
      {
        model,
        frozen: params,
        trained: loaded.params,
        adapt: (values) => loaded.adapter.context(values),
      },
      backend,
    );
    const rows = batch * length;
    const part = {
      ids: at(0),
      targets: at(1).reshape([rows]),
      weights: Tensor.from(new Float32Array(rows).fill(1)),
    };
    for (const [step, expected] of record.losses.entries()) {
      const loss = await program.lossAndGradients(
        part,
        updater.params,
        updater.gradients,
        rows,
        new Rng(0),
      );
      expect(Math.abs(loss - expected), `step ${step}`).toBeLessThan(1e-5);
      if (step < 5) await updater.step(1e-2);
      if (step === 4) {
        for (const [path, raw] of Object.entries(record.finalWeights)) {
          allclose(updater.params[path]!, tensorOf(raw), 1e-4);
        }
      }
    }
    await program.release();
  });

  it("merges into PEFT's merged weights", () => {
    const merged = loaded.adapter.merge(params, loaded.params);
    for (const [path, raw] of Object.entries(record.mergedWeights)) {
      allclose(merged[path]!, tensorOf(raw), 1e-6);
    }
  });

  it("is written again with the same bytes and the same settings", async () => {
    const copy = join(scratch, name);
    await saveAdapter(files, copy, loaded.adapter, loaded.params, { base });
    const weights = "adapter_model.safetensors";
    expect(await readFile(join(copy, weights))).toEqual(
      await readFile(join(folder(name), weights)),
    );
    const read = async (path: string): Promise<Record<string, unknown>> =>
      JSON.parse(await readFile(join(path, "adapter_config.json"), "utf8")) as Record<
        string,
        unknown
      >;
    const [ours, theirs] = [await read(copy), await read(folder(name))];
    for (const [key, value] of Object.entries(ours)) {
      const sorted = (x: unknown): unknown => (Array.isArray(x) ? [...x].sort() : x);
      expect(sorted(value), key).toEqual(sorted(theirs[key]));
    }
  });
});

describe("loadAdapter", async () => {
  const { model } = await loadModel(files, folder("hf-llama"));

  it("refuses a folder without a configuration", async () => {
    await expect(loadAdapter(files, scratch, model)).rejects.toThrow(
      `${scratch}: not an adapter folder, it has no adapter_config.json.`,
    );
  });

  it("names tensors that do not fit the model", async () => {
    const other = join(scratch, "other");
    const adapter = lora(model, { rank: 2, targetModules: ["q_proj"] });
    const { [Object.keys(adapter.init(new Rng(1)))[0]!]: _, ...rest } = adapter.init(new Rng(1));
    await saveAdapter(files, other, adapter, { ...rest, stray: Tensor.scalar(1) });
    await expect(loadAdapter(files, other, model)).rejects.toThrow(
      "missing [base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight], unexpected [stray] — was the adapter made for another model?",
    );
  });

  it.each([
    [{ peft_type: "IA3" }, 'peft_type "IA3" is not supported — supported is "LORA".'],
    [{ target_parameters: ["w"] }, 'target_parameters ["w"] is not supported.'],
    [{ use_dora: true, lora_bias: true }, "useDora and loraBias exclude each other"],
    [{ trainable_token_indices: { a: [1], b: [2] } }, "trainable_token_indices must be one list"],
    [{ modules_to_save: ["lm_head"] }, 'modules_to_save: "lm_head" names no module of this llama.'],
    [
      { rank_pattern: { q_proj: "4" } },
      'rank_pattern must map at most 1024 patterns to numbers, got {"q_proj":"4"}.',
    ],
    [
      { alpha_pattern: { "(a{2})+q_proj": 4 } },
      'alpha_pattern "(a{2})+q_proj": "{" at 2 is not supported — write names, ".", classes, groups, "|", "*", "+" and "?".',
    ],
    [
      { rank_pattern: { q_proj: 0 } },
      'rankPattern "q_proj" must be a whole number from 1 to 65536, got 0.',
    ],
    [{ r: "8" }, 'r must be a number, got "8".'],
    [{ target_modules: 3 }, 'target_modules must be a list of names or "all-linear", got 3.'],
  ])("refuses %o", async (change, sentence) => {
    const path = join(scratch, "changed");
    const adapter = lora(model, { rank: 2 });
    await saveAdapter(files, path, adapter, adapter.init(new Rng(1)));
    const file = join(path, "adapter_config.json");
    await files.writeText(file, sortedJson({ ...adapter.config(), ...change }));
    await expect(loadAdapter(files, path, model)).rejects.toThrow(`${file}: ${sentence}`);
  });
});

describe("lora", async () => {
  const { model } = await loadModel(files, folder("hf-llama"));

  it("gives layers the rank and the alpha of the first pattern that matches", () => {
    const adapter = lora(model, {
      rank: 4,
      alpha: 8,
      targetModules: ["q_proj", "v_proj"],
      rankPattern: { "0.self_attn.q_proj": 2 },
      alphaPattern: { "layers\\.1\\..*": 6, v_proj: 6 },
    });
    const rows = [...adapter.layers].map(([path, { rank, alpha, scale }]) => [
      path.replace("model.layers.", "").replace("self_attn.", ""),
      rank,
      alpha,
      scale,
    ]);
    expect(rows).toEqual([
      ["0.q_proj", 2, 8, 4],
      ["0.v_proj", 4, 6, 1.5],
      ["1.q_proj", 4, 6, 1.5],
      ["1.v_proj", 4, 6, 1.5],
    ]);
    const params = adapter.init(new Rng(1));
    const { a, b } = adapter.layers.get("model.layers.0.self_attn.q_proj")!;
    expect([params[a]!.shape, params[b]!.shape]).toEqual([
      [2, 16],
      [16, 2],
    ]);
  });

  it("refuses patterns whose order decides and is lost in a file, and patterns without a layer", () => {
    const targetModules = ["q_proj"];
    expect(() =>
      lora(model, { targetModules, rankPattern: { q_proj: 2, "0.self_attn.q_proj": 3 } }),
    ).toThrow(
      'rankPattern: "q_proj" and "0.self_attn.q_proj" both match "model.layers.0.self_attn.q_proj" and give 2 and 3 — files keep patterns sorted by name; let only one of them match.',
    );
    expect(() => lora(model, { targetModules, alphaPattern: { v_proj: 2 } })).toThrow(
      'alphaPattern: "v_proj" matches none of the layers that are adapted — the first is "model.layers.0.self_attn.q_proj".',
    );
    expect(() => lora(model, { targetModules, rankPattern: { q_proj: 1.5 } })).toThrow(
      'rankPattern "q_proj" must be a whole number from 1 to 65536, got 1.5.',
    );
  });

  it("says which layers there are when targets match none", () => {
    expect(() => lora(model, { targetModules: ["c_attn"] })).toThrow(
      "targetModules [c_attn] match no layer of this llama — it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
    );
  });

  it("refuses ranks and dropout outside their range", () => {
    expect(() => lora(model, { rank: 0 })).toThrow(
      "rank must be a whole number from 1 to 65536, got 0.",
    );
    expect(() => lora(model, { dropout: 1 })).toThrow("dropout must be in [0, 1), got 1.");
  });
});
