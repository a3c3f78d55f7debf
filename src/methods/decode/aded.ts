/**
 * ADED: speculative decoding whose draft comes from a tri-gram table that learns from the model while it
 * decodes, by a small tree search.
 *
 * Liu et al., "Adaptive Draft-Verification for Efficient Large Language Model Decoding", AAAI 2025,
 * arXiv:2407.12021.
 *
 *   P(w | u, v) = R[u,v][w]                                            LLM representative, rows sum to 1
 *   R[u,v] ← (1 - ρ) R[u,v] + ρ P_M(· | context)|_top-m                 adaptive update, after each pass
 *   a* = argmax_a Q(s,a) + E(s) P(a|s) √(Σ_b N(s,b)) / (1 + N(s,a))     selection (PUCT)
 *   E(s) = c1 + log((Σ_b N(s,b) + c2 + 1) / c2)                         c1 = 1.25, c2 = 19652
 *   v = Π P along the path; N ← N + 1, Q ← running mean of v            backup
 *   the `nodes` most visited nodes are the draft                        closed under parents
 *
 *   R   → TrigramRepresentative   W → width     ρ → rate   m → top
 *   D   → depth                   I → iterations            B → nodes
 *
 * A pass checks the draft in one forward pass and keeps the tokens that the model itself takes: see
 * infer/speculative.ts. Every verified position teaches the table, those on rejected paths too, since the
 * model scored them after their own path; tokens that only the draft chose teach nothing.
 *
 * Differs: the rate, the value of a path, and the back-off of contexts without a row, to a bi-gram row, which
 * learns at half the rate, and to a uni-gram row, are ours. The constants of E(s) are MuZero's. The authors'
 * release (https://github.com/liuxukun2000/Adaptix) takes c1 = 32 and c2 = 8, which the options allow, values a
 * path by 1 plus the sum of its probabilities after a random rollout, and updates by adding 0.04 to the
 * tri-grams of the text's last 16 tokens, not normalised. Here nothing is random, the search deepens a path by
 * visits alone, and the table learns from the model's distributions, as the paper says. Rows
 * stay distributions: the model's cut to its top m, and a row cut to its W likeliest tokens, are divided by
 * their sum. A row decays only when it is written, so that rare contexts do not starve; at the bound on
 * memory the row written longest ago of a few goes. Paths whose joint probability is below `least` are left
 * out of a draft, since on a CPU a pass costs by its nodes; 0 fills every pass, as in the paper.
 * Cost: nodes + 1 positions a pass in place of one, about I · D · W score evaluations, and the table.
 */
import { defineMethod, type Method } from "../method.ts";
import { beamDraft, searchDraft } from "./shared/draft-search.ts";
import { TableDrafter, type TableOptions, tableOptions } from "./shared/table-drafter.ts";

export interface AdedOptions extends TableOptions {
  /** Rounds of the tree search. */
  readonly iterations?: number;
  /** Factor on the exploration term. */
  readonly exploration?: number;
  /** Constants of E(s). */
  readonly c1?: number;
  readonly c2?: number;
  /** Of a path: its joint probability, or the geometric mean of its tokens'. */
  readonly value?: "joint" | "mean";
  /** How the draft is made: by tree search, or level by level. */
  readonly draft?: "search" | "beam";
  /** Share of a row that an update replaces. */
  readonly rate?: number;
  /** Likeliest tokens of the model's distribution that an update takes. */
  readonly top?: number;
}

export const aded: Method<AdedOptions> = defineMethod<AdedOptions>({
  id: "aded",
  number: 4,
  title: "ADED",
  capability: "decode",
  summary:
    "Draft by tree search over a tri-gram table that learns from the model's own distributions.",
  paper: {
    title: "Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    year: 2024,
    url: "https://arxiv.org/abs/2407.12021",
  },
  implementation: "faithful",
  claim: "undecided",
  options: {
    ...tableOptions,
    iterations: {
      type: "integer",
      default: 80,
      range: [1, 4096],
      about: "rounds of the tree search (paper 60 to 150)",
    },
    exploration: {
      type: "number",
      default: 1,
      range: [0, 100],
      about: "factor on the exploration term of the search",
    },
    c1: {
      type: "number",
      default: 1.25,
      range: [0, 1e6],
      about: "E(s) = c1 + log((N + c2 + 1) / c2) (release 32)",
    },
    c2: {
      type: "number",
      default: 19652,
      range: [1, 1e9],
      about: "its other constant (release 8)",
    },
    value: {
      type: "text",
      default: "joint",
      choices: ["joint", "mean"],
      about: "value of a path: joint probability, or geometric mean of its tokens'",
    },
    draft: {
      type: "text",
      default: "search",
      choices: ["search", "beam"],
      about: "make drafts by tree search, or level by level",
    },
    rate: {
      type: "number",
      default: 0.5,
      range: [0, 1],
      open: [true, false],
      about: "share of a row that an update replaces",
    },
    top: {
      type: "integer",
      default: 8,
      range: [1, 255],
      about: "likeliest tokens that an update takes (paper 8 to 10)",
    },
  },
  tiny: { iterations: 16, depth: 3, nodes: 7, memory: 1 },
  roles: {
    decoder: {
      corpus: "used",
      make: ({ vocabSize, corpus }, options) => {
        const { width = 16, memory = 64, nodes = 31, depth = 6, least = 0.1 } = options;
        const { rate = 0.5, top = 8, c1 = 1.25, c2 = 19652 } = options;
        const { iterations = 80, exploration = 1, value = "joint", draft = "search" } = options;
        const drafter = new TableDrafter(
          vocabSize,
          { width, memory, nodes },
          (model, context, most) =>
            draft === "beam"
              ? beamDraft(model, context, { depth, nodes: most, least })
              : searchDraft(model, context, {
                  iterations,
                  depth,
                  nodes: most,
                  least,
                  exploration,
                  constants: { c1, c2 },
                  value,
                }),
          { rate, top },
        );
        if (corpus) drafter.model.fit(corpus);
        return drafter;
      },
    },
  },
});
