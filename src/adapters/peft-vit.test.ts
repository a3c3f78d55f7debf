/** A model whose layers PEFT names otherwise than its checkpoints do. */
import { cp, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { numbersByRule, paramsByRule } from "../../test/support/by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  relativeDifference,
  tensorOf,
} from "../../test/support/fixture.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import { SafetensorsFile, writeSafetensors } from "../io/safetensors.ts";
import type { Value } from "../ir/graph.ts";
import { vitFromConfig } from "../models/vit.ts";
import type { TensorRecord, ValueRecord } from "../nn/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { LoadedAdapter } from "./adapter.ts";
import { lora } from "./lora.ts";
import { loadAdapter, saveAdapter } from "./peft.ts";
import { withModules } from "./saved-modules.ts";

const record = fixture<{
  readonly config: Readonly<Record<string, unknown>>;
  readonly logits: RawTensor;
}>("peft-vit");
const folder = fileURLToPath(new URL("../../test/parity/peft-vit", import.meta.url));
const { files } = nodeHost();
const model = vitFromConfig(record.config);
const base = paramsByRule(model);
const expected = tensorOf(record.logits);

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-vit-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function logitsOf(params: TensorRecord, loaded?: LoadedAdapter): Promise<Tensor> {
  const numbers = numbersByRule("pixels", [2, 2, 8, 8]);
  const pixels = new Tensor(
    "float32",
    numbers.shape,
    numbers.data.map((x) => 2 * x),
  );
  return evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, own: ValueRecord, x: Value) =>
      model.forward(model.context(p, {}, loaded?.adapter.context(own) ?? {}), x).logits!,
    params,
    loaded?.params ?? {},
    pixels,
  );
}

describe("an adapter on a ViT", () => {
  test("loads from the folder that peft wrote with transformers 5, and gives its logits", async () => {
    const loaded = await loadAdapter(files, folder, model);
    expect(loaded.adapter.targets).toContain("vit.encoder.layer.1.attention.attention.query");
    expect(relativeDifference(await logitsOf(base, loaded), expected)).toBeLessThan(1e-5);
    const merged = { ...base, ...loaded.adapter.merge(base, loaded.params) };
    expect(relativeDifference(await logitsOf(merged), expected)).toBeLessThan(1e-5);
  });

  test("is written as peft wrote it", async () => {
    const path = join(scratch, "again");
    const { adapter, params } = await loadAdapter(files, folder, model);
    await saveAdapter(files, path, adapter, params);
    const namesIn = async (at: string): Promise<string[]> => {
      const file = await SafetensorsFile.open(files, join(at, "adapter_model.safetensors"));
      await file.close();
      return [...file.entries.keys()].sort();
    };
    expect(await namesIn(path)).toEqual(await namesIn(folder));
    const config = async (at: string): Promise<Record<string, unknown>> =>
      JSON.parse(await readFile(join(at, "adapter_config.json"), "utf8"));
    const theirs = await config(folder);
    expect((await config(path))["target_modules"]).toEqual(theirs["target_modules"]);
    expect((await config(path))["rank_pattern"]).toEqual({ "vit.layers.1.attention.q_proj": 3 });
    expect((await loadAdapter(files, path, model)).params).toEqual(params);
  });

  test("loads with the names of checkpoints, which peft wrote with transformers 4", async () => {
    const path = join(scratch, "old");
    await cp(folder, path, { recursive: true });
    const file = await SafetensorsFile.open(files, join(path, "adapter_model.safetensors"));
    const tensors: [string, Tensor][] = [];
    for (const name of file.entries.keys()) {
      const old = name
        .replace("vit.layers.", "vit.encoder.layer.")
        .replace("attention.q_proj", "attention.attention.query")
        .replace("attention.o_proj", "attention.output.dense")
        .replace("mlp.fc2", "output.dense");
      tensors.push([old, await file.read(name)]);
    }
    await file.close();
    await writeSafetensors(files, join(path, "adapter_model.safetensors"), tensors, {});
    const text = await readFile(join(path, "adapter_config.json"), "utf8");
    const config = {
      ...JSON.parse(text),
      target_modules: [
        "query",
        "attention.output.dense",
        ...[0, 1].map((i) => `vit.encoder.layer.${i}.output.dense`),
      ],
      rank_pattern: { "1.attention.attention.query": 3 },
    };
    await files.writeText(join(path, "adapter_config.json"), JSON.stringify(config));
    const loaded = await loadAdapter(files, path, model);
    expect(relativeDifference(await logitsOf(base, loaded), expected)).toBeLessThan(1e-5);
  });

  test("takes layers by either name", () => {
    expect(lora(model, { targetModules: ["q_proj"] }).targets).toEqual(
      lora(model, { targetModules: ["query"] }).targets,
    );
    const adapter = withModules(lora(model, { rank: 2 }), model, ["classifier"], { params: base });
    expect(Object.keys(adapter.init(new Rng(0)))).toContain(
      "base_model.model.vit.layers.0.attention.v_proj.lora_A.weight",
    );
    expect(adapter.config()["target_modules"]).toEqual(["q_proj", "v_proj"]);
  });
});
