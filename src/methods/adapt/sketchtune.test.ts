import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { fixture, type RawTensor, tensorOf } from "../../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../../test/support/gradient.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { gradientOf } from "../../autodiff/grad.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { memorySet } from "../../data/set.ts";
import { nodeHost } from "../../host/node.ts";
import { Decoder } from "../../infer/decoder.ts";
import { probeInputs, probeLogits } from "../../infer/verify.ts";
import { square, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { mean } from "../../ir/reduce.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import { Llama } from "../../models/llama.ts";
import type { LanguageModel, PretrainedModel } from "../../models/model.ts";
import { Linear } from "../../nn/linear.ts";
import { Module, type TensorRecord, type ValueRecord } from "../../nn/module.ts";
import { type Matrix, matrix, matrixOf, multiply } from "../../tensor/linalg/index.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { finetune } from "../../train/finetune.ts";
import { prepareScene } from "../../train/prepare.ts";
import { traineeOf } from "../../train/trainee.ts";
import { firstNumbers } from "../initialise.ts";
import {
  assign,
  compareUpdateClasses,
  damped,
  dequantizeSketch,
  kMeansLine,
  learnSketch,
  nearest,
  packCodes,
  reconstructionError,
  type SketchSettings,
  unpackCodes,
} from "./sketch-grid.ts";
import {
  bindSketchTune,
  inputMoments,
  type SketchTuneAdapter,
  type SketchTuneOptions,
  sketchBytes,
  sketchTuneKind,
} from "./sketchtune.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-sketch-"));
afterAll(() => rm(scratch, { recursive: true }));

describe("weighted k-means on a line", () => {
  it("gives numbers worked by hand", () => {
    // From 0 and 10: {0, 1, 2} and {10}; the first mean is (0·1 + 1·1 + 2·4) / 6 = 1.5.
    expect([...kMeansLine([10, 0, 2, 1], 2, [1, 1, 4, 1])]).toEqual([1.5, 10]);
    // Plain: (0 + 1 + 2) / 3 = 1.
    expect([...kMeansLine([10, 0, 2, 1], 2)]).toEqual([1, 10]);
  });

  it("leaves no value idle while numbers are badly served", () => {
    // From 0, 50, 100 the middle one is nearest to nothing.
    expect([...kMeansLine([0, 4, 99, 100], 3)]).toEqual([0, 4, 99.5]);
  });

  it("is right where all numbers are one, and where there are fewer than values", () => {
    expect([...kMeansLine([3, 3, 3], 4)]).toEqual([3, 3, 3, 3]);
    const values = kMeansLine([1, 2], 4);
    expect([values[nearest(values, 1)], values[nearest(values, 2)]]).toEqual([1, 2]);
  });

  it("finds the nearest value, the lower of two that are as near", () => {
    expect([-9, 0.4, 0.5, 0.6, 2, 9].map((x) => nearest([0, 1, 3], x))).toEqual([0, 0, 0, 1, 1, 2]);
  });
});

const settings: SketchSettings = {
  bits: 3,
  groupsPerRow: 1,
  damp: 0.01,
  power: 4,
  codes: "feedback",
};

/** A matrix, and inputs of it whose columns go together. */
function drawn(seed: number): { weight: Matrix; moments: Matrix } {
  const [rows, columns, tokens] = [12, 64, 90];
  const draw = (name: string, r: number, c: number) =>
    matrix(r, c, Float64Array.from(new Rng(seed).fold(name).normals(r * c)));
  const mix = draw("mix", columns, columns);
  for (let i = 0; i < columns; i++) mix.data[i * columns + i]! += 2 + (i % 7);
  const inputs = multiply(draw("inputs", tokens, columns), mix);
  return {
    weight: draw("weight", rows, columns),
    moments: multiply(inputs, inputs, { transA: true }),
  };
}

