/** Which optimiser takes which parameters. */
import { OptionError } from "../errors.ts";
import type { StaticShape } from "../tensor/shape.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero } from "./options.ts";

export interface ParameterGroup {
  /** Paths of the group's parameters. */
  readonly paths: readonly string[];
  readonly optimizer: Optimizer;
  /** Multiplies the learning rate; default 1. */
  readonly learningRateScale?: number;
}

/** Parameters by path; tensors, or anything else that has a shape. */
export type Shapes = Readonly<Record<string, { readonly shape: StaticShape }>>;

/** Whether a path names an embedding, by the names that models are published under. */
export function isEmbedding(path: string): boolean {
  return /(^|\.)(wte|wpe|\w*embed\w*)(\.|$)/.test(path);
}

/** Whether a path names the layer that gives the logits. */
export function isHead(path: string): boolean {
  return /(^|\.)(lm_head|classifier|score|head)(\.|$)/.test(path);
}

export interface DecayGroupOptions {
  /** λ of the parameters that decay. */
  readonly weightDecay: number;
  /** Whether embeddings decay; default true. */
  readonly decayEmbeddings?: boolean;
  /** Paths that do not decay, beside those of fewer than two dimensions. */
  readonly noDecay?: (path: string, shape: StaticShape) => boolean;
}

/**
 * Two groups, as is usual: matrices and larger decay, biases, norms and other parameters of fewer
 * than two dimensions do not. A group without parameters is left out.
 * @param makeOptimizer from a weight decay, λ or 0
 */
export function decayGroups(
  params: Shapes,
  { weightDecay, decayEmbeddings = true, noDecay = () => false }: DecayGroupOptions,
  makeOptimizer: (weightDecay: number) => Optimizer,
): ParameterGroup[] {
  check("decayGroups", fromZero, { weightDecay });
  const decays = ([path, { shape }]: [string, Shapes[string]]): boolean =>
    shape.length >= 2 && (decayEmbeddings || !isEmbedding(path)) && !noDecay(path, shape);
  return split(params, decays, [() => makeOptimizer(weightDecay), () => makeOptimizer(0)]);
}

/**
 * Two groups for optimisers such as Muon: the matrices inside a network, and the rest, which
 * includes embeddings and heads. A group without parameters is left out.
 */
export function matrixGroups(
  params: Shapes,
  optimizers: { readonly matrices: Optimizer; readonly others: Optimizer },
): ParameterGroup[] {
  const isInner = ([path, { shape }]: [string, Shapes[string]]): boolean =>
    shape.length === 2 && !isEmbedding(path) && !isHead(path);
  return split(params, isInner, [() => optimizers.matrices, () => optimizers.others]);
}

function split(
  params: Shapes,
  isFirst: (entry: [string, Shapes[string]]) => boolean,
  [first, second]: readonly [() => Optimizer, () => Optimizer],
): ParameterGroup[] {
  const entries = Object.entries(params);
  if (entries.length === 0) throw new OptionError("groups: no parameters to split.");
  const paths = (wanted: boolean): string[] =>
    entries.filter((entry) => isFirst(entry) === wanted).map(([path]) => path);
  return [
    { paths: paths(true), make: first },
    { paths: paths(false), make: second },
  ].flatMap((group) =>
    group.paths.length === 0 ? [] : [{ paths: group.paths, optimizer: group.make() }],
  );
}
