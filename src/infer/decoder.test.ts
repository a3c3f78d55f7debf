import { describe, expect, it } from "vitest";
import { fixture, type RawTensor } from "../../test/support/fixture.ts";
import { compile } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { nodeHost } from "../host/node.ts";
import type { Value } from "../ir/graph.ts";
import { loadModel } from "../models/folder.ts";
import { Gpt2 } from "../models/gpt2.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Decoder, type GenerateOptions } from "./decoder.ts";
import { PromptMemory } from "./memory.ts";
import { argMaxOf, logprobsOf } from "./sample.ts";

const backend = await nodeOrt({ threads: 1 });
const { files } = nodeHost();
const llama = await loadModel(
  files,
  new URL("../../test/parity/hf-llama", import.meta.url).pathname,
);

/** Greedy continuation by a whole forward pass per token. */
async function uncached(
  model: LanguageModel,
  params: TensorRecord,
  prompt: readonly number[],
  count: number,
): Promise<number[]> {
  const tokens = [...prompt];
  for (let i = 0; i < count; i++) {
    const ids = Tensor.from(tokens, [1, tokens.length], "int32");
    const forward = await compile<Tensor>(
      ((p: ValueRecord, x: Value) => model.forward(model.context(p), x).logits) as never,
      [params, ids],
      { backend },
    );
    const logits = await forward.run(params, ids);
    await forward.release();
    tokens.push(argMaxOf((logits.data as Float32Array).subarray(-model.sizes.vocabSize)));
  }
  return tokens.slice(prompt.length);
}

