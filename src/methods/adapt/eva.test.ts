import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { fixture, type RawTensors, tensorOf } from "../../../test/support/fixture.ts";
import { contextOf } from "../../adapters/adapted.ts";
import type { PrepareScene } from "../../adapters/adapter.ts";
import { type LoraOptions, lora } from "../../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { memorySet } from "../../data/set.ts";
import { nodeHost } from "../../host/node.ts";
import type { Value } from "../../ir/graph.ts";
import { loadModel } from "../../models/folder.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import { readOptions } from "../../options.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { finetune } from "../../train/finetune.ts";
import { prepareScene } from "../../train/prepare.ts";
import { traineeOf } from "../../train/trainee.ts";
import type { Initialised } from "../method.ts";
import {
  atRest,
  type EvaOptions,
  eva,
  explainedRatios,
  type IncrementalSvd,
  incrementalSvd,
  redistributeRanks,
} from "./eva.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const { model, params } = await loadModel(
  files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);
const tolerance = 1e-4;

const rowsOf = (rows: readonly (readonly number[])[]): Tensor<"float32"> =>
  Tensor.from(rows.flat(), [rows.length, rows[0]!.length]);

describe("incremental SVD", () => {
  it("gives directions and shares worked by hand", () => {
    // About their mean (1, 1) the rows are (±3, 0), (0, ±1): squares 18 and 2 of 20.
    const rows = rowsOf([
      [4, 1],
      [-2, 1],
      [1, 2],
      [1, 0],
    ]);
    const svd = incrementalSvd(undefined, rows, 2)!;
    expect([...svd.mean]).toEqual([1, 1]);
    expect(svd.squares).toBeCloseTo(20, 12);
    expect(svd.singularValues[0]).toBeCloseTo(Math.sqrt(18), 12);
    expect(explainedRatios(svd)[0]).toBeCloseTo(0.9, 12);
    expect([...svd.components.data].map((x) => Math.abs(Math.round(x * 1e9) / 1e9))).toEqual([
      1, 0, 0, 1,
    ]);
  });

  it("of batches one after another is that of all rows about the mean of all", () => {
    const rng = new Rng(5);
    const all = Array.from({ length: 30 }, () =>
      Array.from({ length: 4 }, (_, j) => 3 * j + (4 - j) * rng.normal()),
    );
    // All four directions are kept, so nothing is lost between batches.
    let svd: IncrementalSvd | undefined;
    for (const [from, to] of [
      [0, 9],
      [9, 13],
      [13, 30],
    ]) {
      svd = incrementalSvd(svd, rowsOf(all.slice(from, to)), 4);
    }
    const whole = incrementalSvd(undefined, rowsOf(all), 4)!;
    expect(svd!.count).toBe(30);
    expect(svd!.squares).toBeCloseTo(whole.squares, 8);
    for (let i = 0; i < 4; i++) {
      expect(svd!.mean[i]).toBeCloseTo(whole.mean[i]!, 10);
      expect(svd!.singularValues[i]).toBeCloseTo(whole.singularValues[i]!, 8);
    }
    for (let i = 0; i < 16; i++) {
      expect(svd!.components.data[i]).toBeCloseTo(whole.components.data[i]!, 8);
    }
    expect(explainedRatios(svd!).reduce((a, b) => a + b)).toBeCloseTo(1, 10);
  });

  it("leaves out a batch with fewer rows than directions", () => {
    const first = incrementalSvd(
      undefined,
      rowsOf([
        [1, 0],
        [0, 2],
        [0, 0],
      ]),
      2,
    )!;
    expect(incrementalSvd(first, rowsOf([[5, 5]]), 2)).toBe(first);
    expect(incrementalSvd(undefined, rowsOf([[5, 5]]), 2)).toBeUndefined();
  });

  it("rests where the cosine reaches tau", () => {
    const one = incrementalSvd(
      undefined,
      rowsOf([
        [4, 1],
        [-2, 1],
        [1, 2],
        [1, 0],
      ]),
      2,
    )!;
    expect(atRest(one, one, 1 - 1e-12)).toEqual([true, true]);
    const turned = { ...one, components: { ...one.components, data: Float64Array.of(0, 1, 1, 0) } };
    expect(atRest(one, turned, 0.99)).toEqual([false, false]);
  });
});

