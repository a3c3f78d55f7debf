/**
 * SketchTune: a weight matrix is kept as a few shared values for each group of a row and a fixed code for each
 * weight, and the values themselves are trained. Compression and adaptation are one; there is no second path.
 *
 * Zhang et al., "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation", ICML 2025,
 * arXiv:2410.06364. Forward and backward are those of its release; that one ships finished sketches, and how
 * they are learnt follows the release of the same authors' LeanQuant (arXiv:2407.10032).
 *
 *   Ŵ_ij = s_{i,g(j)}[c_ij]                                   c_ij in 0 … 2^bits - 1, fixed
 *   min_s Σ_j a_j (w_j - s[c_j])²,  a_j = U_jj^{-p}            weighted k-means, per group
 *   H + damp · mean(diag H) · I,  H = X Xᵀ,  H⁻¹ = Uᵀ U        of the layer's inputs X
 *   e_j = (w_j - ŵ_j) / U_jj;  w_{j+1…} -= e_j U_{j,j+1…}      codes, column after column (GPTQ)
 *   y = x Ŵᵀ,  ∂L/∂s_{i,g}[k] = Σ_{j in g, c_ij = k} (∂L/∂Ŵ)_ij
 *
 *   s → `.sketch_values` (out, groups, 2^bits), trained      c → `.sketch_codes` (out, groups, in / groups)
 *   bits, groupsPerRow, damp, p = power                      g(j) = ⌊j · groups / in⌋
 *
 * `power: 0` is plain k-means; codes "nearest" leave the error feedback out, "random" are the ablation. The
 * paper trains with weight decay 0 and rates far below LoRA's, since a value moves all weights that share it.
 *
 * Differs: k-means starts from equal steps for every number of bits (LeanQuant: k-means++ above 8 values);
 * inputs are those of the model as it was, for all layers, where GPTQ runs layers on sketched ones before them;
 * columns that calibration never used keep their weights. The paper writes a_j with the diagonal of H⁻¹; this
 * is what the release computes.
 *
 * Cost: 2^bits · groups numbers trained for each output. Stored: bits per weight and the values. While it runs
 * a weight is more: a byte of code; and in training its float, its gradient and its code as int32.
 */
import { type Adapter, type AdapterKind, targetsOf } from "../../adapters/adapter.ts";
import { namesIn, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError } from "../../errors.ts";
import { cast } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gatherElements } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { asWeights } from "../../models/folder.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPrefix } from "../../models/peft-paths.ts";
import type { Linear } from "../../nn/linear.ts";
import type { Module, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type Matrix, matrixOf, multiply, tensorOf, transpose } from "../../tensor/linalg/index.ts";
import { sameShape, showShape } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  type CodeRule,
  dequantizeSketch,
  learnSketch,
  packCodes,
  type Sketch,
  type SketchSettings,
  unpackCodes,
} from "./sketch-grid.ts";

export interface SketchTuneOptions {
  /** Of a code: 2^bits values for each group. */
  readonly bits?: number;
  readonly groupsPerRow?: number;
  /** Share of the mean diagonal of H added to it. */
  readonly damp?: number;
  /** p in the weights of k-means; 0 for plain k-means. */
  readonly power?: number;
  readonly codes?: CodeRule;
  /** Batches of training data that H is taken from. */
  readonly batches?: number;
  /** How many times the training's rate the values take. */
  readonly rateScale?: number;
  readonly targetModules?: readonly string[] | "all-linear";
}

const options = {
  bits: { type: "integer", default: 4, range: [2, 4], about: "bits of a code, 2, 3 or 4" },
  groupsPerRow: {
    type: "integer",
    default: 1,
    range: [1, 8],
    about: "groups of a row with values of their own: 1, 2, 4 or 8",
  },
  damp: {
    type: "number",
    default: 0.01,
    range: [0, 10],
    open: [true, false],
    about: "share of the inputs' mean square added to the diagonal",
  },
  power: {
    type: "number",
    default: 4,
    range: [0, 8],
    about: "how strongly columns that matter draw the values; 0 is plain k-means",
  },
  codes: {
    type: "text",
    default: "feedback",
    choices: ["feedback", "nearest", "random"],
    about: "how codes are given: with the error made up for, to the nearest value, or by chance",
  },
  batches: {
    type: "integer",
    default: 8,
    range: [1, 4096],
    about: "batches of training data that the sketch is learnt from",
  },
  rateScale: {
    type: "number",
    default: 0.1,
    range: [0, 1000],
    open: [true, false],
    about: "how many times the training's rate the values take; LoRA's rates are too high for them",
  },
  targetModules: {
    type: "list",
    default: "all-linear",
    words: ["all-linear"],
    about: "layers by the last part of their name",
  },
} as const satisfies OptionSpecs<SketchTuneOptions>;

