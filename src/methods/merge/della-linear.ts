/**
 * DELLA without the election of signs: magnitude-based sampling, then task arithmetic.
 *
 * Deep, Bhardwaj, Poria, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
 * Sampling", 2024, arXiv:2406.11617; the form without its second step, as mergekit offers it.
 *
 *   θ = θ_0 + λ Σ_t w_t τ̂_t      with τ̂_t as in DELLA
 *
 *   1 - p → density    ε → epsilon    w_t → weight    λ → lambda
 *
 * Cost: a sorted row and one random number an entry.
 */
import { defineMethod, type Method } from "../method.ts";
import { type DellaOptions, dellaOptions, dellaPaper, dellaSparsify } from "./shared/della.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const dellaLinear: Method<DellaOptions> = defineMethod<DellaOptions>({
  id: "della-linear",
  number: null,
  title: "DELLA without consensus",
  capability: "merge",
  summary: "Drops small changes more often than large ones, and adds the rest.",
  paper: dellaPaper,
  implementation: "faithful",
  buildsOn: ["della", "task-arithmetic"],
  options: dellaOptions(false),
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density", "epsilon"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<DellaOptions>[], {
          hasConsensus: false,
          sparsify: dellaSparsify,
        }),
    },
  },
});
