/** Drafts from a tri-gram table, learning from the model's distributions or not. */
import type { Drafter, DraftTree, VerifiedPass } from "../../../infer/drafter.ts";
import { emptyDraft } from "../../../infer/tree-pass.ts";
import type { NumberOption } from "../../../options.ts";
import { likeliest, noToken, TrigramRepresentative } from "./representative.ts";

export interface TableOptions {
  /** Tokens that a row of the table keeps; the paper's sparse matrix does not say. */
  readonly width?: number;
  /** Memory of the table at most, in MiB. */
  readonly memory?: number;
  /** Nodes of a draft at most. */
  readonly nodes?: number;
  /** Tokens of a path at most. */
  readonly depth?: number;
  /** Joint probability that a path of the draft has at least. */
  readonly least?: number;
}

/** How these options are described. */
export const tableOptions: Readonly<Record<keyof TableOptions, NumberOption>> = {
  width: {
    type: "integer",
    default: 16,
    range: [1, 255],
    about: "tokens that a row of the table keeps",
  },
  memory: {
    type: "integer",
    default: 64,
    range: [1, 4096],
    about: "MiB that the table takes at most",
  },
  nodes: {
    type: "integer",
    default: 31,
    range: [1, 255],
    about: "nodes of a draft at most (paper 32 to 64); one more goes through the model",
  },
  least: {
    type: "number",
    default: 0.1,
    range: [0, 1],
    about: "joint probability that a path of the draft has at least: 0 fills every pass (paper)",
  },
  depth: { type: "integer", default: 6, range: [1, 32], about: "tokens of a path at most" },
};

/** How the table learns from a pass. */
export interface Learning {
  /** In (0, 1]. */
  readonly rate: number;
  /** Likeliest tokens of a distribution that are taken. */
  readonly top: number;
}

/** How the table's tree is made: for a text's last two tokens, with so many nodes at most. */
export type DraftOf = (
  model: TrigramRepresentative,
  context: readonly [number, number],
  nodes: number,
) => DraftTree;

export class TableDrafter implements Drafter {
  readonly model: TrigramRepresentative;
  readonly #draft: DraftOf;
  readonly #nodes: number;
  readonly #vocabSize: number;
  readonly #learning: Learning | undefined;
  #context: readonly [number, number] = [noToken, noToken];

  constructor(
    vocabSize: number,
    options: Required<Pick<TableOptions, "width" | "memory" | "nodes">>,
    draft: DraftOf,
    learning?: Learning,
  ) {
    const { width, memory, nodes } = options;
    this.model = new TrigramRepresentative(vocabSize, { width, maxBytes: memory * 2 ** 20 });
    this.#vocabSize = vocabSize;
    this.#nodes = nodes;
    this.#draft = draft;
    this.#learning = learning;
  }

  get bytes(): number {
    return this.model.rows.bytes;
  }

  begin(prompt: Int32Array): void {
    this.#context = [prompt.at(-2) ?? noToken, prompt.at(-1) ?? noToken];
  }

  propose(limit: number): DraftTree {
    const nodes = Math.min(limit, this.#nodes);
    return nodes < 1 ? emptyDraft : this.#draft(this.model, this.#context, nodes);
  }

  /**
   * Each node of the pass has the model's distribution after its own path, whether the path was accepted or
   * not; the tokens that the draft chose are not learnt from.
   */
  learn({ draft, logits, tokens }: VerifiedPass): void {
    const contexts: (readonly [number, number])[] = [this.#context];
    draft.parents.forEach((parent, i) => {
      contexts.push([contexts[parent + 1]![1], draft.tokens[i]!]);
    });
    if (this.#learning) {
      const { rate, top } = this.#learning;
      contexts.forEach(([u, v], i) => {
        const own = logits.subarray(i * this.#vocabSize, (i + 1) * this.#vocabSize);
        const found = likeliest(own, top);
        this.model.update(u, v, found.tokens, found.shares, rate);
      });
    }
    for (const token of tokens) this.#context = [this.#context[1], token];
  }
}
