import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { fixture, type RawTensor, tensorOf } from "../../../test/support/fixture.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { reference } from "../../backend/reference/reference.ts";
import { nodeHost } from "../../host/node.ts";
import type { Value } from "../../ir/graph.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import { Llama } from "../../models/llama.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { Linear } from "../../nn/linear.ts";
import { Module, type TensorRecord, type ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { finetune } from "../../train/finetune.ts";
import { traineeOf } from "../../train/trainee.ts";
import {
  bindHydra,
  branchSubspaceReport,
  type HydraOptions,
  hydra,
  hydraKind,
  outputLayers,
} from "./hydra.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-hydra-"));
afterAll(() => rm(scratch, { recursive: true }));

/** A model that is one linear layer, `fc2`. */
class OneLayer extends Module implements PretrainedModel {
  readonly kind = "encoder" as const;
  readonly family = "toy";
  readonly config = {};
  readonly tied = {};
  readonly defaultTargets: readonly string[] = ["fc2"];
  readonly fc2: Linear;
  readonly targets: ReadonlyMap<string, Linear>;

  constructor(inputs: number, outputs: number) {
    super();
    this.fc2 = this.child("fc2", new Linear(inputs, outputs));
    this.targets = new Map([["fc2", this.fc2]]);
  }
}

/** The layer's output in double precision. */
function run(
  model: OneLayer,
  base: TensorRecord,
  x: Tensor,
  loaded?: LoadedAdapter,
): Promise<Tensor> {
  return evaluate<Tensor>(
    reference(),
    ((values: ValueRecord, own: ValueRecord, input: Value) =>
      model.fc2.forward(model.context(values, {}, loaded?.adapter.context(own)), input)) as never,
    base,
    loaded?.params ?? {},
    x,
  );
}

const name = (branch: string, part: string): string =>
  `base_model.model.fc2.hydra_${branch}.${part}`;

describe("one layer", () => {
  it("gives a number worked by hand", async () => {
    // f₀(x) = 2·3 + 1 = 7; parallel: 5 (1·3 + 1) − 1 = 19; sequential: 2 (3·7 + 0) + 4 = 46.
    // y = 7 + 0.5 (19 + 46) = 39.5.
    const model = new OneLayer(1, 1);
    const adapter = bindHydra(model, { rank: 1, scale: 0.5 });
    const one = (x: number, shape: readonly number[]): Tensor => Tensor.from([x], shape);
    const params = {
      [name("par", "down.weight")]: one(1, [1, 1]),
      [name("par", "down.bias")]: one(1, [1]),
      [name("par", "up.weight")]: one(5, [1, 1]),
      [name("par", "up.bias")]: one(-1, [1]),
      [name("seq", "down.weight")]: one(3, [1, 1]),
      [name("seq", "down.bias")]: one(0, [1]),
      [name("seq", "up.weight")]: one(2, [1, 1]),
      [name("seq", "up.bias")]: one(4, [1]),
    };
    const base = { "fc2.weight": one(2, [1, 1]), "fc2.bias": one(1, [1]) };
    const y = await run(model, base, one(3, [1, 1]), { adapter, params });
    expect(y.item()).toBeCloseTo(39.5, 6);
    // W = 2 + 0.5 (5 + 2·3·2) = 10.5; b = 1 + 0.5 (6·1 + 5·1 − 1 + 0 + 4) = 8.
    const merged = adapter.merge(base, params);
    expect(merged["fc2.weight"]!.item()).toBe(10.5);
    expect(merged["fc2.bias"]!.item()).toBe(8);
  });

  it("equals the equations as another hand has them", async () => {
    type Raw = Readonly<Record<"down" | "downBias" | "up" | "upBias", RawTensor>>;
    const record = fixture<{
      readonly rank: number;
      readonly seqRank: number;
      readonly scale: number;
      readonly k: number;
      readonly x: RawTensor;
      readonly weight: RawTensor;
      readonly bias: RawTensor;
      readonly par: Raw;
      readonly seq: Raw;
      readonly y: RawTensor;
      readonly mergedWeight: RawTensor;
      readonly mergedBias: RawTensor;
      readonly parallel: number;
      readonly sequential: number;
    }>("hydra");
    const { rank, seqRank, scale, k } = record;
    const model = new OneLayer(6, 4);
    const adapter = bindHydra(model, { rank, seqRank, scale });
    const params = Object.fromEntries(
      (["par", "seq"] as const).flatMap((branch) => [
        [name(branch, "down.weight"), tensorOf(record[branch].down)],
        [name(branch, "down.bias"), tensorOf(record[branch].downBias)],
        [name(branch, "up.weight"), tensorOf(record[branch].up)],
        [name(branch, "up.bias"), tensorOf(record[branch].upBias)],
      ]),
    );
    const base = { "fc2.weight": tensorOf(record.weight), "fc2.bias": tensorOf(record.bias) };
    const y = await run(model, base, tensorOf(record.x), { adapter, params });
    allclose(y, tensorOf(record.y), tolerance.float32);
    const merged = adapter.merge(base, params);
    allclose(merged["fc2.weight"]!, tensorOf(record.mergedWeight), 1e-6);
    allclose(merged["fc2.bias"]!, tensorOf(record.mergedBias), 1e-6);
    const [report] = branchSubspaceReport(adapter, base, params, k);
    expect(report!.parallel).toBeCloseTo(record.parallel, 6);
    expect(report!.sequential).toBeCloseTo(record.sequential, 6);
    expect(report!.random).toBeCloseTo(2 / Math.sqrt(24), 12);
  });
});

