import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { fixture, type RawTensor, tensorOf } from "../../../test/support/fixture.ts";
import { tinyConfigs } from "../../../test/support/tiny-encoder.ts";
import { contextOf } from "../../adapters/adapted.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { withModules } from "../../adapters/saved-modules.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import type { Example } from "../../data/example.ts";
import { type TokenClassExample, taskSet } from "../../data/task-examples.ts";
import { nodeHost } from "../../host/node.ts";
import type { Value } from "../../ir/graph.ts";
import { families } from "../../models/families.ts";
import { loadModel } from "../../models/folder.ts";
import { headedModel } from "../../models/headed.ts";
import type { EncoderModel, LanguageModel } from "../../models/model.ts";
import type { Module, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { Finetuner, type FinetuneState, finetune } from "../../train/finetune.ts";
import type { Trainee } from "../../train/program.ts";
import { maskedLm } from "../../train/tasks/masked-lm.ts";
import { tokenClassification } from "../../train/tasks/token-classification.ts";
import { traineeOf, withAdapter } from "../../train/trainee.ts";
import {
  bindLtSft,
  type LtSftAdapter,
  type LtSftOptions,
  ltSft,
  ltSftKind,
  sparseDeltaOf,
} from "./lt-sft.ts";
import { maskableSlots } from "./shared/lottery.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-lt-sft-"));
afterAll(() => rm(scratch, { recursive: true }));
const llama = await loadModel(
  files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);
const model = llama.model as LanguageModel;
const base = llama.params;

const examples: Example[] = Array.from({ length: 8 }, (_, i) => ({
  ids: Int32Array.from({ length: 9 }, (_v, at) => (i * 5 + at * ((i % 3) + 1)) % 37),
  mask: Uint8Array.from({ length: 9 }, (_v, at) => (at > 0 ? 1 : 0)),
}));
const settings = { steps: 8, batchSize: 4, learningRate: 5e-3, seed: 2, weightDecay: 0 };

function loadedOf(adapter: LtSftAdapter): LoadedAdapter {
  return { adapter, params: adapter.init(new Rng(1)), buffers: adapter.initBuffers!() };
}

const traineeFor = (options: LtSftOptions): Trainee =>
  traineeOf(model, base, loadedOf(bindLtSft(model, options)));

function logitsOf(params: TensorRecord, loaded?: LoadedAdapter): Promise<Tensor> {
  const own = { ...loaded?.params, ...loaded?.buffers };
  return evaluate<Tensor>(
    backend,
    ((values: ValueRecord, extra: ValueRecord, x: Value) =>
      model.forward(model.context(values, {}, contextOf(loaded, model, extra)), x).logits) as never,
    params,
    own,
    Tensor.from([3, 1, 4, 1, 5, 9], [1, 6], "int32"),
  );
}

describe("another hand's transcription", () => {
  interface Case {
    readonly params: number;
    readonly rounds: number;
    readonly l1: number;
    readonly loss: number;
    readonly delta: Readonly<
      Record<string, { readonly index: RawTensor; readonly value: RawTensor }>
    >;
  }
  const { ids, cases, learningRate, clipNorm } = fixture<{
    readonly ids: RawTensor;
    readonly cases: readonly Case[];
    readonly learningRate: number;
    readonly clipNorm: number;
  }>("lt-sft");
  const [rows, length] = ids.shape as [number, number];
  const same: Example[] = Array.from({ length: rows }, (_, i) => ({
    ids: Int32Array.from(ids.data.slice(i * length, (i + 1) * length)),
    mask: Uint8Array.from({ length }, (_v, at) => (at > 0 ? 1 : 0)),
  }));

  it.each(cases)("has the same mask and differences: $rounds rounds, l1 $l1", async (record) => {
    const adapter = bindLtSft(model, {
      params: record.params,
      iterations: record.rounds,
      l1: record.l1,
    });
    const made = await finetune(traineeOf(model, base, loadedOf(adapter)), same, backend, {
      ...{ steps: 12, batchSize: rows, learningRate, clipNorm, weightDecay: 0, warmup: 0 },
    });
    const delta = sparseDeltaOf(adapter, made);
    expect(delta.count).toBe(record.params);
    for (const [path, { index, value }] of Object.entries(record.delta)) {
      const own = delta.entries.get(path) ?? { indices: [], values: [] };
      expect([...own.indices]).toEqual([...index.data]);
      const found = Tensor.from([...own.values], value.shape);
      allclose(found, tensorOf(value), 2e-5, path);
    }
  });
});