/** A layer that is sketched: where it is, and the names of its numbers. */
export interface SketchedLayer {
  readonly path: string;
  readonly layer: Linear;
  readonly values: string;
  readonly codes: string;
}

export interface SketchTuneAdapter extends Adapter {
  readonly layers: readonly SketchedLayer[];
  readonly settings: SketchSettings;
}

const where = "sketchtune";
/** Bytes of H that are held at a time; more layers than fit read the data again. */
const maxMoments = 2 ** 28;

/** W as (out, in), whichever way the layer keeps it. */
function rowsFirst({ layer }: SketchedLayer, weight: Tensor): Matrix {
  return layer.inputsFirst ? transpose(matrixOf(weight)) : matrixOf(weight);
}

/** Ŵ of a layer as it keeps weights. */
function weightOf(own: SketchedLayer, sketch: Sketch): Tensor {
  const weight = dequantizeSketch(sketch);
  return tensorOf(own.layer.inputsFirst ? transpose(weight) : weight);
}

/** Ŵ (out, in) inside a graph. */
function gathered({ layer, values, codes }: SketchedLayer, all: ValueRecord): Value {
  const weight = gatherElements(all[values]!, cast(all[codes]!, "int32"), 2);
  return reshape(weight, [layer.outFeatures, layer.inFeatures]);
}

/** Layers in turns whose H fit into memory together. */
function inTurns(layers: readonly SketchedLayer[]): SketchedLayer[][] {
  const turns: SketchedLayer[][] = [];
  let left = 0;
  for (const own of layers) {
    const bytes = 8 * own.layer.inFeatures ** 2;
    if (turns.length === 0 || bytes > left) {
      turns.push([]);
      left = maxMoments;
    }
    turns.at(-1)!.push(own);
    left -= bytes;
  }
  return turns;
}

/**
 * Binds SketchTune to a model.
 * @throws OptionError for options outside their range, targets that match no layer, or groups that do not
 * divide a layer's inputs.
 */