describe("the sketch", () => {
  it("makes up for errors: less is lost than by the nearest values of the same grid", () => {
    for (const seed of [1, 2, 3]) {
      const { weight, moments } = drawn(seed);
      const lost = (codes: SketchSettings["codes"], power = 4): number => {
        const sketch = learnSketch(weight, moments, { ...settings, power, codes }, new Rng(seed));
        return reconstructionError(weight, dequantizeSketch(sketch), moments);
      };
      const [feedback, rounded, random] = [lost("feedback"), lost("nearest"), lost("random")];
      expect(feedback).toBeLessThan(0.8 * rounded);
      expect(rounded).toBeLessThan(0.5 * random);
    }
  });

  it("has the same grid with and without feedback", () => {
    const { weight, moments } = drawn(4);
    const [one, two] = (["feedback", "nearest"] as const).map((codes) =>
      learnSketch(weight, moments, { ...settings, codes }, new Rng(0)),
    );
    expect([...one!.values.data]).toEqual([...two!.values.data]);
    expect([...one!.codes.data]).not.toEqual([...two!.codes.data]);
  });

  it("loses less with more bits, and with more groups", () => {
    const { weight, moments } = drawn(5);
    const lost = (bits: 2 | 3 | 4, groupsPerRow: number): number => {
      const sketch = learnSketch(weight, moments, { ...settings, bits, groupsPerRow }, new Rng(0));
      return reconstructionError(weight, dequantizeSketch(sketch), moments);
    };
    expect(lost(3, 1)).toBeLessThan(lost(2, 1));
    expect(lost(4, 1)).toBeLessThan(lost(3, 1));
    expect(lost(3, 4)).toBeLessThan(lost(3, 1));
  });

  it("passes an error on by hand", () => {
    // H = [[2, 1], [1, 2]]: H⁻¹ = [[2, -1], [-1, 2]] / 3 = Uᵀ U with U = [[√(2/3), -1/√6], [0, 1/√2]].
    // The error 0.4 - 0 over U_00 times U_01: 0.4 · (-1/2) = -0.2, so 0.4 becomes 0.6 and rounds to 1.
    const factor = matrix(
      2,
      2,
      Float64Array.of(Math.sqrt(2 / 3), -1 / Math.sqrt(6), 0, Math.SQRT1_2),
    );
    const codes = new Uint8Array(2);
    const row = Float64Array.of(0.4, 0.4);
    assign(row, codes, Float32Array.of(0, 1), 2, 2, factor);
    expect([...codes]).toEqual([0, 1]);
    expect(row[1]).toBeCloseTo(0.6, 6);
    assign(Float64Array.of(0.4, 0.4), codes, Float32Array.of(0, 1), 2, 2, undefined);
    expect([...codes]).toEqual([0, 0]);
  });

  it("takes inputs that were never seen for unit ones", () => {
    expect([...damped(matrix(2, 2), 0.01).data]).toEqual([1, 0, 0, 1]);
    expect(damped(matrix(2, 2, Float64Array.of(4, 0, 0, 0)), 0.01).data[3]).toBeCloseTo(0.02, 12);
  });

  it.each([2, 3, 4])("packs codes of %i bits tightly and reads them back", (bits) => {
    const numbers = new Rng(bits).uniforms(3 * 2 * 5);
    const codes = new Tensor(
      "uint8",
      [3, 2, 5],
      Uint8Array.from(numbers, (x) => Math.floor(x * 2 ** bits)),
    );
    const packed = packCodes(codes, bits);
    expect(packed.shape).toEqual([3, Math.ceil((10 * bits) / 8)]);
    expect([...unpackCodes(packed, bits, 2, 5).data]).toEqual([...codes.data]);
  });
});

