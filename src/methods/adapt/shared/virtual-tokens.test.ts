/** Prefix and prompt tuning against PEFT: folders, logits, training, and what is written. */
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  tensorOf,
} from "../../../../test/support/fixture.ts";
import { ruleNumbers, ruleWeights } from "../../../../test/support/rule-weights.ts";
import { adaptedContext } from "../../../adapters/adapted.ts";
import type { Adapter, LoadedAdapter } from "../../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../../adapters/peft.ts";
import { evaluate } from "../../../backend/compile.ts";
import { nodeHost } from "../../../host/node.ts";
import type { Value } from "../../../ir/graph.ts";
import { families } from "../../../models/families.ts";
import { loadModel } from "../../../models/folder.ts";
import type { LanguageModel } from "../../../models/model.ts";
import type { TensorRecord, ValueRecord } from "../../../nn/module.ts";
import { adamW } from "../../../optim/adamw.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { TrainProgram } from "../../../train/program.ts";
import { Updater } from "../../../train/updater.ts";
import { bindPrefixTuning, prefixTuningKind } from "../prefix-tuning.ts";
import { bindPromptTuning, promptTuningKind } from "../prompt-tuning.ts";

const backend = await parityBackend();
const { files } = nodeHost();
const kinds = [prefixTuningKind, promptTuningKind];
const folderOf = (name: string): string =>
  new URL(`../../../../test/parity/${name}`, import.meta.url).pathname;
const scratch = await mkdtemp(join(tmpdir(), "plasticity-prompts-"));
afterAll(() => rm(scratch, { recursive: true }));

interface Recorded {
  readonly base: string;
  readonly inputs: { readonly ids: RawTensor };
  readonly logits: RawTensor;
  readonly losses?: readonly number[];
}

async function open(base: string): Promise<{ model: LanguageModel; params: TensorRecord }> {
  if (base === "gpt2" || base === "llama") {
    const { model, params } = await loadModel(files, folderOf(`hf-${base}`));
    return { model: model as LanguageModel, params };
  }
  const record = fixture<{ config: Record<string, unknown>; normMean: number }>(`decoders/${base}`);
  const model = families[record.config["model_type"] as string]!(record.config) as LanguageModel;
  const params = ruleWeights(model.init(new Rng(0)).params, record.normMean, (path) =>
    path.replace(/^embed_out\./, "lm_head."),
  );
  return { model, params };
}

function logitsOf(
  model: LanguageModel,
  params: TensorRecord,
  { adapter, params: own }: LoadedAdapter,
  ids: Tensor,
): Promise<Tensor> {
  return evaluate<Tensor>(
    backend,
    (p: ValueRecord, q: ValueRecord, x: Value) =>
      model.forward(model.context(p, {}, adaptedContext(adapter, model, q)), x).logits,
    params,
    own,
    ids,
  );
}

/** Columns [offset, offset + T - 1) of (B, T) ids. */
function shifted(ids: Tensor, offset: number): Tensor<"int32"> {
  const [batch, all] = ids.shape as [number, number];
  const [length, numbers] = [all - 1, ids.numbers()];
  const at = (i: number): number => numbers[Math.floor(i / length) * all + (i % length) + offset]!;
  return Tensor.from(
    Array.from({ length: batch * length }, (_, i) => at(i)),
    [batch, length],
    "int32",
  );
}

const cases = [
  "prefix-gpt2",
  "prefix-llama",
  "prefix-llama-projection",
  "prefix-qwen3",
  "prefix-mistral",
  "prefix-gemma3",
  "prompt-gpt2",
  "prompt-llama",
  "prompt-mistral",
  "prompt-gemma3",
  "prompt-gpt-neox",
];

describe.each(cases)("a folder that PEFT wrote (%s)", async (name) => {
  const record = fixture<Recorded>(`peft-prompts/${name}`);
  const { model, params } = await open(record.base);
  const folder = folderOf(`peft-prompts/${name}`);
  const loaded = await loadAdapter(files, folder, model, kinds);
  const ids = tensorOf(record.inputs.ids);

  it("gives PEFT's logits", async () => {
    const logits = await logitsOf(model, params, loaded, shifted(ids, 0));
    allclose(logits, tensorOf(record.logits).reshape(logits.shape), 1e-5);
  });

  it("is written again with the same bytes and the same settings", async () => {
    const copy = join(scratch, name);
    await saveAdapter(files, copy, loaded.adapter, loaded.params, { base: record.base });
    const weights = "adapter_model.safetensors";
    expect(await readFile(join(copy, weights))).toEqual(await readFile(join(folder, weights)));
    const read = async (path: string): Promise<Record<string, unknown>> =>
      JSON.parse(await readFile(join(path, "adapter_config.json"), "utf8"));
    const { peft_version: _, ...theirs } = await read(folder);
    expect(await read(copy)).toEqual(theirs);
  });
});

