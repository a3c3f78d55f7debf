/** Decoding with a cache, of architectures whose cache is not just all that came before. */
import { describe, expect, it } from "vitest";
import { fixture, parityBackend, type RawTensor } from "../../test/support/fixture.ts";
import { ruleWeights } from "../../test/support/rule-weights.ts";
import { families } from "../models/families.ts";
import type { LanguageModel } from "../models/model.ts";
import { Rng } from "../tensor/rng.ts";
import { Decoder } from "./decoder.ts";
import { PromptMemory } from "./memory.ts";

interface Greedy {
  readonly config: Readonly<Record<string, unknown>>;
  readonly normMean: number;
  readonly greedy: {
    readonly prompts: readonly RawTensor[];
    readonly tokens: readonly RawTensor[];
  };
}

// Windows of 3 to 5, shorter than prompts and what follows; phi3-long turns otherwise beyond 8 tokens.
const cases = [
  "qwen2",
  "qwen3",
  "mistral",
  "gemma3",
  "phi3",
  "phi3-long",
  "gpt-neox",
  "gpt-neox-serial",
  "llama-yarn",
  "llama-longrope",
];

describe.each(cases)("decoding of %s", async (name) => {
  const record = fixture<Greedy>(`decoders/${name}`);
  const make = families[record.config["model_type"] as string]!;
  const model = make(record.config) as LanguageModel;
  const params = ruleWeights(model.init(new Rng(0)).params, record.normMean, (path) =>
    path.replace(/^embed_out\./, "lm_head."),
  );
  const prompts = record.greedy.prompts.map(({ data }) => Int32Array.from(data));
  const expected = record.greedy.tokens.map(({ data }) => [...data]);
  const backend = await parityBackend();
  const options = { maxNewTokens: expected[0]!.length };

  it("makes transformers' tokens, alone and in a batch of uneven rows", async () => {
    const decoder = new Decoder(model, params, backend, { prepack: false });
    const together = await decoder.generate(prompts, options);
    expect(together.map((tokens) => [...tokens])).toEqual(expected);
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await decoder.generate([prompt], options);
      expect([...alone!]).toEqual(expected[i]);
    }
    await decoder.release();
  });

  it("continues from a memory as from nothing", async () => {
    const decoder = new Decoder(model, params, backend, { prepack: false });
    const memory = new PromptMemory();
    const turn = async (prompt: readonly number[]): Promise<number[]> => {
      const ids = Int32Array.from(prompt);
      const [made] = await decoder.generate([ids], { maxNewTokens: 3, memory });
      const [fresh] = await decoder.generate([ids], { maxNewTokens: 3 });
      expect([...made!]).toEqual([...fresh!]);
      return [...made!];
    };
    const start = [...prompts[0]!];
    const next = [...start, ...(await turn(start)), 5, 7];
    await turn([...next, ...(await turn(next)), 1, 2, 3]);
    // Shares more than is longer than the limit, and is itself shorter.
    await turn(next);
    await decoder.release();
  });
});
