/**
 * BOFT: inputs of a layer are rotated by a product of sparse rotations, which mix as a fast Fourier transform's
 * butterflies do, and outputs are scaled.
 *
 * Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", ICLR 2024,
 * arXiv:2311.06243, section 4. Names, shapes and fields are PEFT's.
 *
 *   y = s ∘ (W Rᵀ x) + b,   R = B_m … B₁ B₀,   B_i = P_i diag(R_{i,1} … R_{i,D}) P_iᵀ,   merged: diag(s) W Rᵀ
 *   R_{i,j} = (I - Q) (I + Q)⁻¹,   Q = (A_{i,j} - A_{i,j}ᵀ) / 2
 *
 *   A → boft_R (factors, D, b, b), zero at first       s → boft_s (out, 1), ones at first
 *   D → blocks, b → blockSize: D b = in                 P_i → reads every second of 2ⁱ⁺¹ half blocks first
 *
 * PEFT itself computes with one factor where its CUDA extension is not built, whatever the file says; here a
 * factor is a factor. Cost: factors · in · b + out numbers a layer.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { numberIn } from "../../adapters/peft-config.ts";
import { OptionError } from "../../errors.ts";
import { add, mul, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { concat, reshape, slice, transpose } from "../../ir/layout.ts";
import type { PretrainedModel } from "../../models/model.ts";
import type { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type Matrix, matrix } from "../../tensor/linalg/index.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  cayley,
  cayleyMatrix,
  rotateBlocks,
  rotateWeight,
  withIdentity,
} from "./shared/orthogonal.ts";
import {
  biasOf,
  changedWeight,
  commonConfig,
  isFanInFirst,
  linearLayers,
  productWith,
  readTargets,
  type TargetLayer,
  type TargetOptions,
  targetOptions,
} from "./shared/peft-layers.ts";

export interface BoftOptions extends TargetOptions {
  /** Sides of a block; 0 where `blockNum` says how many there are. */
  readonly blockSize?: number;
  /** Blocks of a layer; 0 where `blockSize` says how large they are. */
  readonly blockNum?: number;
  /** Sparse rotations one after another. */
  readonly factors?: number;
  /** Share of one factor's blocks that are the identity in a training step. */
  readonly dropout?: number;
}

const options = {
  blockSize: {
    type: "integer",
    default: 4,
    range: [0, 4096],
    about: "sides of a block of inputs that are rotated together; 0 to give the number of blocks",
  },
  blockNum: {
    type: "integer",
    default: 0,
    range: [0, 65536],
    about: "blocks of a layer, with a blockSize of 0",
  },
  factors: {
    type: "integer",
    default: 1,
    range: [1, 16],
    about: "butterfly factors: each doubles how far inputs mix",
  },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of one factor's blocks that stay as they are in a training step",
  },
  ...targetOptions,
} as const satisfies OptionSpecs<BoftOptions>;

interface BoftLayer extends TargetLayer<Linear> {
  readonly r: string;
  readonly s: string;
  readonly size: number;
  readonly count: number;
  /** Of each factor: where its inputs are taken from; undefined where they stay. */
  readonly orders: readonly (Int32Array<ArrayBuffer> | undefined)[];
}

/**
 * P_i as an order: groups of 2ⁱ blocks, of whose half blocks every second comes first.
 * @param inputs numbers @param size of a block, even
 */
export function butterflyOrder(inputs: number, size: number, i: number): Int32Array<ArrayBuffer> {
  const half = size / 2;
  const group = size * 2 ** i;
  const halves = group / half;
  const order = new Int32Array(inputs);
  for (let start = 0; start < inputs; start += group) {
    for (let at = 0; at < halves; at++) {
      const from = at < halves / 2 ? 2 * at : 2 * (at - halves / 2) + 1;
      for (let k = 0; k < half; k++) order[start + at * half + k] = start + from * half + k;
    }
  }
  return order;
}

