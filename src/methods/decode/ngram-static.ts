/**
 * Drafts from a tri-gram table of a corpus that does not learn: retrieval of what usually follows.
 *
 * After He et al., "REST: Retrieval-Based Speculative Decoding", NAACL 2024, arXiv:2311.08252.
 *
 *   P(w | u, v) = count(u, v, w) / count(u, v)      from a corpus, with back-off to v and to all
 *
 * Differs: REST looks up the longest suffix of the text in a suffix array of its datastore and makes a trie of
 * what follows; here the contexts are two tokens and the tree is that of the search of ADED, so that the two
 * differ in learning alone.
 */
import { OptionError } from "../../errors.ts";
import { defineMethod, type Method } from "../method.ts";
import { searchDraft } from "./shared/draft-search.ts";
import { TableDrafter, type TableOptions, tableOptions } from "./shared/table-drafter.ts";

export interface NgramStaticOptions extends TableOptions {
  /** Rounds of the tree search. */
  readonly iterations?: number;
}

export const ngramStatic: Method<NgramStaticOptions> = defineMethod<NgramStaticOptions>({
  id: "ngram-static",
  number: null,
  title: "Static n-grams",
  capability: "decode",
  summary: "Draft from the tri-grams of a corpus.",
  paper: {
    title: "REST: Retrieval-Based Speculative Decoding",
    year: 2023,
    url: "https://arxiv.org/abs/2311.08252",
  },
  implementation: "sketch",
  options: {
    ...tableOptions,
    iterations: {
      type: "integer",
      default: 80,
      range: [1, 4096],
      about: "rounds of the tree search",
    },
  },
  tiny: { iterations: 16, depth: 3, nodes: 7, memory: 1 },
  roles: {
    decoder: {
      corpus: "needed",
      make: ({ vocabSize, corpus }, options) => {
        if (!corpus) {
          throw new OptionError(
            "ngram-static: needs a corpus — give a text whose n-grams it takes.",
          );
        }
        const { width = 16, memory = 64, nodes = 31, depth = 6 } = options;
        const { iterations = 80, least = 0.1 } = options;
        const drafter = new TableDrafter(
          vocabSize,
          { width, memory, nodes },
          (model, context, most) =>
            searchDraft(model, context, {
              iterations,
              depth,
              nodes: most,
              least,
              exploration: 1,
              value: "joint",
            }),
        );
        drafter.model.fit(corpus);
        return drafter;
      },
    },
  },
});
