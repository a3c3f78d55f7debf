/** Trees: a leaf, or arrays and plain objects of trees. Parameters, states and batches are trees. */
import { ShapeError } from "../errors.ts";

export type Tree<T> = T | readonly Tree<T>[] | { readonly [key: string]: Tree<T> };

/** Leaves by path, in order of the keys as written: `blocks.0.weight`. */
export interface FlatTree<T> {
  readonly paths: readonly string[];
  readonly leaves: readonly T[];
}

type IsLeaf = (value: unknown) => boolean;

function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

const defaultIsLeaf: IsLeaf = (value) => !Array.isArray(value) && !isPlain(value);

/** Lists the leaves; `undefined` counts as no leaf. */
export function flatten<T>(tree: Tree<T>, isLeaf: IsLeaf = defaultIsLeaf): FlatTree<T> {
  const paths: string[] = [];
  const leaves: T[] = [];
  const walk = (node: unknown, path: string): void => {
    if (node === undefined) return;
    if (isLeaf(node)) {
      paths.push(path);
      leaves.push(node as T);
      return;
    }
    const entries = Array.isArray(node)
      ? node.map((child, i) => [String(i), child] as const)
      : Object.entries(node as Record<string, unknown>);
    for (const [key, child] of entries) walk(child, path === "" ? key : `${path}.${key}`);
  };
  walk(tree, "");
  return { paths, leaves };
}

/** The tree of the same form with new leaves, taken in the order that `flatten` lists them. */
export function unflatten<T>(
  form: unknown,
  leaves: readonly T[],
  isLeaf: IsLeaf = defaultIsLeaf,
): unknown {
  let next = 0;
  const walk = (node: unknown): unknown => {
    if (node === undefined) return undefined;
    if (isLeaf(node)) return leaves[next++];
    if (Array.isArray(node)) return node.map(walk);
    const entries = Object.entries(node as Record<string, unknown>);
    // fromEntries defines entries, where assigning to "__proto__" would set the prototype.
    return Object.fromEntries(entries.map(([key, child]) => [key, walk(child)]));
  };
  const result = walk(form);
  if (next !== leaves.length) {
    throw new ShapeError(`unflatten: the form has ${next} leaves, got ${leaves.length}.`);
  }
  return result;
}

export function mapTree<T, U>(
  tree: Tree<T>,
  fn: (leaf: T, path: string) => U,
  isLeaf: IsLeaf = defaultIsLeaf,
): unknown {
  const flat = flatten(tree, isLeaf);
  return unflatten(
    tree,
    flat.leaves.map((leaf, i) => fn(leaf, flat.paths[i]!)),
    isLeaf,
  );
}
