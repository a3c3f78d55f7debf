/** What a derivative rule is given and gives. */
import type { AttrsOf, OpName } from "../ir/attrs.ts";
import { expandNode } from "../ir/expand.ts";
import type { Node, Value } from "../ir/graph.ts";
import { expand } from "../ir/layout.ts";
import { alias } from "../ir/rewrite.ts";

export interface VjpContext<O extends OpName> {
  readonly node: Node<O>;
  readonly attrs: AttrsOf[O];
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  /** One per output; `undefined` where nothing depends on it. */
  readonly cotangents: readonly (Value | undefined)[];
  /** Whether anyone wants the cotangent of an input. */
  readonly needs: (input: number) => boolean;
  /** Differentiates what a rule built itself. */
  readonly backward: Backward;
}

/** Cotangents of `wrt` from those of `outputs`; `undefined` where nothing depends on one. */
export type Backward = (
  outputs: readonly Value[],
  cotangents: readonly Value[],
  wrt: readonly Value[],
) => (Value | undefined)[];

export type Cotangents = readonly (Value | undefined)[];
export type Rule<O extends OpName> = (context: VjpContext<O>) => Cotangents;

export function zerosLike(value: Value): Value {
  return expand(value.graph.lift(0, value.dtype), value.shape);
}

/** Differentiates what a fused operator stands for. */
export function throughExpansion<O extends OpName>(context: VjpContext<O>): Cotangents {
  const { node, inputs, cotangents, backward } = context;
  const stands = inputs.map(alias);
  const expanded = expandNode(node.op, stands, node.attrs);
  const used = cotangents.flatMap((ct, i) => (ct ? [i] : []));
  return backward(
    used.map((i) => expanded[i]!),
    used.map((i) => cotangents[i]!),
    stands,
  );
}
