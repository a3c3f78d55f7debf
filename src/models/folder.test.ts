import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  fixture,
  parityBackend,
  relativeDifference,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import { writeSafetensors } from "../io/safetensors.ts";
import type { Value } from "../ir/graph.ts";
import { slice } from "../ir/layout.ts";
import type { ValueRecord } from "../nn/index.ts";
import { Tensor } from "../tensor/tensor.ts";
import { families } from "./families.ts";
import { loadModel, saveModel } from "./folder.ts";

const { files } = nodeHost();
const folderOf = (name: string): string =>
  fileURLToPath(new URL(`../../test/parity/${name}`, import.meta.url));

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-folder-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

describe.each([
  ["hf-gpt2", "gpt2-train"],
  ["hf-llama", "llama-train"],
])("the folder %s that transformers wrote", (folder, recordName) => {
  const record = fixture<TrainingRecord>(recordName);

  test("loads with its weights and gives its logits", async () => {
    const { model, params } = await loadModel(files, folderOf(folder));
    expect(params).toEqual(tensorsOf(record.weights));
    const logits = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, ids: Value) => model.forward(model.context(p), slice(ids, 1, 0, -1)).logits,
      params,
      tensorOf(record.inputs["ids"]!),
    );
    const expected = tensorOf(record.logits).reshape(logits.shape);
    expect(relativeDifference(logits, expected)).toBeLessThan(tolerance.float32);
  });

  test("saves and loads to the same numbers", async () => {
    const { model, params } = await loadModel(files, folderOf(folder));
    const path = join(scratch, folder);
    await saveModel(files, path, model, params);
    const again = await loadModel(files, path);
    expect(again.params).toEqual(params);
    expect(again.model.sizes).toEqual(model.sizes);
    await saveModel(files, path, model, params, { dtype: "bfloat16" });
    const rounded = (await loadModel(files, path)).params;
    for (const [name, tensor] of Object.entries(params)) {
      expect(relativeDifference(rounded[name]!, tensor)).toBeLessThan(2 ** -8);
    }
  });
});

describe("loadModel", () => {
  const written = async (change: (tensors: Record<string, Tensor>) => void): Promise<string> => {
    const { model, params } = await loadModel(files, folderOf("hf-gpt2"));
    const path = join(scratch, "changed");
    await saveModel(files, path, model, params);
    const tensors = { ...params };
    change(tensors);
    await writeSafetensors(files, join(path, "model.safetensors"), Object.entries(tensors), {});
    return path;
  };

  test("names tensors that are missing and those that nothing uses", async () => {
    const path = await written((tensors) => {
      delete tensors["transformer.ln_f.bias"];
      tensors["extra"] = Tensor.from([1]);
    });
    await expect(loadModel(files, path)).rejects.toThrow(
      `${path}: the weights do not fit a gpt2 of this config.json. Missing: transformer.ln_f.bias. Unexpected: extra.`,
    );
  });

  test("names a tensor of another shape", async () => {
    const path = await written((tensors) => {
      tensors["transformer.ln_f.bias"] = Tensor.from([1, 2]);
    });
    await expect(loadModel(files, path)).rejects.toThrow(
      `${path}: tensor "transformer.ln_f.bias" must have shape (8,), got (2,) — does config.json belong to these weights?`,
    );
  });

  test("reads names without the prefix of the inner model", async () => {
    const path = await written((tensors) => {
      for (const [name, tensor] of Object.entries(tensors)) {
        delete tensors[name];
        tensors[name.replace("transformer.", "")] = tensor;
      }
    });
    const { params } = await loadModel(files, path);
    expect(params).toEqual((await loadModel(files, folderOf("hf-gpt2"))).params);
  });

  test("refuses other families, and folders that hold no model", async () => {
    await files.writeText(join(scratch, "config.json"), '{ "model_type": "bloom" }');
    await expect(loadModel(files, scratch)).rejects.toThrow(
      `model_type "bloom" is not supported — supported are ${Object.keys(families).join(", ")}.`,
    );
    await expect(loadModel(files, join(scratch, "none"))).rejects.toThrow(
      "not a model folder, it has no config.json",
    );
  });
});