function inverseOrder(order: Int32Array): Int32Array<ArrayBuffer> {
  const inverse = new Int32Array(order.length);
  for (let i = 0; i < order.length; i++) inverse[order[i]!] = i;
  return inverse;
}

/** Sizes of a layer's blocks. @throws OptionError where they do not fit its inputs. */
function blocksOf(
  { path, layer }: TargetLayer<Linear>,
  { blockSize, blockNum, factors }: Required<Omit<BoftOptions, keyof TargetOptions>>,
): readonly [size: number, count: number] {
  const inputs = layer.inFeatures;
  const wrong = (what: string): OptionError =>
    new OptionError(`boft: the ${inputs} inputs of "${path}" ${what}.`);
  const given = blockSize === 0 ? blockNum : blockSize;
  if (inputs % given !== 0) {
    const what = blockSize === 0 ? `${blockNum} blocks` : `blocks of ${blockSize}`;
    throw wrong(`do not fall into ${what} — give a divisor`);
  }
  const [size, count] =
    blockSize === 0 ? [inputs / blockNum, blockNum] : [blockSize, inputs / blockSize];
  if (size < 2) throw wrong(`fall into blocks of 1, which nothing rotates — give fewer blocks`);
  if (factors === 1) return [size, count];
  if (size % 2 !== 0 || count % 2 ** (factors - 1) !== 0) {
    throw wrong(
      `fall into ${count} blocks of ${size}, and ${factors} factors need an even size and a multiple of ${2 ** (factors - 1)} blocks — give fewer factors`,
    );
  }
  return [size, count];
}

/**
 * Binds BOFT to a model.
 * @throws OptionError for targets that match no layer, or blocks and factors that do not fit one;
 * UnsupportedError for layers that are not linear.
 */
export function boft(model: PretrainedModel, given: BoftOptions = {}): Adapter {
  const read = readOptions<BoftOptions, typeof options>("boft", options, given);
  const { blockSize, blockNum, factors, dropout } = read;
  if ((blockSize === 0) === (blockNum === 0)) {
    throw new OptionError(
      `boft: give one of blockSize and blockNum and 0 for the other, got ${blockSize} and ${blockNum}.`,
    );
  }
  const layers = linearLayers("boft", model, read).map((target): BoftLayer => {
    const [size, count] = blocksOf(target, read);
    const orders = Array.from({ length: factors }, (_, i) =>
      i === 0 ? undefined : butterflyOrder(target.layer.inFeatures, size, i),
    );
    const { name } = target;
    return { ...target, r: `${name}.boft_R`, s: `${name}.boft_s`, size, count, orders };
  });

  /** Rotations of every layer, (factors · D, b, b): those of one block size in one go. */
  const rotations = (values: ValueRecord): Map<BoftLayer, Value> => {
    const found = new Map<BoftLayer, Value>();
    for (const size of new Set(layers.map((one) => one.size))) {
      const alike = layers.filter((one) => one.size === size);
      const free = alike.map(({ r }) => reshape(values[r]!, [-1, size, size]));
      const all = free.length === 1 ? free[0]! : concat(free, 0);
      const rotated = cayley(mul(sub(all, transpose(all, [0, 2, 1])), 0.5));
      let at = 0;
      for (const one of alike) {
        found.set(one, slice(rotated, 0, at, at + factors * one.count));
        at += factors * one.count;
      }
    }
    return found;
  };
  const paths = layers.map(({ path }) => path);
  return {
    kind: "BOFT",
    title: "BOFT",
    targets: paths,
    mergeable: "exact",
    init: () =>
      Object.fromEntries(
        layers.flatMap(({ r, s, size, count, layer }): [string, Tensor][] => [
          [r, Tensor.zeros([factors, count, size, size], "float32")],
          [
            s,
            new Tensor(
              "float32",
              [layer.outFeatures, 1],
              new Float32Array(layer.outFeatures).fill(1),
            ),
          ],
        ]),
      ),
    context: (values) => {
      const rotation = rotations(values);
      return {
        sites: new Map<Module, SiteFn>(
          layers.map((one): [Module, SiteFn] => [
            one.layer,
            (x, _, context) => {
              const kept = withIdentity(rotation.get(one)!, factors, dropout, one.path, context);
              const seen = rotated(one, x, kept);
              const scale = reshape(values[one.s]!, [1, one.layer.outFeatures]);
              const y = mul(productWith(one.layer, seen, context), scale);
              const bias = biasOf(one.layer, context);
              return bias ? add(y, bias) : y;
            },
          ]),
        ),
      };
    },
    merge: (base, params) =>
      Object.assign({}, ...layers.map((one) => mergeLayer(one, base, params))),
    config: () => ({
      ...commonConfig("BOFT", model, read, paths),
      boft_block_size: blockSize,
      boft_block_num: blockNum,
      boft_n_butterfly_factor: factors,
      boft_dropout: dropout,
      fan_in_fan_out: isFanInFirst(layers),
      bias: "none",
      init_weights: true,
      layers_pattern: null,
      layers_to_transform: null,
    }),
  };
}

