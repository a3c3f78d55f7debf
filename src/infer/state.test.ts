import { describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { paramsByRule } from "../../test/support/by-rule.ts";
import { fixture, type RawTensor } from "../../test/support/fixture.ts";
import { loraBank } from "../adapters/bank.ts";
import { lora } from "../adapters/lora.ts";
import { compile } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Value } from "../ir/graph.ts";
import { families } from "../models/families.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Decoder } from "./decoder.ts";
import { PromptMemory } from "./memory.ts";
import { logprobsOf } from "./sample.ts";
import { Scorer } from "./score.ts";
import { RowStates } from "./state.ts";

interface Case {
  readonly config: Readonly<Record<string, unknown>>;
  readonly greedy: readonly { readonly prompt: RawTensor; readonly tokens: RawTensor }[];
}

const backend = await nodeOrt({ threads: 1 });
const records = ["mamba", "mamba2"].flatMap((family) =>
  Object.entries(fixture<{ cases: Record<string, Case> }>(family).cases).map(
    ([name, record]) => [`${family}, ${name}`, record] as const,
  ),
);

/** Logits over whole sequences, (T, V). */
async function uncached(
  model: LanguageModel,
  params: TensorRecord,
  tokens: readonly number[],
): Promise<Tensor> {
  const ids = Tensor.from(tokens, [1, tokens.length], "int32");
  const forward = await compile<Tensor>(
    ((p: ValueRecord, x: Value) => model.forward(model.context(p), x).logits) as never,
    [params, ids],
    { backend },
  );
  const logits = await forward.run(params, ids);
  await forward.release();
  return logits;
}