describe("ranks", () => {
  it("go to the largest shares, worked by hand", () => {
    const layers = [
      { path: "a", first: "a", explained: [0.9, 0.05, 0.01, 0.01] },
      { path: "b", first: "b", explained: [0.5, 0.4, 0.06, 0.02] },
    ];
    // The largest four: 0.9 a, 0.5 b, 0.4 b, 0.06 b.
    expect(redistributeRanks(layers, 4)).toEqual(
      new Map([
        ["a", 1],
        ["b", 3],
      ]),
    );
  });

  it("give the first of layers with one input the larger count", () => {
    const layers = [
      { path: "q", first: "q", explained: [0.5, 0.2] },
      { path: "o", first: "o", explained: [0.3, 0.1] },
      { path: "v", first: "q", explained: [0.5, 0.2] },
    ];
    const ranks = redistributeRanks(layers, 4);
    expect(ranks).toEqual(
      new Map([
        ["q", 2],
        ["o", 1],
        ["v", 1],
      ]),
    );
  });

  it("spend the budget and no more, whatever the shares", () => {
    const shares = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), {
      minLength: 4,
      maxLength: 4,
    });
    fc.assert(
      fc.property(
        fc.array(shares, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 24 }),
        (all, budget) => {
          const layers = all.map((explained, i) => ({ path: `${i}`, first: "0", explained }));
          const ranks = [...redistributeRanks(layers, budget).values()];
          expect(ranks.reduce((a, b) => a + b)).toBe(Math.min(budget, 4 * all.length));
          expect(ranks[0]).toBe(Math.max(...ranks));
        },
      ),
      { seed: 2, numRuns: 100 },
    );
  });
});

interface Case {
  readonly targets: readonly string[];
  readonly rank: number;
  readonly alpha: number;
  readonly options: {
    readonly rho: number;
    readonly tau: number;
    readonly whiten?: boolean;
    readonly adjust_scaling_factors?: boolean;
  };
  readonly batchesUsed: number;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly targetModules: readonly string[];
  readonly rows: RawTensors;
}

const { texts, cases } = fixture<{
  readonly texts: readonly (readonly (readonly number[])[])[];
  readonly cases: readonly Case[];
}>("eva");

/** The recorded batches in their order; a further token at the end, which no layer reads. */
function recordedScene(): PrepareScene {
  const set = memorySet(
    texts.flat().map((ids) => ({
      ids: Int32Array.from([...ids, 0]),
      mask: Uint8Array.from([...ids.map(() => 0), 1]),
    })),
  );
  let start = 0;
  const batches = texts.map((batch) => batch.map(() => start++));
  const trainee = traineeOf(model as LanguageModel, params);
  return prepareScene(trainee, { ...set, batches: () => batches }, backend);
}

const start = (options: LoraOptions, own: EvaOptions): Promise<Initialised> | Initialised =>
  eva.roles.initialiser!.initialise(recordedScene(), options, own);

describe.each(cases)("PEFT's EVA, $targets, rank $rank", (record) => {
  const { rho, tau, whiten = false, adjust_scaling_factors: adjustScaling = true } = record.options;

  it("has the same ranks, alphas, targets, batches and rows", async () => {
    const {
      lora: made,
      params: numbers,
      report,
    } = await start(
      { rank: record.rank, alpha: record.alpha, targetModules: record.targets },
      { rho, tau, whiten, adjustScaling },
    );
    expect(report["batchesUsed"]).toBe(record.batchesUsed);
    expect(report["unsettled"]).toEqual([]);
    expect(made.rankPattern).toEqual(record.rankPattern);
    expect(made.alphaPattern).toEqual(record.alphaPattern);
    const layers = lora(model, made).layers;
    expect([...layers.keys()].sort()).toEqual(Object.keys(record.rows).sort());
    for (const [path, raw] of Object.entries(record.rows)) {
      allclose(numbers[layers.get(path)!.a]!, tensorOf(raw), tolerance, path);
    }
  });
});

