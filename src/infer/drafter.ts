/** What proposes tokens for a model to check: speculative decoding's other half. */

/** Continuations of a text as a tree: each node is a token after its parent. */
export interface DraftTree {
  /** Tokens of the nodes; a parent stands before its children. */
  readonly tokens: Int32Array;
  /** Index of each node's parent, -1 for a child of the text's last token. */
  readonly parents: Int32Array;
}

/** What a pass over a draft gave. */
export interface VerifiedPass {
  /** The nodes that were read: of a proposal those that the text had room for. */
  readonly draft: DraftTree;
  /** Logits after the text's last token, then after each node: (1 + nodes, V). Valid until the next pass. */
  readonly logits: Float32Array;
  /** Nodes that the model agreed with, from the root down. */
  readonly accepted: readonly number[];
  /** Tokens that the text gained: those of the accepted nodes, and the model's own next one. */
  readonly tokens: Int32Array;
  /** How firmly each was chosen, and the stop token that came after them if one did: `Decision.margin`. */
  readonly margins: readonly number[];
}

/** Proposes what comes next; the model decides. One text at a time. */
export interface Drafter {
  /** A new text begins; what was learnt from earlier ones may stay. */
  begin(prompt: Int32Array): void;
  /** A tree of at most `limit` nodes; an empty one where there is no idea. */
  propose(limit: number): DraftTree;
  /** What became of the last proposal. */
  learn(pass: VerifiedPass): void;
  /** Memory that it holds. */
  readonly bytes: number;
}