describe("training", () => {
  it("changes exactly as many weights as it may, and the rest not by a bit", async () => {
    const adapter = bindLtSft(model, { params: 123 });
    const made = await finetune(traineeOf(model, base, loadedOf(adapter)), examples, backend, {
      ...settings,
      weightDecay: 0.1,
    });
    const merged = adapter.merge(base, made.params, made.buffers);
    let changed = 0;
    for (const [path, { data }] of Object.entries(merged)) {
      for (let i = 0; i < data.length; i++) if (data[i] !== base[path]!.data[i]) changed++;
    }
    expect(sparseDeltaOf(adapter, made).count).toBe(123);
    expect(changed).toBeLessThanOrEqual(123);
    expect(changed).toBeGreaterThan(100);
    expect(Object.keys(merged).some((path) => path.includes("norm"))).toBe(false);
  });

  it("begins the sparse phase where the full one began, with a rate that begins anew", async () => {
    const losses: number[] = [];
    const rates: number[] = [];
    await finetune(traineeFor({ density: 0.1 }), examples.slice(0, 4), backend, {
      ...settings,
      warmup: 0,
      onStep: ({ loss, learningRate }) => {
        losses.push(loss);
        rates.push(learningRate);
      },
    });
    // One batch, so that equal weights have equal losses.
    expect(losses[4]).toBeCloseTo(losses[0]!, 6);
    expect(losses[3]).toBeLessThan(losses[0]!);
    expect(losses[7]).toBeLessThan(losses[0]!);
    expect(rates.slice(4)).toEqual(rates.slice(0, 4));
  });

  it.each([
    ["in the full phase", 2, 1],
    ["at the border", 4, 1],
    ["in the sparse phase", 6, 1],
    ["in a second round", 5, 2],
  ])("goes on with the same bits after a stop %s", async (_, stop, iterations) => {
    const options = { density: 0.1, iterations, l1: 0.1 };
    const whole = await Finetuner.create(traineeFor(options), examples, backend, settings);
    while (await whole.next());
    const end = await copied(whole);
    const first = await Finetuner.create(traineeFor(options), examples, backend, settings);
    for (let i = 0; i < stop; i++) await first.next();
    const state = await copied(first);
    const second = await Finetuner.create(traineeFor(options), examples, backend, settings);
    await second.load(state);
    while (await second.next());
    const again = await copied(second);
    expect(again.params).toEqual(end.params);
    expect(again.buffers).toEqual(end.buffers);
  });

  it("takes weights by chance for rand-SFT, in one phase", async () => {
    const adapter = bindLtSft(model, { params: 200, select: "random" });
    expect(adapter.hook).toBeUndefined();
    const loaded = loadedOf(adapter);
    const made = await finetune(traineeOf(model, base, loaded), examples, backend, settings);
    expect(made.buffers).toEqual({});
    const { params, buffers = {} } = { ...loaded, params: made.params };
    expect(sparseDeltaOf(adapter, { params, buffers }).count).toBe(200);
    expect(made.losses.at(-1)).toBeLessThan(made.losses[0]!);
  });

  it("pulls towards the base with a penalty", async () => {
    const size = async (l1: number): Promise<number> => {
      const adapter = bindLtSft(model, { density: 0.1, l1 });
      const trainee = traineeOf(model, base, loadedOf(adapter));
      const made = await finetune(trainee, examples, backend, settings);
      let sum = 0;
      for (const { values } of sparseDeltaOf(adapter, made).entries.values()) {
        for (const x of values) sum += Math.abs(x);
      }
      return sum;
    };
    expect(await size(500)).toBeLessThan(0.7 * (await size(0)));
  });

  it("reads back from its folder, merges to the same logits, and keeps only what changed", async () => {
    const adapter = bindLtSft(model, { params: 77 });
    const trainee = traineeOf(model, base, loadedOf(adapter));
    const { params, buffers } = await finetune(trainee, examples, backend, settings);
    const folder = join(scratch, "llama");
    await saveAdapter(files, folder, adapter, params, { buffers });
    const loaded = await loadAdapter(files, folder, model, [ltSftKind]);
    const adapted = await logitsOf(base, { adapter, params, buffers });
    allclose(await logitsOf(base, loaded), adapted, 1e-7);
    const merged = { ...base, ...loaded.adapter.merge(base, loaded.params, loaded.buffers) };
    allclose(await logitsOf(merged), adapted, 2e-6);
    expect(() => allclose(adapted, Tensor.zeros(adapted.shape, "float32"), 1e-3)).toThrow();
    const stored = adapter.file!.pack({ params, buffers });
    const numbers = Object.values(stored).reduce((sum, { size }) => sum + size, 0);
    expect(numbers).toBe(2 * 77);
  });
});