export function bindSketchTune(
  model: PretrainedModel,
  given: SketchTuneOptions = {},
): SketchTuneAdapter {
  const read = readOptions(where, options, given);
  const { groupsPerRow, damp, power, codes, batches, rateScale } = read;
  const bits = read.bits as SketchSettings["bits"];
  if (![1, 2, 4, 8].includes(groupsPerRow)) {
    throw new OptionError(`${where}: groupsPerRow must be 1, 2, 4 or 8, got ${groupsPerRow}.`);
  }
  const targets = targetsOf(model, read.targetModules);
  const layers = targets.map((path): SketchedLayer => {
    const layer = model.targets.get(path)!;
    if (layer.inFeatures % groupsPerRow !== 0) {
      throw new OptionError(
        `${where}: groupsPerRow ${groupsPerRow} does not divide the ${layer.inFeatures} inputs of "${path}".`,
      );
    }
    const name = `${peftPrefix}${path}`;
    return { path, layer, values: `${name}.sketch_values`, codes: `${name}.sketch_codes` };
  });
  const settings: SketchSettings = { bits, groupsPerRow, damp, power, codes };
  const valueShape = ({ layer }: SketchedLayer) => [layer.outFeatures, groupsPerRow, 2 ** bits];
  const codeShape = ({ layer }: SketchedLayer) =>
    [layer.outFeatures, groupsPerRow, layer.inFeatures / groupsPerRow] as const;
  const sketchOf = (own: SketchedLayer, params: TensorRecord, buffers: TensorRecord): Sketch => ({
    values: params[own.values]! as Tensor<"float32">,
    codes: buffers[own.codes]! as Tensor<"uint8">,
  });
  const needsInputs = codes === "feedback" || power > 0;

  return {
    kind: "SKETCHTUNE",
    title: "SketchTune",
    targets,
    layers,
    settings,
    mergeable: "exact",
    replaces: targets.map((path) => `${path}.weight`),
    learningRateScale: (name) => (name.endsWith(".sketch_values") ? rateScale : 1),
    init: () =>
      Object.fromEntries(
        layers.map((own) => [own.values, Tensor.zeros(valueShape(own), "float32")]),
      ),
    initBuffers: () =>
      Object.fromEntries(layers.map((own) => [own.codes, Tensor.zeros(codeShape(own), "uint8")])),
    prepare: async (scene) => {
      const numbers = { params: {} as TensorRecord, buffers: {} as TensorRecord };
      let done = 0;
      for (const turn of inTurns(layers)) {
        const moments = needsInputs
          ? await inputMoments(scene, turn, batches)
          : new Map<string, Matrix>();
        for (const own of turn) {
          scene.signal?.throwIfAborted();
          const weight = scene.base[`${own.path}.weight`];
          if (!weight) {
            throw new OptionError(
              `${where}: "${own.path}.weight" is not there as floats — load the model in full; the sketch makes it small.`,
            );
          }
          const rng = scene.rng.fold(own.path);
          const sketch = learnSketch(rowsFirst(own, weight), moments.get(own.path), settings, rng);
          numbers.params[own.values] = sketch.values;
          numbers.buffers[own.codes] = sketch.codes;
          done++;
          scene.onProgress?.(`Sketched ${done} of ${layers.length} layers`);
        }
      }
      return numbers;
    },
    context: (values) => ({
      linear: new Map<Module, (input: Value) => Value>(
        layers.map((own) => [
          own.layer,
          (rows) => dot(rows, gathered(own, values), { transB: true }),
        ]),
      ),
      weights: new Map<Module, () => Value>(
        layers.map((own) => [own.layer, () => gathered(own, values)]),
      ),
    }),
    merge: (_base, params, buffers = {}) =>
      Object.fromEntries(
        layers.map((own) => [`${own.path}.weight`, weightOf(own, sketchOf(own, params, buffers))]),
      ),
    file: {
      pack: ({ params, buffers }) => ({
        ...params,
        ...Object.fromEntries(
          layers.map((own) => [own.codes, packCodes(sketchOf(own, params, buffers).codes, bits)]),
        ),
      }),
      unpack: (stored, place) => {
        const expected = new Map(
          layers.flatMap((own): [string, readonly number[]][] => [
            [own.values, valueShape(own)],
            [own.codes, [own.layer.outFeatures, Math.ceil((own.layer.inFeatures * bits) / 8)]],
          ]),
        );
        const missing = [...expected.keys()].filter((name) => !Object.hasOwn(stored, name));
        const unexpected = Object.keys(stored).filter((name) => !expected.has(name));
        if (missing.length > 0 || unexpected.length > 0) {
          throw new FormatError(
            `${place}: is no sketch of this ${model.family}: missing [${missing.slice(0, 3).join(", ")}], unexpected [${unexpected.slice(0, 3).join(", ")}].`,
            { missing, unexpected },
          );
        }
        for (const [name, shape] of expected) {
          if (sameShape(stored[name]!.shape, shape)) continue;
          throw new FormatError(
            `${place}: "${name}" must have shape ${showShape(shape)}, got ${showShape(stored[name]!.shape)}.`,
          );
        }
        const numbers = { params: {} as TensorRecord, buffers: {} as TensorRecord };
        for (const own of layers) {
          const packed = stored[own.codes]!;
          if (packed.dtype !== "uint8") {
            throw new FormatError(`${place}: "${own.codes}" must be uint8, got ${packed.dtype}.`);
          }
          const [, groups, width] = codeShape(own);
          const named = `${place}: tensor "${own.values}"`;
          numbers.params[own.values] = asWeights(stored[own.values]!, named);
          numbers.buffers[own.codes] = unpackCodes(packed as Tensor<"uint8">, bits, groups, width);
        }
        return numbers;
      },
    },
    config: () => ({
      peft_type: "SKETCHTUNE",
      base_model_name_or_path: null,
      bits,
      groups_per_row: groupsPerRow,
      damp,
      power,
      codes,
      batches,
      rate_scale: rateScale,
      target_modules: targets,
      modules_to_save: null,
      task_type: model.kind === "causal-lm" ? "CAUSAL_LM" : null,
    }),
  };
}

