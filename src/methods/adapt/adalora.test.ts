import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { backend, dataOf, tiny, tinyParams } from "../../../test/support/contract.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { newNumbers } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { withModules } from "../../adapters/saved-modules.ts";
import { nodeHost } from "../../host/node.ts";
import { probeLogits } from "../../infer/verify.ts";
import { SafetensorsFile } from "../../io/safetensors.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { Finetuner } from "../../train/finetune.ts";
import { traineeOf } from "../../train/trainee.ts";
import { type AdaLoraOptions, adalora, adaloraKind } from "./adalora.ts";

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-adalora-"));
afterAll(() => rm(scratch, { recursive: true }));
const ids = Tensor.from([3, 1, 7, 9], [1, 4], "int32");

/** An adapter after a whole run, and how many ranks stood after each step. */
async function trained(
  options: AdaLoraOptions,
  steps: number,
): Promise<{ own: LoadedAdapter; ranks: number[] }> {
  const adapter = adalora(tiny, options);
  const { params, buffers } = newNumbers(adapter, new Rng(5));
  const trainee = traineeOf(tiny, tinyParams, { adapter, params, buffers });
  const tuner = await Finetuner.create(trainee, dataOf("any"), backend, {
    ...{ batchSize: 4, steps, learningRate: 0.02, seed: 3 },
  });
  const ranks: number[] = [];
  try {
    for (let i = 0; i < steps; i++) {
      const step = await tuner.next();
      ranks.push(
        (step as { readonly metrics?: Readonly<Record<string, number>> }).metrics!["ranks"]!,
      );
    }
    const state = await tuner.state();
    const copy = (tensors: Readonly<Record<string, Tensor>>): TensorRecord =>
      Object.fromEntries(Object.entries(tensors).map(([name, one]) => [name, one.clone()]));
    return {
      own: { adapter, params: copy(state.params), buffers: copy(state.buffers!) },
      ranks,
    };
  } finally {
    await tuner.release();
  }
}

describe("a run", () => {
  it("ends with the ranks that were asked for, zero values elsewhere, and a file of those alone", async () => {
    const options = {
      initR: 4,
      targetR: 2,
      tinit: 2,
      tfinal: 2,
      targetModules: ["q_proj", "v_proj"],
    };
    const { own, ranks } = await trained(options, 10);
    // 4 layers of 4 ranks, none masked up to step 2; 4 · 2 from step 8 on.
    expect(ranks.slice(0, 2)).toEqual([16, 16]);
    expect(ranks.slice(7)).toEqual([8, 8, 8]);
    expect(ranks.every((count, i) => i === 0 || count <= ranks[i - 1]!)).toBe(true);
    const values = Object.entries(own.params).filter(([name]) => name.endsWith(".lora_E"));
    const kept = values.flatMap(([, tensor]) =>
      Array.from(tensor.numbers()).filter((x) => x !== 0),
    );
    expect(kept).toHaveLength(8);

    const folder = join(scratch, "trained");
    await saveAdapter(files, folder, own.adapter, own.params, { buffers: own.buffers! });
    const file = await SafetensorsFile.open(files, join(folder, "adapter_model.safetensors"));
    await file.close();
    const stored = [...file.entries].filter(([name]) => name.endsWith(".lora_E"));
    expect(stored.reduce((total, [, { shape }]) => total + shape[0]!, 0)).toBe(8);
    const config = JSON.parse(await readFile(join(folder, "adapter_config.json"), "utf8"));
    expect(config.total_step).toBe(10);
    expect(Object.values(config.rank_pattern as Record<string, boolean[]>).flat()).toHaveLength(16);
    const again = await loadAdapter(files, folder, tiny, [adaloraKind]);
    const logits = await probeLogits(backend, tiny, tinyParams, ids, own);
    allclose(await probeLogits(backend, tiny, tinyParams, ids, again), logits, 1e-6);
  });

  it("does not begin where its schedule has no room", async () => {
    await expect(trained({ tinit: 3, tfinal: 2, initR: 2, targetR: 1 }, 4)).rejects.toThrow(
      "adalora: 3 steps before and 2 after leave none of 4 to choose ranks in",
    );
  });
});

describe("AdaLoRA", () => {
  it("is kept with modules beside it", async () => {
    const adapter = withModules(adalora(tiny, { initR: 2, targetR: 1 }), tiny, ["model.norm"]);
    const { params, buffers } = newNumbers(adapter, new Rng(1));
    const folder = join(scratch, "modules");
    await saveAdapter(files, folder, adapter, params, { buffers });
    const again = await loadAdapter(files, folder, tiny, [adaloraKind]);
    expect(again.params).toEqual(params);
  });

  it("says which options and files do not fit", async () => {
    expect(() => adalora(tiny, { initR: 2, targetR: 3 })).toThrow(
      "adalora: targetR 3 must not be above initR 2.",
    );
    expect(() => adalora(tiny, { tinit: 5, tfinal: 5, totalStep: 10 })).toThrow(
      "adalora: 5 steps before and 5 after leave none of 10 to choose ranks in.",
    );
    const adapter = adalora(tiny, { initR: 2, targetR: 1, targetModules: ["q_proj"] });
    const folder = join(scratch, "wrong");
    await saveAdapter(files, folder, adapter, adapter.init(new Rng(1)));
    const path = join(folder, "adapter_config.json");
    const config = JSON.parse(await readFile(path, "utf8"));
    const load = async (change: object): Promise<unknown> => {
      await writeFile(path, JSON.stringify({ ...config, ...change }));
      return loadAdapter(files, folder, tiny, [adaloraKind]);
    };
    const name = "model.layers.0.self_attn.q_proj.lora_E";
    await expect(load({ rank_pattern: { [name]: [true] } })).rejects.toThrow(
      `rank_pattern "${name}" must be a list of 2 times true or false.`,
    );
    await expect(load({ rank_pattern: { "lm_head.lora_E": [true, true] } })).rejects.toThrow(
      'rank_pattern names "lm_head.lora_E", which is no adapted layer\'s lora_E.',
    );
    await expect(load({ rank_pattern: { [name]: [true, false] } })).rejects.toThrow(
      "must have shape (1, 16), got (2, 16).",
    );
    await expect(load({ use_rslora: true })).rejects.toThrow("use_rslora true is not supported.");
  });
});