async function copied(tuner: Finetuner): Promise<FinetuneState> {
  const clone = (record: Readonly<Record<string, Tensor>>): TensorRecord =>
    Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, tensor.clone()]));
  const { params, optimizer, buffers = {}, tokens } = await tuner.state();
  await tuner.release();
  return {
    params: clone(params),
    optimizer: { ...optimizer, tensors: clone(optimizer.tensors) },
    buffers: clone(buffers),
    tokens,
  };
}

describe("encoders", () => {
  const config = { ...tinyConfigs["bert"]!, hidden_dropout_prob: 0 };
  const body = families["bert"]!(config);
  const { params: bodyParams } = body.init(new Rng(5));
  const head = { labels: ["A", "B", "C"], problem: "single_label_classification" } as const;
  const tagger = headedModel(
    body,
    bodyParams,
    { task: "token-classification", ...head },
    new Rng(6),
  );
  const filler = headedModel(
    body,
    bodyParams,
    { task: "masked-lm", labels: [], problem: head.problem },
    new Rng(6),
  );
  const texts = Array.from({ length: 12 }, (_, i) => ({
    ids: Int32Array.from({ length: 8 }, (_v, at) => 5 + ((i * 3 + at * 2) % 40)),
    isCut: false,
    start: 1,
    kept: 6,
  }));
  const tagged: TokenClassExample[] = texts.map((text) => ({
    ...text,
    labels: text.ids.map((id, at) => (at === 0 ? -1 : id % 3)),
    lost: 0,
  }));

  async function trained(
    made: { readonly model: EncoderModel; readonly params: TensorRecord },
    options: LtSftOptions,
    modules: readonly string[],
    objective: Trainee["objective"],
    set: Parameters<typeof finetune>[1],
    steps = 8,
  ) {
    const adapter = bindLtSft(made.model, options);
    const whole =
      modules.length > 0
        ? withModules(adapter, made.model, modules, { params: made.params })
        : adapter;
    const prepared = await adapter.prepare!({ base: made.params, rng: new Rng(3) } as never);
    const loaded = {
      adapter: whole,
      params: { ...whole.init(new Rng(3)), ...prepared.params },
      buffers: prepared.buffers,
    };
    const trainee = {
      model: made.model,
      objective: objective!,
      ...withAdapter(made.model, made.params, loaded),
    } as unknown as Trainee<Module>;
    const result = await finetune(trainee, set, backend, { ...settings, steps });
    return { adapter, whole, result };
  }

  const setOf = <E extends { readonly ids: Int32Array }>(list: readonly E[]) =>
    taskSet(list, ({ ids }) => ({ length: ids.length, loss: 1, all: [ids] }));

  it("trains a head whole, and rewinds it with the rest", async () => {
    const objective = tokenClassification(tagger.model) as unknown as Trainee["objective"];
    const losses: number[] = [];
    const { adapter, whole, result } = await trained(
      tagger,
      { density: 0.05 },
      ["classifier"],
      objective,
      setOf(tagged.slice(0, 4)),
    );
    losses.push(...result.losses);
    expect(losses[4]).toBeCloseTo(losses[0]!, 6);
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect(sparseDeltaOf(adapter, result).count).toBe(adapter.budget);
    const folder = join(scratch, "tagger");
    await saveAdapter(files, folder, whole, result.params, { buffers: result.buffers });
    const loaded = await loadAdapter(files, folder, tagger.model, [ltSftKind]);
    const name = "base_model.model.classifier.weight";
    expect(loaded.params[name]).toEqual(result.params[name]);
    expect(loaded.params[name]).not.toEqual(tagger.params["classifier.weight"]);
  });

  it("refuses a head whose first numbers it was not told", async () => {
    const adapter = bindLtSft(tagger.model);
    const whole = withModules(adapter, tagger.model, ["classifier"], { params: tagger.params });
    const trainee = {
      model: tagger.model,
      objective: tokenClassification(tagger.model),
      ...withAdapter(tagger.model, tagger.params, {
        adapter: whole,
        params: whole.init(new Rng(1)),
        buffers: adapter.initBuffers!(),
      }),
    } as unknown as Trainee<Module>;
    await expect(finetune(trainee, setOf(tagged), backend, settings)).rejects.toThrow(
      /^lt-sft: the first numbers of the head \(classifier\.weight\) are not known — begin with/,
    );
  });

  it("keeps the output matrix of hidden words where that is asked for", async () => {
    const objective = maskedLm(filler.model, { maskId: 4 }) as unknown as Trainee["objective"];
    const [free, frozen] = await Promise.all(
      [false, true].map((freezeDecoder) =>
        trained(filler, { density: 1, freezeDecoder }, [], objective, setOf(texts), 2),
      ),
    );
    const embedding = "bert.embeddings.word_embeddings.weight";
    const change = (made: typeof free): readonly number[] =>
      Array.from(
        made!.adapter
          .merge(filler.params, made!.result.params, made!.result.buffers)
          [embedding]!.numbers(),
      );
    expect(free!.result.losses[0]).toBeCloseTo(frozen!.result.losses[0]!, 6);
    // Rows of words that no text has get a gradient from the output matrix alone.
    const unused = 4 + 90;
    const width = filler.model.sizes.dModel;
    const row = (numbers: ArrayLike<number>): readonly number[] =>
      Array.from(numbers).slice(unused * width, (unused + 1) * width);
    const before = row(filler.params[embedding]!.numbers());
    expect(row(change(frozen))).toEqual(before);
    expect(row(change(free))).not.toEqual(before);
  });

  it("leaves norms, heads and what is excluded", () => {
    const paths = [...maskableSlots(tagger.model, ["position_embeddings"]).keys()];
    expect(paths.some((path) => /LayerNorm|classifier|position_embeddings/.test(path))).toBe(false);
    expect(paths).toContain("bert.embeddings.word_embeddings.weight");
    expect(paths).toContain("bert.encoder.layer.1.output.dense.bias");
  });
});

describe("settings", () => {
  it("says what is wrong", () => {
    expect(() => bindLtSft(model, { density: 0 })).toThrow(
      "lt-sft: density must be a number in (0, 1]",
    );
    expect(() => bindLtSft(model, { params: 1e9 })).toThrow(
      /^lt-sft: params must be a whole number from 1 to \d+, the weights that may change, got 1000000000\./,
    );
    expect(() => bindLtSft(model, { exclude: ["lm_heads"] })).toThrow(
      'lt-sft: exclude names "lm_heads", which is part of no path — paths are like ',
    );
    expect(() => bindLtSft(model, { freezeDecoder: true })).toThrow(
      "lt-sft: freezeDecoder is for models with a head for hidden words, this llama has none.",
    );
    expect(ltSft.roles.adapter).toBe(ltSftKind);
  });
});
