/** First numbers of an adapter, and how a LoRA is kept whose first numbers were taken from its base. */
import type { Adapter, AdapterNumbers, PrepareScene } from "../adapters/adapter.ts";
import type { LoraAdapter, LoraOptions } from "../adapters/lora.ts";
import { addProduct } from "../adapters/lora-merge.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

/**
 * Numbers for every parameter and buffer of an adapter: what `prepare` finds, else new ones.
 * @param own numbers that stand above those, as an initialiser's
 */
export async function firstNumbers(
  adapter: Adapter,
  scene: PrepareScene,
  own: Readonly<TensorRecord> = {},
): Promise<AdapterNumbers> {
  const prepared = await adapter.prepare?.(scene);
  // What stands beside an adapter, as a head, is not of its `prepare`.
  const params = { ...adapter.init(scene.rng), ...prepared?.params, ...own };
  return { params, buffers: prepared?.buffers ?? adapter.initBuffers?.() ?? {} };
}

function negated(tensor: Tensor): Tensor<"float32"> {
  return new Tensor(
    "float32",
    tensor.shape,
    Float32Array.from(tensor.numbers(), (x) => -x),
  );
}

/** The base less scale · B A of a LoRA's first numbers: W₀ - s B₀ A₀ + s B A is W₀ at first. */
export function takenFromBase(
  base: Readonly<TensorRecord>,
  adapter: LoraAdapter,
  first: TensorRecord,
): TensorRecord {
  const taken: TensorRecord = { ...base };
  for (const { path, layer, scale, a, b } of adapter.layers.values()) {
    const name = `${path}.weight`;
    taken[name] = addProduct(base[name]!, first[b]!, first[a]!, -scale, layer.inputsFirst);
  }
  return taken;
}

/**
 * The same model as a LoRA of twice the rank on the base as it was, the form in which PEFT keeps it:
 *
 *   W₀ - s B₀ A₀ + s B A = W₀ + s [B, -B₀] [A; A₀]      s = alpha / r, or alpha / √r
 *
 * @param options of the adapter that was trained
 * @returns options of the new one, and its numbers: all others, as a head's, stay
 */
export function onWholeBase(
  adapter: LoraAdapter,
  options: LoraOptions,
  first: TensorRecord,
  trained: TensorRecord,
): { readonly lora: LoraOptions; readonly params: TensorRecord } {
  const params = { ...trained };
  for (const { a, b } of adapter.layers.values()) {
    params[a] = below(trained[a]!, first[a]!);
    params[b] = beside(trained[b]!, negated(first[b]!));
  }
  // So that the scale stays: alpha grows as the rank does, or as its root.
  const factor = options.rankStabilized ? Math.SQRT2 : 2;
  const times = (
    table: Readonly<Record<string, number>> = {},
    by: number,
  ): Record<string, number> =>
    Object.fromEntries(Object.entries(table).map(([name, value]) => [name, by * value]));
  return {
    lora: {
      ...options,
      rank: 2 * adapter.rank,
      alpha: factor * adapter.alpha,
      rankPattern: times(options.rankPattern, 2),
      alphaPattern: times(options.alphaPattern, factor),
    },
    params,
  };
}

/** (r, n) over (s, n). */
function below(top: Tensor, bottom: Tensor): Tensor<"float32"> {
  const [r, n] = top.shape as [number, number];
  const data = new Float32Array(top.size + bottom.size);
  data.set(top.numbers());
  data.set(bottom.numbers(), top.size);
  return new Tensor("float32", [r + bottom.shape[0]!, n], data);
}

/** (m, r) beside (m, s). */
function beside(left: Tensor, right: Tensor): Tensor<"float32"> {
  const [m, r] = left.shape as [number, number];
  const s = right.shape[1]!;
  const data = new Float32Array(m * (r + s));
  const [a, b] = [Float32Array.from(left.numbers()), Float32Array.from(right.numbers())];
  for (let i = 0; i < m; i++) {
    data.set(a.subarray(i * r, (i + 1) * r), i * (r + s));
    data.set(b.subarray(i * s, (i + 1) * s), i * (r + s) + r);
  }
  return new Tensor("float32", [m, r + s], data);
}