/** GPT-2 keeps weights inputs first and has biases; a Llama has none. */
const models = {
  gpt2: new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 16 }),
  llama: new Llama({
    vocabSize: 31,
    dModel: 16,
    dFeedForward: 24,
    nLayers: 2,
    nHeads: 2,
    maxPositions: 16,
    initializerRange: 0.2,
  }),
};
const ids = Tensor.from([3, 1, 4, 1, 5, 9], [1, 6], "int32");

function logitsOf(
  model: Gpt2 | Llama,
  base: TensorRecord,
  loaded?: LoadedAdapter,
): Promise<Tensor> {
  return evaluate<Tensor>(
    backend,
    ((values: ValueRecord, own: ValueRecord, x: Value) =>
      model.forward(model.context(values, {}, loaded?.adapter.context(own)), x).logits) as never,
    base,
    loaded?.params ?? {},
    ids,
  );
}

/** No number zero. */
function filled(params: TensorRecord): TensorRecord {
  const rng = new Rng(9);
  return Object.fromEntries(
    Object.entries(params).map(([path, { shape, size }]) => [
      path,
      new Tensor("float32", shape, rng.fold(path).normals(size, 0.3)),
    ]),
  );
}

const settings: readonly HydraOptions[] = [
  { rank: 3, seqRank: 2, scale: 0.7 },
  { rank: 2, branches: "sequential", targetModules: "all-linear" },
  { rank: 2, branches: "parallel", bias: false },
];

