/**
 * VeRA: one pair of frozen random matrices for all layers, and two trained vectors for each.
 *
 * Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv:2310.11454, eq. 2. Names,
 * shapes, first numbers and fields are PEFT's.
 *
 *   y = W x + diag(b) B diag(d) A x       merged: W + diag(b) B diag(d) A
 *
 *   A → base_model.vera_A (rank, in of the widest layer)      d → vera_lambda_d (rank,), dInitial at first
 *   B → base_model.vera_B (out of the widest layer, rank)     b → vera_lambda_b (out,), zeros at first
 *
 * A layer takes the first columns of A and the first rows of B. Both are drawn as PEFT draws them, from
 * `projectionPrngKey`: a file without them is read too. Cost: rank + out numbers a layer, and the products of a
 * LoRA of that rank.
 */
import type { Adapter, AdapterKind, AdapterNumbers } from "../../adapters/adapter.ts";
import { numberIn } from "../../adapters/peft-config.ts";
import { add, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { slice } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPath } from "../../models/peft-paths.ts";
import type { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type Matrix, matrix, multiply } from "../../tensor/linalg/index.ts";
import type { StaticShape } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  changedWeight,
  commonConfig,
  dropped,
  flagIn,
  isFanInFirst,
  linearLayers,
  plus,
  readTargets,
  storedTensors,
  type TargetLayer,
  type TargetOptions,
  targetOptions,
} from "./shared/peft-layers.ts";
import { torchUniform } from "./shared/torch-uniform.ts";

export interface VeraOptions extends TargetOptions {
  readonly rank?: number;
  /** Share of the input zeroed in training. */
  readonly dropout?: number;
  /** What d begins with. */
  readonly dInitial?: number;
  /** Seed of the random matrices. */
  readonly projectionPrngKey?: number;
  /** Write the random matrices to files. */
  readonly saveProjection?: boolean;
}

const options = {
  rank: {
    type: "integer",
    default: 256,
    range: [1, 65536],
    about: "rank of the random matrices; the paper takes 256 to 1024",
  },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of the input zeroed in training",
  },
  dInitial: {
    type: "number",
    default: 0.1,
    range: [-100, 100],
    about: "first value of the vector between the two matrices",
  },
  projectionPrngKey: {
    type: "integer",
    default: 0,
    range: [0, 2 ** 31 - 1],
    about: "seed of the random matrices",
  },
  saveProjection: {
    type: "flag",
    default: true,
    about: "write the random matrices to files; without, readers draw them anew from the seed",
  },
  ...targetOptions,
} as const satisfies OptionSpecs<VeraOptions>;

interface VeraLayer extends TargetLayer<Linear> {
  readonly b: string;
  readonly d: string;
}

const [nameA, nameB] = ["base_model.vera_A", "base_model.vera_B"];

/** Both matrices as PEFT draws them: uniform within √(6 / fan in), A first. */
function projections(rank: number, inputs: number, outputs: number, key: number): TensorRecord {
  const draw = torchUniform(key);
  const drawn = (rows: number, columns: number): Tensor =>
    new Tensor(
      "float32",
      [rows, columns],
      draw(rows * columns, Math.sqrt(3) * Math.sqrt(2 / columns)),
    );
  const a = drawn(rank, inputs);
  return { [nameA]: a, [nameB]: drawn(outputs, rank) };
}

/**
 * Binds VeRA to a model.
 * @throws OptionError for targets that match no layer; UnsupportedError for layers that are not linear.
 */
