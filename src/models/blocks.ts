/** The blocks of a model, and where in them an adapter may stand. */
import type { Module } from "../nn/module.ts";

/**
 * Sites of one block, by the module that each is keyed with. Attention and feed-forward layer call with
 * what they add to the residual stream, which their `Place` has; the block with what comes out of it. A site
 * that leaves its output unused leaves all that was computed for it out of the graph.
 */
export interface BlockSites {
  /** Of the block. */
  readonly path: string;
  readonly block: Module;
  readonly attention: Module;
  readonly feedForward: Module;
  /** Features of the residual stream. */
  readonly dModel: number;
}

/** Sites of blocks of one width, in order. */
export function blockSites<B extends Module>(
  model: Module,
  blocks: readonly B[],
  dModel: number,
  partsOf: (block: B) => Pick<BlockSites, "attention" | "feedForward">,
): BlockSites[] {
  const paths = new Map([...model.modules()].map(([path, module]) => [module, path]));
  return blocks.map((block) => ({
    path: paths.get(block) ?? "",
    block,
    dModel,
    ...partsOf(block),
  }));
}
