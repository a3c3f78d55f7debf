/**
 * Prompt lookup: what followed the text's last tokens where they stood before is proposed again.
 *
 * Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding; Yang et al.,
 * "Inference with Reference", 2023, arXiv:2304.04487.
 *
 *   draft = x[j+1 … j+tokens],  x[j-n+1 … j] = the text's last n tokens,  n = longest … 1, the largest found
 *
 * Differs: of several places the last one is taken, the published code takes the first; nearer text is more
 * like what comes. Cost: a look through the text for each pass.
 */
import type { Drafter } from "../../infer/drafter.ts";
import { emptyDraft } from "../../infer/tree-pass.ts";
import { defineMethod, type Method } from "../method.ts";

export interface PromptLookupOptions {
  /** Tokens that are looked for at most. */
  readonly longest?: number;
  /** Tokens that are proposed at most. */
  readonly tokens?: number;
}

/** Where what follows the last match begins, or -1: the longest match up to `longest` tokens. */
export function lookUp(text: readonly number[], longest: number): number {
  for (let size = Math.min(longest, text.length - 1); size >= 1; size--) {
    const start = text.length - size;
    for (let end = text.length - 1; end >= size; end--) {
      let same = 0;
      while (same < size && text[end - size + same] === text[start + same]) same++;
      if (same === size) return end;
    }
  }
  return -1;
}

export const promptLookup: Method<PromptLookupOptions> = defineMethod<PromptLookupOptions>({
  id: "prompt-lookup",
  number: null,
  title: "Prompt lookup",
  capability: "decode",
  summary: "Draft what followed the same tokens earlier in the text.",
  paper: {
    title: "Prompt Lookup Decoding",
    year: 2023,
    url: "https://github.com/apoorvumang/prompt-lookup-decoding",
  },
  implementation: "faithful",
  options: {
    longest: {
      type: "integer",
      default: 3,
      range: [1, 64],
      about: "tokens that are looked for at most",
    },
    tokens: {
      type: "integer",
      default: 10,
      range: [1, 255],
      about: "tokens that are proposed at most",
    },
  },
  roles: {
    decoder: {
      corpus: "unused",
      make: (_, { longest = 3, tokens = 10 }): Drafter => {
        let text: number[] = [];
        return {
          get bytes() {
            return 8 * text.length;
          },
          begin: (prompt) => {
            text = Array.from(prompt);
          },
          propose: (limit) => {
            const at = lookUp(text, longest);
            if (at < 0) return emptyDraft;
            const found = Int32Array.from(text.slice(at, at + Math.min(tokens, limit)));
            return { tokens: found, parents: found.map((_, i) => i - 1) };
          },
          learn: (pass) => {
            text.push(...pass.tokens);
          },
        };
      },
    },
  },
});