describe("what updates a sketch and a rank can say", () => {
  it("is worked by hand", () => {
    // Buckets of row 0: {1, 3} with mean 2 and {5}; of row 1: {0}, {2, 4} with mean 3.
    // ‖Δ‖² = 55; residual (1 + 1) + 0 + 0 + (1 + 1) = 4.
    const delta = matrix(2, 3, Float64Array.of(1, 3, 5, 0, 2, 4));
    const codes = new Tensor("uint8", [2, 1, 3], Uint8Array.of(0, 0, 1, 0, 1, 1));
    const { energy, sketchResidual, lowRankResidual } = compareUpdateClasses(
      delta,
      codes,
      [0, 1, 2],
    );
    expect(energy).toBeCloseTo(55, 10);
    expect(sketchResidual).toBeCloseTo(4, 10);
    // σ² are roots of x² - 55 x + det(Δ Δᵀ) with Δ Δᵀ = [[35, 26], [26, 20]]: 35·20 - 26² = 24.
    const small = (55 - Math.sqrt(55 * 55 - 4 * 24)) / 2;
    expect(lowRankResidual[0]).toBeCloseTo(55, 8);
    expect(lowRankResidual[1]).toBeCloseTo(small, 8);
    expect(lowRankResidual[2]).toBeCloseTo(0, 8);
  });

  it("is nothing for a change that goes by the codes, of whatever rank", () => {
    const { weight, moments } = drawn(6);
    const sketch = learnSketch(weight, moments, settings, new Rng(0));
    const moved = {
      ...sketch,
      values: new Tensor("float32", sketch.values.shape, new Rng(1).normals(sketch.values.size)),
    };
    const { energy, sketchResidual, lowRankResidual } = compareUpdateClasses(
      dequantizeSketch(moved),
      sketch.codes,
      [4],
    );
    expect(sketchResidual).toBeLessThan(1e-9 * energy);
    expect(lowRankResidual[0]!).toBeGreaterThan(0.1 * energy);
    expect(() => compareUpdateClasses(matrix(2, 2), sketch.codes, [1])).toThrow("do not fit");
  });
});

/** A model that is one linear layer. */
class OneLayer extends Module implements PretrainedModel {
  readonly kind = "encoder" as const;
  readonly family = "toy";
  readonly config = {};
  readonly tied = {};
  readonly defaultTargets: readonly string[] = ["fc"];
  readonly fc: Linear;
  readonly targets: ReadonlyMap<string, Linear>;

  constructor(inputs: number, outputs: number) {
    super();
    this.fc = this.child("fc", new Linear(inputs, outputs, { bias: false }));
    this.targets = new Map([["fc", this.fc]]);
  }
}

describe("another hand's numbers", () => {
  const record = fixture<{
    readonly bits: 3;
    readonly groupsPerRow: number;
    readonly damp: number;
    readonly power: number;
    readonly weight: RawTensor;
    readonly inputs: RawTensor;
    readonly target: RawTensor;
    readonly values: RawTensor;
    readonly codes: RawTensor;
    readonly error: number;
    readonly loss: number;
    readonly gradient: RawTensor;
  }>("sketchtune");
  const weight = tensorOf(record.weight);
  const inputs = tensorOf(record.inputs);
  const { bits, groupsPerRow, damp, power } = record;
  const moments = multiply(matrixOf(inputs), matrixOf(inputs), { transA: true });

  it("are those of the sketch", () => {
    const own: SketchSettings = { bits, groupsPerRow, damp, power, codes: "feedback" };
    const sketch = learnSketch(matrixOf(weight), moments, own, new Rng(0));
    allclose(sketch.values, tensorOf(record.values), 1e-5);
    expect([...sketch.codes.data]).toEqual([...Array.from(tensorOf(record.codes).numbers())]);
    const error = reconstructionError(matrixOf(weight), dequantizeSketch(sketch), moments);
    expect(error).toBeCloseTo(record.error, 5);
  });

  const model = new OneLayer(64, 4);
  const adapter = bindSketchTune(model, { bits, groupsPerRow });
  const { values: name, codes: codeName } = adapter.layers[0]!;
  const codes = new Tensor(
    "uint8",
    record.codes.shape,
    Uint8Array.from(tensorOf(record.codes).numbers()),
  );
  const lossOf = (own: ValueRecord, fixed: ValueRecord, x: Value, y: Value): Value => {
    const context = model.context({}, {}, adapter.context({ ...own, ...fixed }));
    return mean(square(sub(model.fc.forward(context, x), y)));
  };
  const given = [{ [codeName]: codes }, inputs, tensorOf(record.target)] as const;

  it("are those of the loss and of the gradient, which goes to the values alone", async () => {
    const params = { [name]: tensorOf(record.values) };
    const [loss, gradients] = await evaluate<[Tensor, TensorRecord]>(
      backend,
      ((own: ValueRecord, ...rest: [ValueRecord, Value, Value]) => {
        const value = lossOf(own, ...rest);
        return [value, gradientOf(value, own)];
      }) as never,
      params,
      ...given,
    );
    expect(loss.item()).toBeCloseTo(record.loss, 4);
    allclose(gradients[name]!, tensorOf(record.gradient), 1e-4);
  });

  it("agree with central differences, of values and of inputs", async () => {
    const small = bindSketchTune(new OneLayer(6, 2), { bits: 2, groupsPerRow: 2 });
    const { layer, values: own, codes: fixed } = small.layers[0]!;
    const drawn = new Rng(5);
    await checkGradient(
      (s, x, c) => {
        const context = small.context({ [own]: s!, [fixed]: c! });
        return square(context.linear!.get(layer)!(x!, undefined as never));
      },
      [
        randomTensor(drawn, [2, 2, 4]),
        randomTensor(drawn, [3, 6]),
        new Tensor("uint8", [2, 2, 3], Uint8Array.of(0, 0, 3, 1, 1, 1, 2, 0, 3, 3, 3, 3)),
      ],
    );
  });
});

