import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { fixture, parityBackend, type RawTensor, tensorOf } from "../../test/support/fixture.ts";
import { ruleWeights } from "../../test/support/rule-weights.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import { SafetensorsFile } from "../io/safetensors.ts";
import type { Value } from "../ir/graph.ts";
import { families } from "../models/families.ts";
import type { LanguageModel } from "../models/model.ts";
import type { ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { lora } from "./lora.ts";
import { loadAdapter, saveAdapter } from "./peft.ts";

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-peft-decoders-"));
afterAll(() => rm(scratch, { recursive: true }));

/** Names and shapes of the tensors of an adapter's folder. */
async function tensorsIn(folder: string): Promise<Record<string, readonly number[]>> {
  const file = await SafetensorsFile.open(files, join(folder, "adapter_model.safetensors"));
  const shapes = [...file.entries].map(([name, { shape }]) => [name, shape] as const);
  await file.close();
  return Object.fromEntries(shapes.sort(([a], [b]) => (a < b ? -1 : 1)));
}

describe.each(["phi3", "gpt-neox", "gemma3", "qwen2"])(
  "PEFT's LoRA folder for %s",
  async (name) => {
    const base = fixture<{ config: Record<string, unknown>; normMean: number }>(`decoders/${name}`);
    const record = fixture<{
      targets: string[] | "all-linear" | null;
      inputs: { ids: RawTensor };
      logits: RawTensor;
    }>(`peft-decoders/${name}`);
    const folder = new URL(`../../test/parity/peft-decoders/${name}`, import.meta.url).pathname;
    const make = families[base.config["model_type"] as string]!;
    const model = make(base.config) as LanguageModel;
    const params = ruleWeights(model.init(new Rng(0)).params, base.normMean, (path) =>
      path.replace(/^embed_out\./, "lm_head."),
    );

    it("gives PEFT's logits, beside the base and merged into it", async () => {
      const { adapter, params: own } = await loadAdapter(files, folder, model);
      const logits = async (isMerged: boolean): Promise<Tensor> =>
        evaluate<Tensor>(
          await parityBackend(),
          (p: ValueRecord, q: ValueRecord, ids: Value) => {
            const context = model.context(p, {}, isMerged ? {} : adapter.context(q));
            return model.forward(context, ids).logits;
          },
          isMerged ? { ...params, ...adapter.merge(params, own) } : params,
          isMerged ? {} : own,
          tensorOf(record.inputs.ids),
        );
      const [beside, merged] = [await logits(false), await logits(true)];
      const expected = tensorOf(record.logits).reshape(beside.shape);
      allclose(beside, expected, tolerance.float32);
      allclose(merged, expected, tolerance.float32);
    });

    it("has the tensors of a folder that is written here", async () => {
      const targets = record.targets;
      const adapter = lora(model, {
        rank: 2,
        alpha: 5,
        ...(targets && { targetModules: targets }),
      });
      const path = join(scratch, name);
      await saveAdapter(files, path, adapter, adapter.init(new Rng(1)));
      expect(await tensorsIn(path)).toEqual(await tensorsIn(folder));
    });
  },
);
