/** What a policy is asked, and an answer as an example. */
import type { Question } from "../data/encode.ts";
import type { Example } from "../data/example.ts";
import type { ExampleSet } from "../data/set.ts";

/** What is asked, what is expected, and the whole as an example where the data has an answer. */
export interface PolicyPrompt extends Question {
  readonly example?: Example;
}

/** Prompt and answer as one example; the answer carries loss. */
export function joined(prompt: Int32Array, answer: Int32Array): Example {
  const ids = new Int32Array(prompt.length + answer.length);
  ids.set(prompt);
  ids.set(answer, prompt.length);
  return { ids, mask: Uint8Array.from(ids, (_, i) => (i >= prompt.length ? 1 : 0)) };
}

/** Prompts as a set, to judge by in a run. */
export function promptSet(prompts: readonly PolicyPrompt[]): ExampleSet<PolicyPrompt> {
  return {
    count: prompts.length,
    lengths: Int32Array.from(prompts, ({ ids }) => ids.length),
    tokens: prompts.reduce((sum, { ids }) => sum + ids.length, 0),
    lossTokens: 0,
    dataHash: "",
    get: async (indices) => Array.from(indices, (index) => prompts[index]!),
    async close() {},
  };
}