/** H = X Xᵀ of each layer's inputs over some batches, by path; layers that read the same share it. */
export async function inputMoments(
  scene: Pick<Parameters<NonNullable<Adapter["prepare"]>>[0], "inputs" | "onProgress">,
  layers: readonly Pick<SketchedLayer, "path">[],
  batches: number,
): Promise<Map<string, Matrix>> {
  const moments = new Map<string, Matrix>();
  let done = 0;
  for await (const inputs of scene.inputs(layers.map(({ path }) => path))) {
    const made = new Map<Tensor, Matrix>();
    const added = new Set<Matrix>();
    for (const { path } of layers) {
      const x = inputs[path]!;
      let own = made.get(x);
      if (!own) {
        const rows = matrixOf(x);
        own = multiply(rows, rows, { transA: true });
        made.set(x, own);
      }
      const sum = moments.get(path);
      if (!sum) moments.set(path, own);
      else if (!added.has(sum)) {
        for (let i = 0; i < sum.data.length; i++) sum.data[i]! += own.data[i]!;
        added.add(sum);
      }
    }
    done++;
    scene.onProgress?.(`Read ${done} of at most ${batches} batches`);
    if (done === batches) break;
  }
  if (moments.size > 0) return moments;
  throw new OptionError(`${where}: the training data gave no inputs to learn a sketch from.`);
}

/** Bytes of a model whose layers are sketched. */
export interface SketchBytes {
  readonly codes: number;
  readonly values: number;
  /** What is not sketched: embeddings, norms, biases, heads. */
  readonly rest: number;
  readonly total: number;
}

/**
 * What a sketched model takes when it is stored; while it runs it takes more.
 * @param base all parameters of the model by path
 * @param floatBytes of a float that is stored; default 4, as adapter folders keep them
 */
export function sketchBytes(
  { layers, settings, replaces = [] }: SketchTuneAdapter,
  base: Readonly<Record<string, Tensor>>,
  floatBytes = 4,
): SketchBytes {
  const { bits, groupsPerRow } = settings;
  const sum = (numbers: readonly number[]): number => numbers.reduce((all, one) => all + one, 0);
  const codes = sum(
    layers.map(({ layer }) => layer.outFeatures * Math.ceil((layer.inFeatures * bits) / 8)),
  );
  const values =
    floatBytes * sum(layers.map(({ layer }) => layer.outFeatures * groupsPerRow * 2 ** bits));
  const gone = new Set(replaces);
  const rest =
    floatBytes * sum(Object.entries(base).map(([path, { size }]) => (gone.has(path) ? 0 : size)));
  return { codes, values, rest, total: codes + values + rest };
}

export const sketchTuneKind: AdapterKind<SketchTuneOptions> = {
  kind: "SKETCHTUNE",
  bind: bindSketchTune,
  read: (config, place) => {
    const { codes = "feedback" } = config;
    return {
      bits: numberIn(config, "bits", place, 4),
      groupsPerRow: numberIn(config, "groups_per_row", place, 1),
      damp: numberIn(config, "damp", place, 0.01),
      power: numberIn(config, "power", place, 4),
      codes: codes as CodeRule,
      batches: numberIn(config, "batches", place, 8),
      rateScale: numberIn(config, "rate_scale", place, 0.1),
      targetModules: namesIn(config, "target_modules", place),
    };
  },
};

export const sketchTune: Method<SketchTuneOptions> = defineMethod({
  id: "sketchtune",
  number: 88,
  title: "SketchTune",
  capability: "adapt",
  summary:
    "Stores each weight row as a few shared values and a map of codes, and trains the values in place of an adapter.",
  paper: {
    title: "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation",
    year: 2024,
    url: "https://arxiv.org/abs/2410.06364",
  },
  implementation: "faithful",
  claim: "undecided",
  options,
  sizedBy: "groupsPerRow",
  roles: { adapter: sketchTuneKind },
  isChangedAtFirst: true,
  tiny: { bits: 3, groupsPerRow: 2, batches: 2, rateScale: 1 },
});
