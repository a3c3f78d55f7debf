import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { backend, tiny, tinyParams } from "../../../test/support/contract.ts";
import { tinyConfigs } from "../../../test/support/tiny-encoder.ts";
import { adaptedContext } from "../../adapters/adapted.ts";
import { type LoadedAdapter, newNumbers, weightsScene } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeHost } from "../../host/node.ts";
import { Decoder } from "../../infer/decoder.ts";
import { PromptMemory } from "../../infer/memory.ts";
import { Scorer } from "../../infer/score.ts";
import { ServeEngine } from "../../infer/serve/engine.ts";
import { mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { concat, expand, reshape, slice } from "../../ir/layout.ts";
import { families } from "../../models/families.ts";
import { Gemma3 } from "../../models/gemma3.ts";
import { Llama } from "../../models/llama.ts";
import type { LanguageModel } from "../../models/model.ts";
import { Embedding } from "../../nn/embedding.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { traineeOf } from "../../train/trainee.ts";
import { promptLookup } from "../decode/prompt-lookup.ts";
import { bindPrefixTuning, prefixTuningKind } from "./prefix-tuning.ts";
import { bindPromptTuning, promptTuningKind, repeatedTokens } from "./prompt-tuning.ts";

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-prompt-tuning-"));
afterAll(() => rm(scratch, { recursive: true }));
const ids = Tensor.from([5, 9, 7, 8, 6, 10, 1, 2, 3, 4], [2, 5], "int32");
const kinds = [prefixTuningKind, promptTuningKind];

const gemma = new Gemma3({
  ...{ vocabSize: 20, dModel: 16, dFeedForward: 24, nLayers: 3, nHeads: 2, nKvHeads: 1 },
  ...{ headDim: 8, maxPositions: 32, slidingWindow: 4, slidingLayers: [true, false, true] },
  initializerRange: 0.2,
});
const mistral = new Llama({
  ...{ family: "mistral", vocabSize: 20, dModel: 16, dFeedForward: 24, nLayers: 2, nHeads: 4 },
  ...{ nKvHeads: 2, maxPositions: 32, slidingWindow: 3, initializerRange: 0.2 },
} as ConstructorParameters<typeof Llama>[0]);

function opened(model: LanguageModel, tokens: number, kind = bindPromptTuning): LoadedAdapter {
  const adapter = kind(model, { tokens });
  return { adapter, ...newNumbers(adapter, new Rng(4)) };
}

function logits(
  model: LanguageModel,
  params: TensorRecord,
  { adapter, params: own }: LoadedAdapter,
  tokens: Tensor = ids,
): Promise<Tensor> {
  return evaluate<Tensor>(
    backend,
    (p: ValueRecord, q: ValueRecord, x: Value) =>
      model.forward(model.context(p, {}, adaptedContext(adapter, model, q)), x).logits,
    params,
    own,
    tokens,
  );
}

describe("prompt tuning", () => {
  it.each([
    ["llama", tiny],
    ["gemma3, whose embeddings have a factor", gemma],
    ["mistral, whose window is shorter than the prompt", mistral],
  ] as const)("is the model on embeddings joined before the words' (%s)", async (_, model) => {
    const { params } = model.init(new Rng(1));
    const own = opened(model, 4);
    const embedding = [...model.modules()].find(
      ([, module]) => module instanceof Embedding && module.weight === model.embedding,
    )![1];
    const scale = (model as LanguageModel).embeddingScale ?? 1;
    const joined = await evaluate<Tensor>(
      backend,
      (p: ValueRecord, virtual: Value, x: Value) => {
        const site: SiteFn = (_input, words) => {
          const [batch, length, width] = words.shape as [number, number, number];
          const before = expand(reshape(mul(virtual, 1 / scale), [1, 4, width]), [batch, 4, width]);
          return concat([before, slice(words, 1, 4, length)], 1);
        };
        const padded = concat([Tensor.zeros([2, 4], "int32"), x], 1);
        const context = model.context(
          p,
          {},
          { sites: new Map<Module, SiteFn>([[embedding, site]]) },
        );
        const all = model.forward(context, padded).logits;
        const [rows, vocab] = all.shape as [number, number];
        return slice(reshape(all, [2, rows / 2, vocab]), 1, 4, rows / 2);
      },
      params,
      own.params["prompt_embeddings"]!,
      ids,
    );
    const beside = await logits(model, params, own);
    allclose(beside, joined.reshape(beside.shape), 1e-5);
  });

  it("begins with rows of the vocabulary, or with given tokens repeated", async () => {
    expect([...repeatedTokens([7, 3], 5)]).toEqual([7, 3, 7, 3, 7]);
    expect([...repeatedTokens([7, 3, 2], 2)]).toEqual([7, 3]);
    const params = gemma.init(new Rng(1)).params;
    const table = params["model.embed_tokens.weight"]!.numbers();
    const scene = weightsScene(gemma, params, new Rng(2));
    const row = (id: number): number[] => Array.from({ length: 16 }, (_, j) => table[id * 16 + j]!);
    const given = bindPromptTuning(gemma, { tokens: 3, start: "tokens", startTokens: [7, 3] });
    const first = (await given.prepare!(scene)).params["prompt_embeddings"]!.numbers();
    // Gemma's rows with its factor, √16.
    [7, 3, 7].forEach((id, i) => {
      row(id).forEach((x, j) => {
        expect(first[i * 16 + j]).toBeCloseTo(4 * x, 5);
      });
    });
    const drawn = bindPromptTuning(gemma, { tokens: 3, start: "vocabulary" });
    const rows = (await drawn.prepare!(scene)).params["prompt_embeddings"]!.numbers();
    for (let i = 0; i < 3; i++) {
      const own = Array.from({ length: 16 }, (_, j) => rows[i * 16 + j]! / 4);
      const near = Array.from({ length: 20 }, (_, id) =>
        Math.max(...row(id).map((x, j) => Math.abs(x - own[j]!))),
      );
      expect(Math.min(...near)).toBeLessThan(1e-6);
    }
  });

  it("notes in its folder how it began", async () => {
    const adapter = bindPromptTuning(tiny, {
      ...{ tokens: 2, start: "tokens", startTokens: [1] },
      ...{ startText: "good or bad", tokenizer: "gpt2" },
    });
    const { params } = newNumbers(adapter, new Rng(1));
    await saveAdapter(files, join(scratch, "text"), adapter, params);
    const again = await loadAdapter(files, join(scratch, "text"), tiny, kinds);
    expect(again.adapter.config()).toEqual(adapter.config());
    expect(again.adapter.config()).toMatchObject({
      prompt_tuning_init: "TEXT",
      prompt_tuning_init_text: "good or bad",
      tokenizer_name_or_path: "gpt2",
    });
  });

  it("refuses what does not fit, by a sentence", () => {
    expect(() => bindPromptTuning(tiny, { tokens: 23 })).toThrow(
      "prompt-tuning: 23 virtual tokens leave no room in the model's 24 positions — take at most 22.",
    );
    expect(() => bindPromptTuning(tiny, { start: "tokens" })).toThrow(
      `prompt-tuning: start "tokens" needs startTokens, ids of a text.`,
    );
    expect(() => bindPromptTuning(tiny, { startTokens: [1] })).toThrow(
      `prompt-tuning: startTokens are for start "tokens", got start "random".`,
    );
    expect(() => bindPromptTuning(tiny, { tokens: 2, start: "tokens", startTokens: [20] })).toThrow(
      "prompt-tuning: startTokens must be ids below 20, at least one, got 20.",
    );
    const bert = families["bert"]!(tinyConfigs["bert"]!);
    expect(() => bindPromptTuning(bert)).toThrow(
      "prompt-tuning: a bert encoder model does not read behind virtual tokens — take a causal language model, or another adapter.",
    );
    const adapter = bindPromptTuning(tiny, { tokens: 2 });
    expect(() => adapter.merge({}, {})).toThrow(
      "prompt-tuning: cannot be merged — it stands before every sequence and changes no weight; use it beside the model.",
    );
  });

  it("refuses a folder of another model, or with other tensors", async () => {
    const { adapter, params } = opened(gemma, 2);
    await saveAdapter(files, join(scratch, "gemma"), adapter, params);
    await expect(loadAdapter(files, join(scratch, "gemma"), tiny, kinds)).rejects.toThrow(
      "num_layers is 3, the model has 2 — was the adapter made for another model?",
    );
    const own = bindPromptTuning(tiny, { tokens: 2 });
    const wrong = Tensor.zeros([3, 16], "float32");
    expect(() => own.file!.unpack({ prompt_embeddings: wrong }, "x")).toThrow(
      `x: "prompt_embeddings" must have shape (2, 16), got (3, 16).`,
    );
    expect(() => own.file!.unpack({ prompt_embeddings: wrong, other: wrong }, "x")).toThrow(
      `x: must hold "prompt_embeddings" alone, and has "other" too.`,
    );
    expect(() => own.file!.unpack({}, "x")).toThrow(
      `x: must hold "prompt_embeddings" alone, and lacks it.`,
    );
  });
});

/** The likeliest tokens one after another, each by a pass over the whole text. */
async function uncached(
  model: LanguageModel,
  params: TensorRecord,
  own: LoadedAdapter,
  prompt: readonly number[],
  count: number,
): Promise<number[]> {
  const text = [...prompt];
  for (let i = 0; i < count; i++) {
    const all = await logits(model, params, own, Tensor.from(text, [1, text.length], "int32"));
    const last = Array.from(all.numbers()).slice(-model.sizes.vocabSize);
    text.push(last.indexOf(Math.max(...last)));
  }
  return text.slice(prompt.length);
}

describe.each([
  ["prompt tuning of llama", tiny, bindPromptTuning],
  ["prefix tuning of llama", tiny, bindPrefixTuning],
  ["prompt tuning of mistral", mistral, bindPromptTuning],
  ["prefix tuning of mistral", mistral, bindPrefixTuning],
  ["prompt tuning of gemma3", gemma, bindPromptTuning],
  ["prefix tuning of gemma3", gemma, bindPrefixTuning],
] as const)("decoding with %s", async (_, model: LanguageModel, bind) => {
  const { params } = model.init(new Rng(1));
  const own = opened(model, 5, bind as typeof bindPromptTuning);
  const prompts = [
    [3, 1, 4, 1, 5, 9, 2],
    [6, 5],
  ];
  const expected = await Promise.all(prompts.map((p) => uncached(model, params, own, p, 8)));

  it("gives with a cache what it gives without, in a batch, with a memory and with drafts", async () => {
    const decoder = new Decoder(model, params, backend, { adapter: own });
    try {
      const ask = { maxNewTokens: 8, temperature: 0 };
      const asked = prompts.map((p) => Int32Array.from(p));
      const made = await decoder.generate(asked, ask);
      expect(made.map((tokens) => [...tokens])).toEqual(expected);
      const memory = new PromptMemory();
      for (const length of [3, 7]) {
        const [tokens] = await decoder.generate([asked[0]!.subarray(0, length)], {
          ...ask,
          memory,
        });
        if (length === 7) expect([...tokens!]).toEqual(expected[0]);
      }
      const drafter = promptLookup.roles.decoder!.make({ vocabSize: 20, rng: new Rng(1) }, {
        maxNgram: 2,
        minNgram: 1,
      } as never);
      const drafted = await decoder.generate(asked, { ...ask, drafter });
      expect(drafted.map((tokens) => [...tokens])).toEqual(expected);
    } finally {
      await decoder.release();
    }
  });
});

describe("positions that virtual tokens take", () => {
  const own = opened(tiny, 5);

  it("are not there for a prompt and an answer", async () => {
    const decoder = new Decoder(tiny, tinyParams, backend, { adapter: own });
    try {
      await expect(decoder.generate([new Int32Array(19)])).rejects.toThrow(
        "generate: prompt 0 has 19 tokens, the model takes 18 and the one to come behind 5 virtual ones of the adapter.",
      );
      const [made] = await decoder.complete([new Int32Array(16)], { temperature: 0 });
      expect([made!.tokens.length, made!.finishReason]).toEqual([3, "length"]);
    } finally {
      await decoder.release();
    }
  });

  it("are not there for scores and training", async () => {
    const scorer = new Scorer(tiny, tinyParams, backend, own);
    const example = { ids: new Int32Array(24).fill(3), mask: new Uint8Array(24).fill(1) };
    await expect(scorer.score([example], { window: 20 })).rejects.toThrow(
      "score: window 20 is beyond the model's 19 positions.",
    );
    const [scores] = await scorer.score([example]);
    await scorer.release();
    expect(scores!.logprobs.length).toBe(23);
    expect(traineeOf(tiny, tinyParams, own).maxLength).toBe(19);
    await expect(logits(tiny, tinyParams, own, Tensor.zeros([1, 20], "int32"))).rejects.toThrow(
      "Prompt tuning: 20 tokens do not fit behind 5 virtual ones in the model's 24 positions — take at most 19.",
    );
  });

  it("are not in the pages of a server", async () => {
    await expect(
      ServeEngine.create(tiny, tinyParams, backend, nodeHost().clock, { adapter: own }),
    ).rejects.toThrow(
      "serve: Prompt tuning puts 5 virtual tokens before every sequence, and pages hold none of them — use a decoder.",
    );
  });
});
