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
import { Decoder } from "./decoder.ts";
import { argMaxOf } from "./sample.ts";

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