describe.each([
  "prefix-gpt2",
  "prefix-llama",
  "prefix-llama-projection",
  "prompt-gpt2",
  "prompt-llama",
])("training from a folder that PEFT wrote (%s)", async (name) => {
  const record = fixture<Recorded>(`peft-prompts/${name}`);
  const { model, params } = await open(record.base);
  const loaded = await loadAdapter(files, folderOf(`peft-prompts/${name}`), model, kinds);
  const ids = tensorOf(record.inputs.ids);

  it("gives PEFT's losses over five AdamW steps", async () => {
    const isProjected = name.endsWith("projection");
    const adapter = isProjected
      ? bindPrefixTuning(model, { tokens: 5, projection: true, encoderWidth: 6 })
      : loaded.adapter;
    // An MLP is not in the folder; its numbers follow the rule of the script.
    const first = isProjected
      ? byRule(adapter, (path) => path.replace("prompt_encoder.", "prompt_encoder.default."))
      : loaded.params;
    const trainee = {
      model,
      frozen: params,
      trained: first,
      adapt: (values: ValueRecord) => adaptedContext(adapter, model, values),
    };
    const updater = new Updater(
      first,
      [{ paths: Object.keys(first), optimizer: adamW() }],
      backend,
    );
    const program = new TrainProgram(trainee, backend);
    const [x, y] = [shifted(ids, 0), shifted(ids, 1)];
    const part = {
      ids: x,
      targets: y.reshape([y.size]),
      weights: Tensor.from(new Float32Array(y.size).fill(1)),
    };
    const losses: number[] = [];
    for (let step = 0; step <= 5; step++) {
      losses.push(
        await program.lossAndGradients(part, updater.params, updater.gradients, y.size, new Rng(0)),
      );
      await updater.step(1e-2);
    }
    await program.release();
    losses.forEach((loss, step) => {
      expect(Math.abs(loss - record.losses![step]!), `step ${step}`).toBeLessThan(1e-5);
    });
  });
});

/** Numbers of an adapter by the rule of the parity scripts. */
function byRule(adapter: Adapter, nameOf: (path: string) => string = (path) => path): TensorRecord {
  return Object.fromEntries(
    Object.entries(adapter.init(new Rng(0))).map(([path, { shape, size }]) => {
      const numbers = ruleNumbers(nameOf(path), size).map((u) => 0.9 * u);
      return [path, new Tensor("float32", shape, Float32Array.from(numbers))];
    }),
  );
}

describe("a folder that is written here", () => {
  const made: Record<string, (model: LanguageModel) => Adapter> = {
    "prefix-gpt2": (model) => bindPrefixTuning(model, { tokens: 3 }),
    "prefix-llama-projection": (model) =>
      bindPrefixTuning(model, { tokens: 2, projection: true, encoderWidth: 5 }),
    "prompt-llama": (model) => bindPromptTuning(model, { tokens: 3 }),
  };

  it.each(Object.keys(made))("gives in PEFT what it gives here (%s)", async (name) => {
    const { model, params } = await open(name.split("-")[1]!);
    const adapter = made[name]!(model);
    const own = byRule(adapter);
    const folder = join(process.env["PROMPTS_OUT"] ?? scratch, name);
    await saveAdapter(files, folder, adapter, own);
    const bytes = await readFile(join(folder, "adapter_model.safetensors"));
    const { cases: recorded } = fixture<{
      cases: Record<string, { sha256: string; ids: RawTensor; logits: RawTensor }>;
    }>("peft-prompts/ours");
    const { sha256, ids, logits } = recorded[name]!;
    expect(createHash("sha256").update(bytes).digest("hex")).toBe(sha256);
    const beside = await logitsOf(model, params, { adapter, params: own }, tensorOf(ids));
    allclose(beside, tensorOf(logits).reshape(beside.shape), 1e-5);
    const again = await loadAdapter(files, folder, model, kinds);
    allclose(await logitsOf(model, params, again, tensorOf(ids)), beside, 1e-5);
  });
});