const sizes = { vocabSize: 20, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 24 };
const models: readonly (readonly [string, LanguageModel])[] = [
  ["llama", new Llama({ ...sizes, dFeedForward: 24, initializerRange: 0.2 })],
  ["gpt2", new Gpt2({ ...sizes, dFeedForward: 32 })],
];
const examples = Array.from({ length: 12 }, (_, i) => ({
  ids: Int32Array.from(new Rng(9).fold(i).permutation(7), (id) => id + i),
  mask: Uint8Array.of(0, 1, 1, 1, 1, 1, 1),
}));

describe.each(models)("on a %s", (family, model) => {
  const base = model.init(new Rng(1)).params;
  const scene = prepareScene(
    { model, frozen: base, trained: {}, maxLength: 24 },
    memorySet(examples),
    backend,
    { batchSize: 4 },
  );
  type Sketched = LoadedAdapter & { adapter: SketchTuneAdapter; buffers: TensorRecord };
  const sketched = async (options: SketchTuneOptions = {}): Promise<Sketched> => {
    const adapter = bindSketchTune(model, { groupsPerRow: 2, ...options });
    return { adapter, ...(await firstNumbers(adapter, scene)) };
  };
  const ids = probeInputs(model.sizes, { length: 8 });
  const logitsOf = (params: TensorRecord, loaded?: LoadedAdapter): Promise<Tensor> =>
    probeLogits(backend, model, params, ids, loaded);

  it("stands in for the weights, which may go, and merges exactly", async () => {
    const loaded = await sketched({ bits: 2 });
    const { adapter, params, buffers } = loaded;
    const left = Object.fromEntries(
      Object.entries(base).filter(([path]) => !adapter.replaces!.includes(path)),
    );
    expect(adapter.targets.length).toBe(model.targets.size);
    const merged = { ...base, ...adapter.merge(base, params, buffers) };
    const beside = await logitsOf(left, loaded);
    allclose(beside, await logitsOf(merged), 1e-5);
    // And it is near the model as it was, not the same.
    const [a, b] = [beside.numbers(), (await logitsOf(base)).numbers()];
    const apart = Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i]!)));
    expect(apart).toBeGreaterThan(1e-3);
    const decoder = new Decoder(model, left, backend, { adapter: loaded });
    const plain = new Decoder(model, merged, backend);
    const prompt = [Int32Array.of(3, 7, 1)];
    const made = await decoder.generate(prompt, { maxNewTokens: 6 });
    expect(made).toEqual(await plain.generate(prompt, { maxNewTokens: 6 }));
    await decoder.release();
    await plain.release();
  });

  it("trains values, codes stay, and is the same after a file", async () => {
    const loaded = await sketched({ bits: 3, rateScale: 1 });
    const before = Object.values(loaded.buffers).map((one) => Array.from(one.numbers()));
    const trainee = traineeOf(model, base, loaded);
    expect(Object.keys(trainee.frozen)).not.toContain(loaded.adapter.replaces![0]);
    const losses: number[] = [];
    const { params } = await finetune(trainee, examples, backend, {
      ...{ steps: 12, batchSize: 12, learningRate: 5e-3, weightDecay: 0, seed: 2 },
      onStep: ({ loss }) => losses.push(loss),
    });
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.02);
    expect(Object.values(loaded.buffers).map((one) => Array.from(one.numbers()))).toEqual(before);
    const folder = join(scratch, family);
    await saveAdapter(files, folder, loaded.adapter, params, { buffers: loaded.buffers });
    const again = await loadAdapter(files, folder, model, [sketchTuneKind]);
    expect(again.adapter.config()).toEqual(loaded.adapter.config());
    allclose(await logitsOf(base, again), await logitsOf(base, { ...loaded, params }), 0);
  });

  it("counts the bytes of what is stored", async () => {
    const { adapter, params, buffers } = await sketched();
    const stored = adapter.file!.pack({ params, buffers });
    const bytes = (tensors: readonly Tensor[]): number =>
      tensors.reduce((sum, { size, dtype }) => sum + size * (dtype === "uint8" ? 1 : 4), 0);
    const rest = Object.entries(base).filter(([path]) => !adapter.replaces!.includes(path));
    const counted = sketchBytes(adapter, base);
    expect(counted.codes + counted.values).toBe(bytes(Object.values(stored)));
    expect(counted.rest).toBe(bytes(rest.map(([, tensor]) => tensor)));
    expect(counted.total).toBe(counted.codes + counted.values + counted.rest);
  });

  it("sees the same inputs for layers that read the same", async () => {
    const { layers } = bindSketchTune(model);
    const moments = await inputMoments(scene, layers, 2);
    // Two of three batches, whether or not someone is told.
    const more = await inputMoments(scene, layers, 3);
    const told: string[] = [];
    const again = await inputMoments(
      { inputs: scene.inputs, onProgress: (text) => told.push(text) },
      layers,
      2,
    );
    const { path: first } = layers[0]!;
    expect(again.get(first)!.data).toEqual(moments.get(first)!.data);
    expect(more.get(first)!.data[0]!).toBeGreaterThan(moments.get(first)!.data[0]!);
    expect(told.length).toBe(2);
    expect(moments.size).toBe(layers.length);
    if (family !== "llama") return;
    const path = (name: string): string => layers.find((one) => one.path.endsWith(name))!.path;
    expect(moments.get(path("q_proj"))).toBe(moments.get(path("k_proj")));
    expect(moments.get(path("q_proj"))).not.toBe(moments.get(path("o_proj")));
  });
});