describe.each(records)("a decoder on %s", (_, record) => {
  const model = families[record.config["model_type"] as string]!(record.config) as LanguageModel;
  const params = paramsByRule(model);
  const { vocabSize } = model.sizes;
  const prompts = record.greedy.map(({ prompt }) => Int32Array.from(prompt.data));

  it("continues prompts of several lengths as transformers does, together and alone", async () => {
    const decoder = new Decoder(model, params, backend);
    const expected = record.greedy.map(({ tokens }) => [...tokens.data]);
    const together = await decoder.generate(prompts, { maxNewTokens: 8 });
    expect(together.map((tokens) => [...tokens])).toEqual(expected);
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await decoder.generate([prompt], { maxNewTokens: 8 });
      expect([...alone!]).toEqual(expected[i]);
    }
    await decoder.release();
  });

  it("gives each token the probability that it has without a state, the same in any batch", async () => {
    const decoder = new Decoder(model, params, backend);
    const all = await decoder.complete(prompts, { maxNewTokens: 20, logprobs: 3 });
    for (const [row, { tokens, logprobs }] of all.entries()) {
      const [alone] = await decoder.complete([prompts[row]!], { maxNewTokens: 20, logprobs: 3 });
      expect(alone!.logprobs).toEqual(logprobs);
      const joined = [...prompts[row]!, ...tokens];
      const logits = (await uncached(model, params, joined)).data as Float32Array;
      tokens.forEach((token, i) => {
        const at = (prompts[row]!.length + i - 1) * vocabSize;
        const own = logits.subarray(at, at + vocabSize);
        const { logprob } = logprobsOf(own, token, 0);
        expect(Math.abs(logprobs![i]!.logprob - logprob)).toBeLessThan(1e-5);
      });
    }
    await decoder.release();
  });

  it("reads with a memory what a prompt adds, and continues it the same", async () => {
    const decoder = new Decoder(model, params, backend);
    const memory = new PromptMemory();
    const turn = async (prompt: readonly number[]): Promise<number[]> => {
      const ids = Int32Array.from(prompt);
      const [made] = await decoder.generate([ids], { maxNewTokens: 6, memory });
      const [fresh] = await decoder.generate([ids], { maxNewTokens: 6 });
      expect([...made!]).toEqual([...fresh!]);
      expect(memory.length).toBe(prompt.length + made!.length - 1);
      return [...made!];
    };
    const first = [3, 1, 4, 1, 5];
    const answer = await turn(first);
    const second = [...first, ...answer, 9, 2, 6];
    const next = await turn(second);
    // Another answer than the one that was made: goes back to the prompt. Then the same, then nothing shared.
    await turn([...second, (next[0]! + 1) % vocabSize, 8]);
    await turn(second);
    await turn([7, 7]);
    await decoder.release();
  });

  it("takes an adapter and a bank of them", async () => {
    const adapter = lora(model, { rank: 2 });
    const own = adapter.init(new Rng(3));
    for (const tensor of Object.values(own)) {
      const data = tensor.data as Float32Array;
      for (let i = 0; i < data.length; i++) data[i] = Math.cos(3 * i + data.length);
    }
    const options = { maxNewTokens: 8 };
    const plain = new Decoder(model, params, backend);
    const merged = new Decoder(model, { ...params, ...adapter.merge(params, own) }, backend);
    const [without, expected] = [
      await plain.generate(prompts, options),
      await merged.generate(prompts, options),
    ];
    expect(expected).not.toEqual(without);
    const adapted = new Decoder(model, params, backend, { adapter: { adapter, params: own } });
    expect(await adapted.generate(prompts, options)).toEqual(expected);
    const bank = loraBank(model, { slots: 1, maxRank: 2, targetModules: adapter.targets });
    bank.fill(1, adapter, own);
    const banked = new Decoder(model, params, backend, { bank });
    const mixed = await banked.generate(prompts, { ...options, slots: [1, 0, 1] });
    expect(mixed).toEqual([expected[0], without[1], expected[2]]);
    for (const decoder of [plain, merged, adapted, banked]) await decoder.release();
  });

  it("scores texts of several lengths as each alone", async () => {
    const scorer = new Scorer(model, params, backend);
    const texts = record.greedy.map(({ prompt, tokens }) => [...prompt.data, ...tokens.data]);
    const scores = await scorer.score(
      texts.map((ids) => ({ ids: Int32Array.from(ids), mask: new Uint8Array(ids.length).fill(1) })),
    );
    for (const [i, ids] of texts.entries()) {
      const logits = (await uncached(model, params, ids)).data as Float32Array;
      const expected = ids.slice(1).map((token, t) => {
        const own = logits.subarray(t * vocabSize, (t + 1) * vocabSize);
        return logprobsOf(own, token, 0).logprob;
      });
      allclose(Tensor.from([...scores[i]!.logprobs]), Tensor.from(expected), 1e-5);
    }
    await scorer.release();
  });
});

describe("RowStates", () => {
  const states = (...numbers: number[]): Tensor[] => [Tensor.from(numbers, [2, 1])];
  const held = (state: RowStates): unknown => [
    [...state.lengths],
    Array.from(state.tensors["h"]!.numbers()),
  ];

  it("takes what is committed, and goes back to the last prompt or to nothing", () => {
    const state = new RowStates({ h: [1] }, 2);
    expect(held(state)).toEqual([
      [0, 0],
      [0, 0],
    ]);
    state.commit(states(1, 2), [3, 5]);
    const copy = state.clone();
    state.commit(states(3, 4), [1, 1]);
    state.truncate(6);
    expect(held(state)).toEqual([
      [4, 6],
      [3, 4],
    ]);
    state.truncate(5);
    expect(held(state)).toEqual([
      [4, 5],
      [3, 2],
    ]);
    state.truncate(3);
    expect(held(state)).toEqual([
      [0, 0],
      [0, 0],
    ]);
    expect(held(copy)).toEqual([
      [3, 5],
      [1, 2],
    ]);
    copy.truncate(4);
    expect(held(copy)).toEqual([
      [3, 0],
      [1, 0],
    ]);
  });
});
