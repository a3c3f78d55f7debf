/** The operators of the graph applied at once to tensors: for exploration and tests. */
import * as elementwise from "../ir/elementwise.ts";
import * as fused from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import * as indexing from "../ir/indexing.ts";
import * as layout from "../ir/layout.ts";
import * as linear from "../ir/linear.ts";
import * as reduce from "../ir/reduce.ts";
import { Tensor } from "../tensor/tensor.ts";
import { flatten, unflatten } from "../tensor/tree.ts";
import type { Backend } from "./backend.ts";
import { evaluate } from "./compile.ts";

type Operators = typeof elementwise &
  typeof reduce &
  typeof layout &
  typeof indexing &
  typeof linear &
  typeof fused;

const operators = { ...elementwise, ...reduce, ...layout, ...indexing, ...linear, ...fused };

/** A type with tensors in the place of values. */
type WithTensors<T> = T extends Value
  ? Tensor
  : T extends Value[] | { readonly [key: string]: Value } | readonly (Value | Tensor | number)[]
    ? { [K in keyof T]: WithTensors<T[K]> }
    : T;

type OnTensors<F> = F extends (...args: infer A) => infer R
  ? (...args: { [K in keyof A]: WithTensors<A[K]> }) => Promise<WithTensors<R>>
  : never;

/** Every operator, from tensors and numbers to a promise of a tensor (or several). */
export type Eager = { readonly [K in keyof Operators]: OnTensors<Operators[K]> };

/**
 * An object with the operators of the graph as methods, each compiled for its arguments and run.
 * @example const { matmul } = eager(reference()); await matmul(a, b);
 */
export function eager(backend: Backend): Eager {
  return new Proxy({} as Eager, {
    get: (_, name) => {
      const operator = Reflect.get(operators, name) as ((...args: unknown[]) => never) | undefined;
      return operator && ((...args: unknown[]) => run(backend, operator, args));
    },
  });
}

/** Tensors become inputs of a trace; everything else is passed as it is. */
function run(
  backend: Backend,
  operator: (...args: unknown[]) => never,
  args: readonly unknown[],
): Promise<unknown> {
  const { leaves } = flatten<unknown>(args as never);
  const tensors = leaves.filter((leaf) => leaf instanceof Tensor);
  const onValues = (...values: Value[]): never => {
    const next = values[Symbol.iterator]();
    const replaced = leaves.map((leaf) => (leaf instanceof Tensor ? next.next().value : leaf));
    return operator(...(unflatten(args, replaced) as unknown[]));
  };
  return evaluate(backend, onValues, ...tensors);
}