/** x R of rows (N, in), the last factor first. */
function rotated({ count, orders }: BoftLayer, x: Value, blocks: Value): Value {
  let result = x;
  for (let i = orders.length - 1; i >= 0; i--) {
    const order = orders[i];
    const own = slice(blocks, 0, i * count, (i + 1) * count);
    if (order) result = gather(result, indices(inverseOrder(order)), 1);
    result = rotateBlocks(result, own);
    if (order) result = gather(result, indices(order), 1);
  }
  return result;
}

const indices = (order: Int32Array<ArrayBuffer>): Tensor =>
  new Tensor("int32", [order.length], order);

/** diag(s) W Rᵀ. */
function mergeLayer(
  one: BoftLayer,
  base: Readonly<Record<string, Tensor>>,
  params: Readonly<TensorRecord>,
): TensorRecord {
  const { size, count, orders } = one;
  const [free, scale] = [params[one.r]!.numbers(), params[one.s]!.numbers()];
  const block = (at: number): Matrix => {
    const q = matrix(size, size);
    const start = at * size * size;
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        q.data[i * size + j] = (free[start + i * size + j]! - free[start + j * size + i]!) / 2;
      }
    }
    return cayleyMatrix(q);
  };
  return changedWeight(one, base, (weight) => {
    let result = weight;
    for (const [i, order] of orders.entries()) {
      const blocks = Array.from({ length: count }, (_, j) => block(i * count + j));
      if (order) result = reordered(result, inverseOrder(order));
      result = rotateWeight(result, blocks);
      if (order) result = reordered(result, order);
    }
    return matrix(
      result.rows,
      result.columns,
      result.data.map((x, i) => x * scale[Math.floor(i / result.columns)]!),
    );
  });
}

/** Columns taken from where an order says. */
function reordered({ rows, columns, data }: Matrix, order: Int32Array): Matrix {
  return matrix(
    rows,
    columns,
    data.map((_, i) => data[i - (i % columns) + order[i % columns]!]!),
  );
}

export const boftKind: AdapterKind<BoftOptions> = {
  kind: "BOFT",
  bind: boft,
  read: (config, where, model) => ({
    ...readTargets(config, where, model).targets,
    blockSize: numberIn(config, "boft_block_size", where, 4),
    blockNum: numberIn(config, "boft_block_num", where, 0),
    factors: numberIn(config, "boft_n_butterfly_factor", where, 1),
    dropout: numberIn(config, "boft_dropout", where, 0),
  }),
};

export const boftMethod: Method<BoftOptions> = defineMethod<BoftOptions>({
  id: "boft",
  number: null,
  title: "BOFT",
  capability: "adapt",
  summary:
    "Rotates the inputs of each layer by a product of sparse rotations, and scales its outputs.",
  paper: {
    title: "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
    year: 2023,
    url: "https://arxiv.org/abs/2311.06243",
  },
  implementation: "parity",
  options,
  sizedBy: "blockSize",
  roles: { adapter: boftKind },
  tiny: { factors: 2 },
});