describe("Decoder", () => {
  const greedy = fixture<{ greedy: { prompt: RawTensor; tokens: RawTensor } }>(
    "llama-train",
  ).greedy;

  it.each([true, false])("continues as transformers does (prepack %s)", async (prepack) => {
    const decoder = new Decoder(llama.model, llama.params, backend, { prepack });
    const prompt = Int32Array.from(greedy.prompt.data);
    const [made] = await decoder.generate([prompt], { maxNewTokens: 8 });
    expect([...made!]).toEqual(greedy.tokens.data);
    await decoder.release();
  });

  it("continues a single prompt the same when it is computed in one row", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend, { batchExact: false });
    const exact = new Decoder(llama.model, llama.params, backend);
    const prompt = Int32Array.from(greedy.prompt.data);
    const options = { maxNewTokens: 8, logprobs: 0 };
    const [alone] = await decoder.complete([prompt], options);
    const [padded] = await exact.complete([prompt], options);
    expect([...alone!.tokens]).toEqual(greedy.tokens.data);
    alone!.logprobs!.forEach(({ logprob }, i) => {
      expect(Math.abs(logprob - padded!.logprobs![i]!.logprob)).toBeLessThan(1e-5);
    });
    const both = await decoder.generate([prompt, prompt.subarray(1)], { maxNewTokens: 8 });
    expect([...both[0]!]).toEqual(greedy.tokens.data);
    await decoder.release();
    await exact.release();
  });

  it("gives each row of an uneven batch what it gives that row alone, also past a full cache", async () => {
    const model = new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 4, maxPositions: 96 });
    const { params } = model.init(new Rng(5));
    for (const tensor of Object.values(params)) {
      if (tensor.shape.length < 2) continue;
      for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 20;
    }
    const decoder = new Decoder(model, params, backend);
    const prompts = [
      [1, 2, 3],
      [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
      [21],
    ];
    const rows = prompts.map((prompt) => Int32Array.from(prompt));
    const together = await decoder.generate(rows, { maxNewTokens: 50 });
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await decoder.generate([rows[i]!], { maxNewTokens: 50 });
      expect([...together[i]!]).toEqual([...alone!]);
      expect([...alone!]).toEqual(await uncached(model, params, prompt, 50));
    }
    await decoder.release();
  }, 60_000);

  it("stops at a stop token and leaves it out", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    const prompt = Int32Array.from(greedy.prompt.data);
    const stop = greedy.tokens.data[3]!;
    const [made] = await decoder.generate([prompt], { maxNewTokens: 8, stopIds: [stop] });
    expect([...made!]).toEqual(greedy.tokens.data.slice(0, 3));
    await decoder.release();
  });

  it("draws the same tokens from the same seed and others from another", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    const prompt = [Int32Array.from(greedy.prompt.data)];
    const draw = async (seed: number): Promise<number[]> => {
      const made = await decoder.generate(prompt, { maxNewTokens: 20, temperature: 2, seed });
      return [...made[0]!];
    };
    expect(await draw(1)).toEqual(await draw(1));
    expect(await draw(1)).not.toEqual(await draw(2));
    await decoder.release();
  });

  it("says why each row ended", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    const prompt = Int32Array.from(greedy.prompt.data);
    const reason = async (options: GenerateOptions): Promise<[string, number]> => {
      const [one] = await decoder.complete([prompt], options);
      return [one!.finishReason, one!.tokens.length];
    };
    const stop = greedy.tokens.data[3]!;
    const at = greedy.tokens.data.indexOf(stop);
    expect(await reason({ maxNewTokens: 4 })).toEqual(["length", 4]);
    // The model has 32 positions.
    expect(await reason({ maxNewTokens: 999 })).toEqual(["length", 32 - prompt.length]);
    expect(await reason({ stopIds: [stop] })).toEqual(["stop", at]);
    expect(await reason({ isEnd: (_, token) => token === stop })).toEqual(["stop", at + 1]);
    const abort = new AbortController();
    const onToken = (): void => abort.abort();
    expect(await reason({ onToken, signal: abort.signal })).toEqual(["aborted", 1]);
    expect(await reason({ signal: abort.signal })).toEqual(["aborted", 0]);
    await decoder.release();
  });

  it("gives each token's log-probability by the model itself, whatever the sampling", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    const prompt = Int32Array.from(greedy.prompt.data);
    const [one] = await decoder.complete([prompt], {
      maxNewTokens: 3,
      temperature: 3,
      repetitionPenalty: 2,
      seed: 4,
      logprobs: 2,
    });
    const ids = Tensor.from([...prompt], [1, prompt.length], "int32");
    const logits = await (
      await compile<Tensor>(
        ((p: ValueRecord, x: Value) =>
          llama.model.forward(llama.model.context(p), x).logits) as never,
        [llama.params, ids],
        { backend },
      )
    ).run(llama.params, ids);
    const last = (logits.data as Float32Array).subarray(-llama.model.sizes.vocabSize);
    const expected = logprobsOf(last, one!.tokens[0]!, 2);
    expect(one!.logprobs!.length).toBe(3);
    expect(one!.logprobs!.map(({ token }) => token)).toEqual([...one!.tokens]);
    expect(one!.logprobs![0]!.logprob).toBeCloseTo(expected.logprob, 4);
    expect(one!.logprobs![0]!.top.map(({ token }) => token)).toEqual(
      expected.top.map(({ token }) => token),
    );
    expect((await decoder.complete([prompt]))[0]!.logprobs).toBeUndefined();
    await decoder.release();
  });

  it("does not make a token again under a strong penalty", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    const prompt = Int32Array.from(greedy.prompt.data);
    const [free] = await decoder.generate([prompt], { maxNewTokens: 16 });
    expect(new Set(free).size).toBeLessThan(free!.length);
    const [made] = await decoder.generate([prompt], { maxNewTokens: 16, repetitionPenalty: 100 });
    expect(new Set([...prompt, ...made!]).size).toBe(new Set(prompt).size + made!.length);
    await decoder.release();
  });

  it("reads with a memory only what a prompt adds, and continues it the same", async () => {
    const model = new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 4, maxPositions: 128 });
    const { params } = model.init(new Rng(5));
    for (const tensor of Object.values(params)) {
      if (tensor.shape.length < 2) continue;
      for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 20;
    }
    const decoder = new Decoder(model, params, backend);
    const memory = new PromptMemory();
    const count = { maxNewTokens: 12 };
    const turn = async (prompt: readonly number[]): Promise<number[]> => {
      const ids = Int32Array.from(prompt);
      const [made] = await decoder.generate([ids], { ...count, memory });
      const [fresh] = await decoder.generate([ids], count);
      expect([...made!]).toEqual([...fresh!]);
      // The last token was made but not read.
      expect(memory.length).toBe(prompt.length + made!.length - 1);
      return [...made!];
    };
    const first = [3, 1, 4, 1, 5];
    const answer = await turn(first);
    const second = [...first, ...answer, 9, 2, 6];
    const next = await turn(second);
    // As another answer to the same: only the last token is read.
    await turn(second);
    // Shares the first turn alone, then nothing; and more than the cache has room for.
    await turn([...first, 30, 29]);
    await turn([7, 7]);
    await turn([...second, ...next, ...Array.from({ length: 60 }, (_, i) => i % 31)]);
    const other = new Decoder(model, params, backend);
    await expect(other.generate([Int32Array.of(1)], { memory })).rejects.toThrow(
      "memory: belongs to another decoder — clear it first.",
    );
    memory.clear();
    await other.generate([Int32Array.of(1)], { memory });
    await expect(other.generate([Int32Array.of(1), Int32Array.of(2)], { memory })).rejects.toThrow(
      "generate: a memory is for one prompt, got 2.",
    );
    await decoder.release();
    await other.release();
  });

  it("says which prompt is empty or too long", async () => {
    const decoder = new Decoder(llama.model, llama.params, backend);
    await expect(decoder.generate([new Int32Array(0)])).rejects.toThrow(
      "generate: prompt 0 has no tokens.",
    );
    await expect(decoder.generate([new Int32Array(32)])).rejects.toThrow(
      "generate: prompt 0 has 32 tokens, the model takes 31 and the one to come.",
    );
    await decoder.release();
    await expect(decoder.generate([new Int32Array(1)])).rejects.toThrow(
      "generate: the decoder was released.",
    );
  });
});