describe.each(Object.entries(models))("%s", (family, model) => {
  const { params: base } = model.init(new Rng(1));
  const examples = Array.from({ length: 12 }, (_, i) => ({
    ids: Int32Array.from({ length: 8 }, (_v, at) => (i * 7 + at * 3) % 31),
    mask: Uint8Array.from({ length: 8 }, (_v, at) => (at > 0 ? 1 : 0)),
  }));

  it("sits on the outputs of attention and feed-forward", () => {
    expect(bindHydra(model).targets.map((path) => path.split(".").slice(-2).join("."))).toEqual(
      family === "gpt2"
        ? ["attn.c_proj", "mlp.c_proj", "attn.c_proj", "mlp.c_proj"]
        : ["self_attn.o_proj", "mlp.down_proj", "self_attn.o_proj", "mlp.down_proj"],
    );
  });

  it.each(settings)("leaves the output at first, and merges exactly: %j", async (options) => {
    const adapter = bindHydra(model, options);
    const fresh = adapter.init(new Rng(2));
    const before = await logitsOf(model, base);
    allclose(await logitsOf(model, base, { adapter, params: fresh }), before, 1e-6);
    const params = filled(fresh);
    const adapted = await logitsOf(model, base, { adapter, params });
    expect(() => allclose(adapted, before, 0.05)).toThrow();
    const merged = { ...base, ...adapter.merge(base, params) };
    allclose(await logitsOf(model, merged), adapted, 2e-5);
  });

  it.each(settings)("reads back from its folder: %j", async (options) => {
    const adapter = bindHydra(model, options);
    const params = filled(adapter.init(new Rng(2)));
    const folder = join(scratch, `${family}-${settings.indexOf(options)}`);
    await saveAdapter(files, folder, adapter, params);
    const loaded = await loadAdapter(files, folder, model, [hydraKind]);
    expect(loaded.params).toEqual(params);
    expect(loaded.adapter.config()).toEqual(adapter.config());
    allclose(
      await logitsOf(model, base, loaded),
      await logitsOf(model, base, { adapter, params }),
      1e-7,
    );
  });

  it("trains both branches, with dropout, the same bits again", async () => {
    const adapter = bindHydra(model, { rank: 2, dropout: 0.2 });
    const trainee = traineeOf(model, base, { adapter, params: adapter.init(new Rng(2)) });
    const options = { steps: 10, batchSize: 4, learningRate: 2e-2, seed: 3 };
    const first = await finetune(trainee, examples, backend, options);
    const second = await finetune(trainee, examples, backend, options);
    expect(first.losses.at(-1)).toBeLessThan(first.losses[0]!);
    expect(second.params).toEqual(first.params);
    for (const [path, { data }] of Object.entries(first.params)) {
      if (path.endsWith("up.weight")) expect(data.some((x) => x !== 0)).toBe(true);
    }
  });

  it("stays in the weight's own directions with the sequential branch", () => {
    // The sequential branch's change is a product with W₀: of a weight of rank 2, nothing lies outside its
    // two directions on the right.
    const adapter = bindHydra(model, { rank: 2 });
    const params = filled(adapter.init(new Rng(2)));
    const low = Object.fromEntries(
      Object.entries(base).map(([path, tensor]) => {
        if (tensor.shape.length !== 2) return [path, tensor];
        const [rows, columns] = tensor.shape as [number, number];
        const outer = Float32Array.from(
          { length: rows * columns },
          (_, i) => Math.sin(Math.floor(i / columns)) * Math.cos(i % columns) + 0.01,
        );
        return [path, new Tensor("float32", tensor.shape, outer)];
      }),
    );
    for (const { parallel, sequential } of branchSubspaceReport(adapter, low, params, 2)) {
      expect(sequential).toBeGreaterThan(parallel);
    }
    expect(() => branchSubspaceReport(adapter, base, params, 99)).toThrow(
      /^hydra: k must be a whole number from 1 to 16, the smaller side of "/,
    );
  });
});

describe("what it refuses", () => {
  it("says where and what", async () => {
    expect(() => bindHydra(models.llama, { rank: 0 })).toThrow(
      "hydra: rank must be a whole number from 1 to 4096, got 0.",
    );
    expect(() => bindHydra(models.llama, { branches: "three" as "both" })).toThrow(
      'hydra: branches must be both or parallel or sequential, got "three".',
    );
    expect(() => bindHydra(models.llama, { targetModules: ["query"] })).toThrow(
      "targetModules [query] match no layer of this llama",
    );
    const { targets, ...rest } = models.llama;
    expect(() => outputLayers({ ...rest, family: "toy", targets: new Map() } as never)).toThrow(
      "hydra: attention's output and the feed-forward layer of this toy are not known",
    );
    const folder = join(scratch, "wrong");
    const adapter = bindHydra(models.llama);
    await saveAdapter(files, folder, adapter, adapter.init(new Rng(1)));
    const path = join(folder, "adapter_config.json");
    const config = JSON.parse(await readFile(path, "utf8"));
    const load = async (change: object): Promise<LoadedAdapter> => {
      await writeFile(path, JSON.stringify({ ...config, ...change }));
      return loadAdapter(files, folder, models.llama, [hydraKind]);
    };
    await expect(load({ target_modules: ["fc2"] })).rejects.toThrow(
      'target_modules names "fc2", which is no layer of this llama.',
    );
    await expect(load({ scale: "1" })).rejects.toThrow('scale must be a number, got "1".');
    await expect(load({ bias: 3 })).rejects.toThrow("bias must be true or false, got 3.");
    await expect(load({ seq_r: 5 })).rejects.toThrow("must have shape");
    expect(hydra.roles.adapter).toBe(hydraKind);
  });
});