describe("on a model", () => {
  const ids = Tensor.from([3, 1, 4, 1, 5, 9], [1, 6], "int32");
  const logits = (made?: Initialised, own?: TensorRecord): Promise<Tensor> => {
    const adapter = made && lora(model, made.lora);
    const numbers = own ?? made?.params ?? {};
    return evaluate<Tensor>(
      backend,
      ((values: ValueRecord, extra: ValueRecord, x: Value) => {
        const loaded = adapter && { adapter, params: numbers };
        const context = model.context(values, {}, contextOf(loaded, model, extra));
        return (model as LanguageModel).forward(context, x).logits;
      }) as never,
      params,
      numbers,
      ids,
    );
  };

  it("leaves the output as it was, and trains from there", async () => {
    const made = await start({ rank: 2, targetModules: "all-linear" }, { rho: 2 });
    allclose(await logits(made), await logits(), 1e-6);
    const adapter = lora(model, made.lora);
    const loaded = { adapter, params: made.params };
    const examples = texts.flat().map((text) => ({
      ids: Int32Array.from(text),
      mask: Uint8Array.from(text, (_, i) => (i > 0 ? 1 : 0)),
    }));
    const trainee = traineeOf(model as LanguageModel, params, loaded);
    const { losses, params: trained } = await finetune(trainee, examples, backend, {
      steps: 12,
      learningRate: 3e-2,
    });
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    const moved = await logits(made, trained);
    const [before, after] = [await logits(), moved];
    expect(
      Math.max(...Array.from(before.numbers(), (x, i) => Math.abs(x - after.numbers()[i]!))),
    ).toBeGreaterThan(0.1);
  });

  it("explains at least as much variance as a random start of the same rank", async () => {
    const made = await start({ rank: 2, targetModules: ["down_proj"] }, { rho: 1 });
    const explained = made.report["explained"] as Record<string, readonly number[]>;
    for (const shares of Object.values(explained)) {
      // Two of 24 random directions explain a twelfth in the mean.
      expect(shares[0]! + shares[1]!).toBeGreaterThan(1 / 12);
    }
  });

  it("drops layers with rank 0 and keeps the scale of others", async () => {
    const made = await start({ rank: 1, alpha: 3, targetModules: "all-linear" }, { rho: 4 });
    const ranks = made.report["ranks"] as Record<string, number>;
    const dropped = made.report["dropped"] as readonly string[];
    expect(Object.values(ranks).reduce((a, b) => a + b)).toBe(model.targets.size);
    expect(dropped.length).toBeGreaterThan(0);
    const { layers } = lora(model, made.lora);
    for (const path of dropped) expect(layers.has(path)).toBe(false);
    for (const { scale } of layers.values()) expect(scale).toBeCloseTo(3, 12);
  });

  it("is kept as a plain LoRA that reads back", async () => {
    const made = await start({ rank: 2, targetModules: "all-linear" }, { rho: 2 });
    const folder = await mkdtemp(join(tmpdir(), "plasticity-eva-"));
    try {
      await saveAdapter(files, folder, lora(model, made.lora), made.params);
      const read = await loadAdapter(files, folder, model);
      expect(read.params).toEqual(made.params);
      const config = read.adapter.config();
      expect(config["rank_pattern"]).toEqual(made.lora.rankPattern);
      expect(config["alpha_pattern"]).toEqual(made.lora.alphaPattern);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("looks for no more directions than a layer's input has", async () => {
    const { report } = await start({ rank: 60, targetModules: ["q_proj"] }, { batches: 2 });
    expect(Object.values(report["ranks"] as object)).toEqual([16, 16]);
    expect(report["batchesUsed"]).toBe(2);
    expect(report["unsettled"]).toHaveLength(2);
  });

  it("gives the same bits again", async () => {
    const [one, two] = [await start({ rank: 2 }, {}), await start({ rank: 2 }, {})];
    expect(one).toEqual(two);
  });

  it("says what is wrong", async () => {
    const scene = recordedScene();
    const small = { ...scene, inputs: fewRows(scene) };
    await expect(
      Promise.resolve(eva.roles.initialiser!.initialise(small, { rank: 4 }, {})),
    ).rejects.toThrow(
      /^eva: no batch has 8 rows for "model\.layers\.0\.self_attn\.q_proj", as many as directions are looked for — larger batches/,
    );
    const without = prepareScene(traineeOf(model as LanguageModel, params), undefined, backend);
    await expect(
      Promise.resolve(eva.roles.initialiser!.initialise(without, { rank: 4 }, {})),
    ).rejects.toThrow("prepare: needs training data, and there is none");
    expect(() => readOptions("eva", eva.options, { rho: 0.5 })).toThrow(
      "eva: rho must be a number from 1 to 1000, got 0.5.",
    );
  });
});

/** The same inputs, three rows of each batch. */
function fewRows(scene: PrepareScene): PrepareScene["inputs"] {
  return async function* (layers) {
    for await (const batch of scene.inputs(layers)) {
      yield Object.fromEntries(
        Object.entries(batch).map(([path, { shape, data }]) => [
          path,
          Tensor.from(data.slice(0, 3 * shape[1]!), [3, shape[1]!]),
        ]),
      );
    }
  };
}
