import { evaluate, type TensorTree } from "../../src/backend/compile.ts";
import { reference } from "../../src/backend/reference/reference.ts";
import type { ValueTree } from "../../src/ir/control.ts";
import type { Dtype } from "../../src/tensor/dtype.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { flatten } from "../../src/tensor/tree.ts";

type Numbers = number | readonly Numbers[];

/** A tensor as nested lists. */
export function nested(tensor: Tensor): Numbers {
  const values = Array.from(tensor.numbers());
  let list: Numbers[] = values;
  for (const dim of tensor.shape.slice(1).reverse()) {
    const count = dim === 0 ? tensor.shape.reduce((a, b) => a * (b || 1), 1) : list.length / dim;
    list = Array.from({ length: count }, (_, i) => list.slice(i * dim, (i + 1) * dim));
  }
  return tensor.shape.length === 0 ? values[0]! : list;
}

function leavesOf(values: Numbers): number[] {
  return typeof values === "number" ? [values] : values.flatMap(leavesOf);
}

/** Nested lists as a tensor, float64 unless said otherwise. */
export function tensor(values: Numbers, dtype: Dtype = "float64"): Tensor {
  const shape: number[] = [];
  for (let at = values; Array.isArray(at); at = at[0] as Numbers) {
    shape.push(at.length);
    if (at.length === 0) break;
  }
  return Tensor.from(leavesOf(values), shape, dtype);
}

/** Runs a function on the reference backend; one result as nested lists, or a list of them. */
export async function judge(
  fn: (...args: never[]) => ValueTree,
  ...args: readonly TensorTree[]
): Promise<Numbers> {
  const results = await evaluate(reference(), fn, ...args);
  if (results instanceof Tensor) return nested(results);
  return flatten<Tensor>(results).leaves.map(nested);
}