describe("errors", () => {
  const model = models[0]![1];

  it("say what groups there may be, and what lacks", async () => {
    expect(() => bindSketchTune(model, { groupsPerRow: 3 })).toThrow(
      "sketchtune: groupsPerRow must be 1, 2, 4 or 8, got 3.",
    );
    expect(() => bindSketchTune(new OneLayer(6, 2), { groupsPerRow: 4 })).toThrow(
      'sketchtune: groupsPerRow 4 does not divide the 6 inputs of "fc".',
    );
    const adapter = bindSketchTune(model, { codes: "nearest", power: 0 });
    const scene = prepareScene({ model, frozen: {}, trained: {} }, undefined, backend);
    await expect(adapter.prepare!(scene)).rejects.toThrow("is not there as floats");
    const other = bindSketchTune(model);
    await expect(other.prepare!(scene)).rejects.toThrow("needs training data");
  });

  it("refuse files of another form", () => {
    const adapter = bindSketchTune(model);
    const numbers = { params: adapter.init(new Rng(0)), buffers: adapter.initBuffers!() };
    const stored = adapter.file!.pack(numbers);
    const { values, codes } = adapter.layers[0]!;
    const { [values]: _, ...rest } = stored;
    expect(() => adapter.file!.unpack(rest, "w")).toThrow(
      `w: is no sketch of this llama: missing [${values}]`,
    );
    const wrong = { ...stored, [codes]: Tensor.zeros([1, 1], "uint8") };
    expect(() => adapter.file!.unpack(wrong, "w")).toThrow(`w: "${codes}" must have shape`);
  });
});
