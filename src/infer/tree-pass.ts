/**
 * One forward pass over a tree of tokens after a text: what goes into the model.
 *
 * Miao et al., "SpecInfer", ASPLOS 2024, arXiv:2305.09781, §4.2 (tree attention): a node stands at the
 * position of its depth and sees the text, its ancestors and itself. Parents come before their children, so
 * the causal rule by index leaves all ancestors visible, and the mask takes away everything else.
 */
import { OptionError, StateError } from "../errors.ts";
import type { LanguageModel } from "../models/model.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { DraftTree } from "./drafter.ts";

/** Nodes of a draft at most: the mask is quadratic, and so much is never accepted. */
export const maxDraftNodes = 1023;

/** A draft without an idea. */
export const emptyDraft: DraftTree = { tokens: new Int32Array(0), parents: new Int32Array(0) };

/** Steps below the text's last token, from 1: (nodes,). */
export function depthsOf({ parents }: DraftTree): Int32Array<ArrayBuffer> {
  const depths = new Int32Array(parents.length);
  parents.forEach((parent, i) => {
    depths[i] = parent < 0 ? 1 : depths[parent]! + 1;
  });
  return depths;
}

/**
 * A drafter's proposal cut to nodes of depth up to `deepest`, and to the first `limit` of these.
 * @throws StateError when it is no tree of the model's tokens.
 */
export function fitDraft(
  draft: DraftTree,
  vocabSize: number,
  deepest: number,
  limit: number,
): DraftTree {
  const { tokens, parents } = draft;
  if (tokens.length !== parents.length) {
    throw new StateError(
      `drafter: a tree needs a parent for each token, got ${parents.length} for ${tokens.length}.`,
    );
  }
  const depths = new Int32Array(tokens.length);
  const places = new Int32Array(tokens.length).fill(-1);
  const kept: number[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const [token, parent] = [tokens[i]!, parents[i]!];
    if (!(token >= 0 && token < vocabSize)) {
      throw new StateError(`drafter: token ${token} is not among the model's ${vocabSize}.`);
    }
    if (!(parent >= -1 && parent < i)) {
      throw new StateError(
        `drafter: node ${i} has parent ${parent} — a parent must stand before its children.`,
      );
    }
    depths[i] = parent < 0 ? 1 : depths[parent]! + 1;
    const hasRoom = kept.length < limit && depths[i]! <= deepest;
    if (!hasRoom || (parent >= 0 && places[parent]! < 0)) continue;
    places[i] = kept.length;
    kept.push(i);
  }
  if (kept.length === tokens.length) return draft;
  return {
    tokens: Int32Array.from(kept, (i) => tokens[i]!),
    parents: Int32Array.from(kept, (i) => (parents[i]! < 0 ? -1 : places[parents[i]!]!)),
  };
}

/**
 * Ids (1, T), positions (1, T) and mask (1, 1, T, T) of a pass over the text's last token and a draft. T is at
 * least two, since a product with one row may differ in the last bits; padding sees the text and itself.
 * @param held tokens of the text before its last one
 * @param length T; default one more than the nodes
 */
export function treeInputs(
  last: number,
  draft: DraftTree,
  held: number,
  length: number = draft.tokens.length + 1,
): readonly [ids: Tensor, positions: Tensor, mask: Tensor] {
  const count = draft.tokens.length + 1;
  const size = Math.max(2, length);
  const ids = new Int32Array(size).fill(last);
  const positions = new Int32Array(size).fill(held);
  const mask = new Uint8Array(size * size);
  ids.set(draft.tokens, 1);
  depthsOf(draft).forEach((depth, i) => {
    positions[i + 1] = held + depth;
  });
  for (let i = 0; i < size; i++) {
    mask[i * size + i] = 1;
    if (i === 0 || i >= count) continue;
    // What the parent sees, and itself.
    const parent = draft.parents[i - 1]! + 1;
    for (let j = 0; j <= parent; j++) mask[i * size + j] = mask[parent * size + j]!;
  }
  return [
    new Tensor("int32", [1, size], ids),
    new Tensor("int32", [1, size], positions),
    new Tensor("bool", [1, 1, size, size], mask),
  ];
}

/**
 * That a model's state can go back to a branch of a tree.
 * @throws OptionError for one that carries a state in place of keys and values.
 */
export function checkTreeModel(model: LanguageModel): void {
  if (!model.stateShapes) return;
  throw new OptionError(
    `generate: a ${model.family} model carries one state and cannot check several continuations at once — leave the drafter out.`,
  );
}