export function vera(model: PretrainedModel, given: VeraOptions = {}): Adapter {
  const read = readOptions<VeraOptions, typeof options>("vera", options, given);
  const { rank, dropout, dInitial, projectionPrngKey, saveProjection } = read;
  const layers = linearLayers("vera", model, read).map(
    (target): VeraLayer => ({
      ...target,
      b: `${target.name}.vera_lambda_b`,
      d: `${target.name}.vera_lambda_d`,
    }),
  );
  const inputs = Math.max(...layers.map(({ layer }) => layer.inFeatures));
  const outputs = Math.max(...layers.map(({ layer }) => layer.outFeatures));
  let drawn: TensorRecord | undefined;
  const shared = (): TensorRecord => {
    drawn ??= projections(rank, inputs, outputs, projectionPrngKey);
    return { ...drawn };
  };
  const shapes: Record<string, StaticShape> = Object.fromEntries(
    layers.flatMap(({ layer, b, d }): [string, StaticShape][] => [
      [b, [layer.outFeatures]],
      [d, [rank]],
    ]),
  );
  return {
    kind: "VERA",
    title: "VeRA",
    targets: layers.map(({ path }) => path),
    mergeable: "exact",
    isAdditive: true,
    init: () =>
      Object.fromEntries(
        layers.flatMap(({ layer, b, d }) => [
          [b, Tensor.zeros([layer.outFeatures], "float32")],
          [d, new Tensor("float32", [rank], new Float32Array(rank).fill(dInitial))],
        ]),
      ),
    initBuffers: shared,
    file: {
      pack: ({ params, buffers }: AdapterNumbers): TensorRecord =>
        saveProjection ? { ...params, ...shared(), ...buffers } : { ...params },
      unpack: (stored, where): AdapterNumbers => {
        const both = { [nameA]: [rank, inputs], [nameB]: [outputs, rank] };
        const {
          [nameA]: a,
          [nameB]: b,
          ...params
        } = storedTensors(stored, saveProjection ? { ...shapes, ...both } : shapes, where);
        return { params, buffers: saveProjection ? { [nameA]: a!, [nameB]: b! } : shared() };
      },
    },
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map(({ layer, path, b, d }): [Module, SiteFn] => {
          const first = upTo(values[nameA]!, 1, layer.inFeatures);
          const second = upTo(values[nameB]!, 0, layer.outFeatures);
          return [
            layer,
            (x, y, context) => {
              const seen = dropped(`vera.${path}`, x, dropout, context);
              const inner = mul(dot(seen, first, { transB: true }), values[d]!);
              return add(y, mul(dot(inner, second, { transB: true }), values[b]!));
            },
          ];
        }),
      ),
    }),
    merge: (base, params, buffers = shared()) =>
      Object.assign(
        {},
        ...layers.map((target) => {
          const { layer, b, d } = target;
          const left = part(buffers[nameB]!, layer.outFeatures, rank, params[b]!);
          const right = part(buffers[nameA]!, rank, layer.inFeatures, params[d]!);
          return changedWeight(target, base, (weight) => plus(weight, multiply(left, right), 1));
        }),
      ),
    config: () => ({
      ...namedLayers(model, read, layers),
      r: rank,
      vera_dropout: dropout,
      d_initial: dInitial,
      projection_prng_key: projectionPrngKey,
      save_projection: saveProjection,
      fan_in_fan_out: isFanInFirst(layers),
      bias: "none",
      init_weights: true,
      layers_pattern: null,
      layers_to_transform: null,
    }),
  };
}

/** Fields that name the layers: PEFT has no exclude_modules here, so layers that are left are named one by one. */
function namedLayers(
  model: PretrainedModel,
  wanted: TargetOptions,
  layers: readonly VeraLayer[],
): Record<string, unknown> {
  const paths = layers.map(({ path }) => path);
  const { exclude_modules, ...common } = commonConfig("VERA", model, wanted, paths);
  if (exclude_modules === null) return common;
  return { ...common, target_modules: paths.map((path) => peftPath(model, path)).sort() };
}

/** The first of an axis. */
function upTo(x: Value, axis: number, count: number): Value {
  return x.shape[axis] === count ? x : slice(x, axis, 0, count);
}

/** The upper left part of a matrix, each row times its factor. */
function part(whole: Tensor, rows: number, columns: number, factors: Tensor): Matrix {
  const [numbers, sizes, width] = [whole.numbers(), factors.numbers(), whole.shape[1]!];
  return matrix(
    rows,
    columns,
    Float64Array.from({ length: rows * columns }, (_, i) => {
      const row = Math.floor(i / columns);
      return numbers[row * width + (i % columns)]! * sizes[row]!;
    }),
  );
}

export const veraKind: AdapterKind<VeraOptions> = {
  kind: "VERA",
  bind: vera,
  read: (config, where, model) => ({
    ...readTargets(config, where, model).targets,
    rank: numberIn(config, "r", where, 256),
    dropout: numberIn(config, "vera_dropout", where, 0),
    dInitial: numberIn(config, "d_initial", where, 0.1),
    projectionPrngKey: numberIn(config, "projection_prng_key", where, 0),
    saveProjection: flagIn(config, "save_projection", where, true),
  }),
};

export const veraMethod: Method<VeraOptions> = defineMethod<VeraOptions>({
  id: "vera",
  number: null,
  title: "VeRA",
  capability: "adapt",
  summary: "Trains two vectors a layer around one pair of random matrices that all layers share.",
  paper: {
    title: "VeRA: Vector-based Random Matrix Adaptation",
    year: 2023,
    url: "https://arxiv.org/abs/2310.11454",
  },
  implementation: "parity",
  options,
  roles: { adapter: veraKind },
  tiny: { rank: 6 },
});
