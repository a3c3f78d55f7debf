/**
 * Folders that are made here, which PEFT has read: hashes of the files, and the logits that it gave with them. With
 * PLASTICITY_KEEP_PEFT=FOLDER the folders stay there, for `scripts/parity/peft-kinds.py ours FOLDER`.
 */
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { uniforms } from "../../../test/support/by-rule.ts";
import { fixture, parityBackend, type RawTensor, tensorOf } from "../../../test/support/fixture.ts";
import type { Adapter, LoadedAdapter } from "../../adapters/adapter.ts";
import { lora } from "../../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { nodeHost } from "../../host/node.ts";
import { probeLogits } from "../../infer/verify.ts";
import { loadModel } from "../../models/folder.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { adapterKinds } from "../registry.ts";
import { adalora } from "./adalora.ts";
import { boft } from "./boft.ts";
import { ia3 } from "./ia3.ts";
import { loha } from "./loha.ts";
import { lokr } from "./lokr.ts";
import { oft } from "./oft.ts";
import { maskName } from "./shared/rank-budget.ts";
import { vera } from "./vera.ts";

const keep = process.env["PLASTICITY_KEEP_PEFT"];
const folder = keep ?? (await mkdtemp(join(tmpdir(), "plasticity-ours-")));
afterAll(async () => {
  if (keep === undefined) await rm(folder, { recursive: true });
});

const backend = await parityBackend();
const { files } = nodeHost();
const targetModules = ["q_proj", "v_proj", "down_proj"];

const cases: Readonly<
  Record<string, readonly [base: string, bind: (model: PretrainedModel) => Adapter]>
> = {
  lora: [
    "hf-llama",
    (model) => lora(model, { rank: 3, targetModules, alphaPattern: { v_proj: 5 } }),
  ],
  "lora-gpt2": ["hf-gpt2", (model) => lora(model, { rank: 2, rankStabilized: true })],
  dora: ["hf-llama", (model) => lora(model, { rank: 2, targetModules, useDora: true })],
  ia3: ["hf-llama", (model) => ia3(model)],
  "ia3-all": [
    "hf-gpt2",
    (model) => ia3(model, { targetModules: "all-linear", feedforwardModules: ["mlp.c_fc"] }),
  ],
  vera: ["hf-llama", (model) => vera(model, { rank: 5, targetModules, dInitial: 0.2 })],
  "vera-seed": [
    "hf-llama",
    (model) =>
      vera(model, {
        ...{ rank: 4, targetModules, saveProjection: false, projectionPrngKey: 11 },
        excludeModules: ["0.self_attn.q_proj"],
      }),
  ],
  loha: ["hf-llama", (model) => loha(model, { rank: 3, alpha: 6, targetModules })],
  lokr: [
    "hf-llama",
    (model) => lokr(model, { rank: 1, targetModules, decomposeFactor: 8, decomposeBoth: true }),
  ],
  adalora: ["hf-llama", (model) => adalora(model, { initR: 4, targetR: 2, targetModules })],
  oft: ["hf-llama", (model) => oft(model, { blockSize: 8, targetModules })],
  "oft-cayley": [
    "hf-llama",
    (model) => oft(model, { blockSize: 0, blocks: 4, targetModules, useCayleyNeumann: false }),
  ],
  boft: ["hf-llama", (model) => boft(model, { blockSize: 2, targetModules, factors: 2 })],
};

/** First numbers moved by known ones, so that nothing is zero; about 1 what the base would give (DoRA's magnitudes). */
async function made(
  name: string,
): Promise<{ base: string; own: LoadedAdapter; plain: Tensor; logits: Tensor; ids: number[] }> {
  const [base, bind] = cases[name]!;
  const at = new URL(`../../../test/parity/${base}`, import.meta.url).pathname;
  const { model, params: weights } = await loadModel(files, at);
  const adapter = bind(model);
  const params = Object.fromEntries(
    Object.entries(adapter.init(new Rng(7))).map(([tensor, first]) => {
      const more = uniforms(`${name} ${tensor}`, first.size);
      const numbers = Float32Array.from(
        first.numbers(),
        (x, i) => (Number.isNaN(x) ? 1 : x) + 0.6 * more[i]! - 0.3,
      );
      return [tensor, new Tensor("float32", first.shape, numbers)];
    }),
  );
  const buffers = adapter.initBuffers?.() ?? {};
  if (name === "adalora") {
    const mask = buffers[maskName]!.data as Float32Array;
    // The first layer keeps its ranks, the second loses all.
    for (let i = 4; i < mask.length; i++) mask[i] = i < 8 || i % 3 === 0 ? 0 : 1;
    for (const [i, path] of adapter.targets.entries()) {
      const values = params[`base_model.model.${path}.lora_E`]!.data as Float32Array;
      for (let j = 0; j < 4; j++) values[j]! *= mask[4 * i + j]!;
    }
  }
  const own = { adapter, params, buffers };
  const ids = [3, 1, 7, 20, 15, 4];
  const probe = Tensor.from(ids, [1, ids.length], "int32");
  const logits = await probeLogits(backend, model, weights, probe, own);
  const plain = await probeLogits(backend, model, weights, probe);
  await saveAdapter(files, join(folder, name), adapter, params, { base, buffers });
  if (keep !== undefined) {
    const about = { base, ids, shape: [1, ids.length], logits: Array.from(logits.numbers()) };
    await writeFile(join(folder, name, "about.json"), JSON.stringify(about));
  }
  const again = await loadAdapter(files, join(folder, name), model, adapterKinds());
  allclose(await probeLogits(backend, model, weights, probe, again), logits, 1e-6);
  return { base, own, plain, logits, ids };
}

describe("a folder that is made here", () => {
  const record =
    keep === undefined
      ? fixture<{
          readonly cases: Readonly<
            Record<
              string,
              { readonly sha256: string; readonly configSha256: string; readonly logits: RawTensor }
            >
          >;
        }>("peft-ours").cases
      : undefined;

  it.each(Object.keys(cases))("has the bytes that PEFT read, and its logits: %s", async (name) => {
    const { logits, plain } = await made(name);
    expect(
      Math.max(...Array.from(logits.numbers(), (x, i) => Math.abs(x - plain.numbers()[i]!))),
    ).toBeGreaterThan(0.05);
    if (!record) return;
    const hash = async (file: string): Promise<string> =>
      createHash("sha256")
        .update(await readFile(join(folder, name, file)))
        .digest("hex");
    const { sha256, configSha256, logits: theirs } = record[name]!;
    expect(await hash("adapter_model.safetensors")).toBe(sha256);
    expect(await hash("adapter_config.json")).toBe(configSha256);
    const expected = tensorOf(theirs);
    allclose(logits.reshape(expected.shape), expected, 1e-4);
  });
});
