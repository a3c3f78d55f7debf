/** Passes over drafts make the tokens of plain decoding, whatever is drafted. */
import { describe, expect, it } from "vitest";
import { fixture, parityBackend, type RawTensor } from "../../test/support/fixture.ts";
import { ruleWeights } from "../../test/support/rule-weights.ts";
import { loraBank } from "../adapters/bank.ts";
import { lora } from "../adapters/lora.ts";
import { OptionError, StateError } from "../errors.ts";
import { families } from "../models/families.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { mambaFromConfig } from "../models/mamba.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { mapTree } from "../tensor/tree.ts";
import type { KvCache } from "./cache.ts";
import { Decoder, type GenerateOptions } from "./decoder.ts";
import type { Drafter, DraftTree, VerifiedPass } from "./drafter.ts";
import { PromptMemory } from "./memory.ts";
import { closeMargin, PassCount } from "./speculative.ts";
import type { TokenState } from "./state.ts";
import { fitDraft, treeInputs } from "./tree-pass.ts";

const backend = await parityBackend();

/** Proposes what a function of the text says. */
function drafterOf(propose: (text: readonly number[]) => DraftTree): Drafter {
  let text: number[] = [];
  return {
    bytes: 0,
    begin: (prompt) => {
      text = [...prompt];
    },
    propose: () => propose(text),
    learn: ({ tokens }) => {
      text.push(...tokens);
    },
  };
}

const chain = (tokens: readonly number[]): DraftTree => ({
  tokens: Int32Array.from(tokens),
  parents: Int32Array.from(tokens, (_, i) => i - 1),
});

/** The next tokens of a known text: all right. */
const oracle = (whole: readonly number[], depth: number): Drafter =>
  drafterOf((text) => chain(whole.slice(text.length, text.length + depth)));

/** A tree in which every child of every node on the way is another token than the right one. */
const liar = (whole: readonly number[], vocabSize: number): Drafter =>
  drafterOf((text) => {
    const right = whole[text.length] ?? 0;
    return {
      tokens: Int32Array.from([1, 2, 3, 4], (shift) => (right + shift) % vocabSize),
      parents: Int32Array.from([-1, -1, 0, 2]),
    };
  });

/** Random trees, in which the right continuation stands at random places. */
function noisy(whole: readonly number[], vocabSize: number): Drafter {
  const rng = new Rng(17);
  return drafterOf((text) => {
    const size = 1 + rng.integer(11);
    const depths: number[] = [];
    const parents = Int32Array.from({ length: size }, (_, i) => rng.integer(i + 1) - 1);
    const tokens = Int32Array.from(parents, (parent) => {
      const depth = parent < 0 ? 0 : depths[parent]! + 1;
      depths.push(depth);
      const right = whole[text.length + depth];
      return right !== undefined && rng.uniform() < 0.6 ? right : rng.integer(vocabSize);
    });
    return { tokens, parents };
  });
}

const nothing = drafterOf(() => chain([]));

interface Case {
  readonly model: LanguageModel;
  readonly params: TensorRecord;
  readonly prompts: readonly Int32Array[];
}

interface Greedy {
  readonly config: Readonly<Record<string, unknown>>;
  readonly normMean: number;
  readonly greedy: { readonly prompts: readonly RawTensor[] };
}

/** Weights large enough that the next tokens differ. */
function gpt2(maxPositions = 64): Case {
  const model = new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 4, maxPositions });
  const { params } = model.init(new Rng(5));
  for (const tensor of Object.values(params)) {
    if (tensor.shape.length < 2) continue;
    for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 20;
  }
  return { model, params, prompts: [Int32Array.of(1, 2, 3), Int32Array.of(7)] };
}

function recorded(name: string): Case {
  const record = fixture<Greedy>(`decoders/${name}`);
  const make = families[record.config["model_type"] as string]!;
  const model = make(record.config) as LanguageModel;
  const params = ruleWeights(model.init(new Rng(0)).params, record.normMean, (path) =>
    path.replace(/^embed_out\./, "lm_head."),
  );
  return { model, params, prompts: record.greedy.prompts.map(({ data }) => Int32Array.from(data)) };
}

const cases: readonly (readonly [string, () => Case])[] = [
  ["gpt2", gpt2],
  // Windows of 3 to 5 in mistral, gemma3 and phi3; the longropes turn otherwise beyond 8 tokens.
  ...["qwen2", "qwen3", "mistral", "gemma3", "phi3", "phi3-long", "gpt-neox", "llama-longrope"].map(
    (name): [string, () => Case] => [name, () => recorded(name)],
  ),
];

/** What a drafted call made, and what it cost. */
async function drafted(
  decoder: Decoder,
  prompt: Int32Array,
  drafter: Drafter,
  options: GenerateOptions,
): Promise<{ readonly tokens: number[]; readonly count: PassCount }> {
  const count = new PassCount();
  const onPass = (_: number, pass: VerifiedPass): void => count.add(pass);
  const [made] = await decoder.complete([prompt], { ...options, drafter, onPass });
  return { tokens: [...made!.tokens], count };
}

describe.each(cases)("passes over drafts of %s", async (_, make) => {
  const { model, params, prompts } = make();
  const { vocabSize } = model.sizes;
  const settings: readonly GenerateOptions[] = [
    { maxNewTokens: 24 },
    { maxNewTokens: 24, temperature: 0.8, seed: 4 },
    { maxNewTokens: 24, temperature: 1.3, topP: 0.9, seed: 5 },
    { maxNewTokens: 24, repetitionPenalty: 1.3, presencePenalty: 0.5, frequencyPenalty: 0.2 },
  ];

  it.each(settings)("make the tokens of plain decoding with %o", async (options) => {
    const decoder = new Decoder(model, params, backend, { prepack: false });
    for (const prompt of prompts) {
      const [plain] = await decoder.generate([prompt], options);
      const expected = [...plain!];
      const whole = [...prompt, ...expected];
      const right = await drafted(decoder, prompt, oracle(whole, 4), options);
      const wrong = await drafted(decoder, prompt, liar(whole, vocabSize), options);
      const random = await drafted(decoder, prompt, noisy(whole, vocabSize), options);
      const none = await drafted(decoder, prompt, nothing, options);
      for (const { tokens, count } of [right, wrong, random, none]) {
        expect(tokens).toEqual(expected);
        expect(count.tokens).toBe(expected.length);
        expect(count.close).toBe(0);
      }
      expect(wrong.count).toMatchObject({ passes: expected.length, accepted: 0 });
      expect(none.count).toMatchObject({ passes: expected.length, drafted: 0 });
      expect(right.count.passes).toBeLessThanOrEqual(
        Math.ceil(expected.length / 5) + (model.cacheLimit === undefined ? 0 : 4),
      );
      expect(random.count.passes).toBeLessThan(expected.length);
    }
    await decoder.release();
  });
});

describe("a drafted call", async () => {
  const { model, params, prompts } = gpt2();
  const decoder = new Decoder(model, params, backend, { prepack: false });
  const prompt = prompts[0]!;
  const [plain] = await decoder.generate([prompt], { maxNewTokens: 20 });
  const whole = [...prompt, ...plain!];

  it("gives the log-probabilities, callbacks and reasons of a plain one", async () => {
    const told = async (options: GenerateOptions): Promise<unknown[]> => {
      const tokens: number[] = [];
      const onToken = (row: number, token: number): void => void tokens.push(row, token);
      const [made] = await decoder.complete([prompt], { logprobs: 2, ...options, onToken });
      const logprobs = made!.logprobs!.map(({ token, logprob, top }) => [
        token,
        logprob.toFixed(4),
        top.map((one) => one.token),
      ]);
      return [tokens, [...made!.tokens], made!.finishReason, logprobs];
    };
    const stop = plain!.at(-1)!;
    const at = plain!.indexOf(stop);
    const isEnd = (_: number, token: number): boolean => token === stop;
    for (const options of [
      { maxNewTokens: 7 },
      { maxNewTokens: 1 },
      { maxNewTokens: 999 },
      { stopIds: [stop] },
      { isEnd },
    ] satisfies GenerateOptions[]) {
      const expected = await told(options);
      for (const drafter of [oracle(whole, 5), noisy(whole, 31), nothing]) {
        expect(await told({ ...options, drafter })).toEqual(expected);
      }
    }
    const [made] = await decoder.complete([prompt], { stopIds: [stop], drafter: oracle(whole, 5) });
    expect([made!.tokens.length, made!.finishReason]).toEqual([at, "stop"]);
  });

  it("ends at once when it is aborted, between the tokens of a pass too", async () => {
    const abort = new AbortController();
    let seen = 0;
    const onToken = (): void => {
      if (++seen === 2) abort.abort();
    };
    const options = { onToken, signal: abort.signal, drafter: oracle(whole, 8) };
    const [made] = await decoder.complete([prompt], options);
    expect([made!.tokens.length, made!.finishReason]).toEqual([2, "aborted"]);
    const [late] = await decoder.complete([prompt], { signal: abort.signal, drafter: nothing });
    expect([late!.tokens.length, late!.finishReason]).toEqual([0, "aborted"]);
  });

  it("continues several prompts one after another, each with the stream of its row", async () => {
    const rows = [prompt, prompt, prompts[1]!];
    const options = { maxNewTokens: 12, temperature: 1.5, seed: 9 };
    const expected = (await decoder.generate(rows, options)).map((tokens) => [...tokens]);
    expect(expected[0]).not.toEqual(expected[1]);
    const drafter = noisy([...prompt, ...expected[0]!], 31);
    const made = await decoder.generate(rows, { ...options, drafter });
    expect(made.map((tokens) => [...tokens])).toEqual(expected);
  });

  it("leaves the keys and values that plain decoding leaves", async () => {
    class Seen extends PromptMemory {
      state: TokenState | undefined;
      override open(...given: Parameters<PromptMemory["open"]>): TokenState {
        this.state = super.open(...given);
        return this.state;
      }
    }
    const cacheOf = async (options: GenerateOptions): Promise<KvCache> => {
      const memory = new Seen();
      await decoder.generate([prompt], { ...options, memory });
      return memory.state as KvCache;
    };
    const expected = await cacheOf({ maxNewTokens: 20 });
    const [length, width] = [expected.lengths[0]!, model.sizes.headDim];
    expect(length).toBe(whole.length - 1);
    for (const drafter of [oracle(whole, 5), noisy(whole, 31), liar(whole, 31)]) {
      const cache = await cacheOf({ maxNewTokens: 20, drafter });
      expect([...cache.lengths]).toEqual([length]);
      expect([...cache.mask.data].filter((bias) => bias === 0).length).toBe(length);
      cache.layers.forEach(({ keys, values }, layer) => {
        for (const [ours, theirs] of [
          [keys, expected.layers[layer]!.keys],
          [values, expected.layers[layer]!.values],
        ] as const) {
          for (let head = 0; head < model.sizes.nKvHeads; head++) {
            for (let i = 0; i < length * width; i++) {
              const a = ours.data[head * cache.capacity * width + i] as number;
              const b = theirs.data[head * expected.capacity * width + i] as number;
              expect(Math.abs(a - b)).toBeLessThan(1e-4 * Math.max(1, Math.abs(b)));
            }
          }
        }
      });
    }
  });

  it("goes on from a memory of drafted calls, and refuses one of plain calls", async () => {
    const memory = new PromptMemory();
    const drafter = oracle(whole, 4);
    await decoder.generate([prompt], { maxNewTokens: 10, memory, drafter });
    expect(memory.length).toBe(prompt.length + 9);
    const longer = Int32Array.from([...whole.slice(0, prompt.length + 10), 5]);
    const [plainly] = await decoder.generate([longer], { maxNewTokens: 6 });
    const [made] = await decoder.generate([longer], { maxNewTokens: 6, memory, drafter });
    expect([...made!]).toEqual([...plainly!]);
    await expect(decoder.generate([prompt], { memory })).rejects.toThrow(StateError);
  });

  it("decodes with the slots of a bank as it does plainly", async () => {
    const bank = loraBank(model, { slots: 2, maxRank: 2 });
    const adapter = lora(model, { rank: 2, targetModules: [...model.defaultTargets] });
    const rng = new Rng(4);
    const tuned = mapTree(adapter.init(new Rng(2)), (tensor) =>
      Tensor.from(rng.normals(tensor.size, 0.3), tensor.shape),
    ) as TensorRecord;
    bank.fill(1, adapter, tuned);
    const banked = new Decoder(model, params, backend, { prepack: false, bank });
    const options = { maxNewTokens: 12, slots: [1, 0] };
    const rows = [prompt, prompt];
    const expected = (await banked.generate(rows, options)).map((tokens) => [...tokens]);
    expect(expected[0]).not.toEqual(expected[1]);
    const drafter = noisy(whole, 31);
    const made = await banked.generate(rows, { ...options, drafter });
    expect(made.map((tokens) => [...tokens])).toEqual(expected);
    await banked.release();
  });

  it("refuses a drafter that another call uses, and drafts that are no trees", async () => {
    const options = { maxNewTokens: 4 };
    const shared = oracle(whole, 4);
    const first = decoder.generate([prompt], { ...options, drafter: shared });
    await expect(decoder.generate([prompt], { ...options, drafter: shared })).rejects.toThrow(
      "generate: the drafter is in another call — give each call its own.",
    );
    await first;
    const wrong = (tokens: number[], parents: number[]): Promise<unknown> => {
      const tree = { tokens: Int32Array.from(tokens), parents: Int32Array.from(parents) };
      return decoder.generate([prompt], { ...options, drafter: drafterOf(() => tree) });
    };
    await expect(wrong([1, 2], [1, -1])).rejects.toThrow(
      "drafter: node 0 has parent 1 — a parent must stand before its children.",
    );
    await expect(wrong([31], [-1])).rejects.toThrow(
      "drafter: token 31 is not among the model's 31.",
    );
    await expect(wrong([1, 2], [-1])).rejects.toThrow(
      "drafter: a tree needs a parent for each token, got 1 for 2.",
    );
  });

  it("refuses a model that carries a state", async () => {
    const mamba = mambaFromConfig({
      vocab_size: 31,
      hidden_size: 16,
      num_hidden_layers: 1,
      state_size: 4,
    });
    const recurrent = new Decoder(mamba, mamba.init(new Rng(1)).params, backend);
    const refused = recurrent.generate([prompt], { drafter: nothing });
    await expect(refused).rejects.toThrow(OptionError);
    await expect(refused).rejects.toThrow(
      "generate: a mamba model carries one state and cannot check several continuations at once — leave the drafter out.",
    );
    await recurrent.release();
  });

  it("counts choices within rounding of another one", async () => {
    // Two tokens with one embedding have equal logits: every choice of one of them is close.
    const twins: Record<string, Tensor> = { ...params };
    const wte = params["transformer.wte.weight"]!;
    const data = Float32Array.from(wte.data as Float32Array);
    for (let id = 1; id < 31; id += 2) data.copyWithin(id * 16, (id - 1) * 16, id * 16);
    twins["transformer.wte.weight"] = new Tensor("float32", wte.shape, data);
    const twin = new Decoder(model, twins, backend, { prepack: false });
    const { count } = await drafted(twin, prompt, nothing, { maxNewTokens: 6 });
    expect(count.close).toBe(6);
    expect(closeMargin).toBe(1e-4);
    await twin.release();
  });
});

describe("a tree", () => {
  it("goes into the model with positions of its depth and sight of its ancestors", () => {
    //      9 ── 4 ── 6
    //       └── 5 ── 7
    const draft = {
      tokens: Int32Array.of(4, 5, 6, 7),
      parents: Int32Array.of(-1, -1, 0, 1),
    };
    const [ids, positions, mask] = treeInputs(9, draft, 10, 6);
    expect([...ids.data]).toEqual([9, 4, 5, 6, 7, 9]);
    expect([...positions.data]).toEqual([10, 11, 11, 12, 12, 10]);
    const sight = Array.from({ length: 6 }, (_, i) =>
      [...mask.data.subarray(6 * i, 6 * i + 6)].join(""),
    );
    expect(sight).toEqual(["100000", "110000", "101000", "110100", "101010", "000001"]);
  });

  it("is cut to a depth and a size that leave no node without its parent", () => {
    const draft = {
      tokens: Int32Array.of(4, 5, 6, 7, 8),
      parents: Int32Array.of(-1, 0, 1, -1, 3),
    };
    const cut = fitDraft(draft, 9, 2, 99);
    expect([[...cut.tokens], [...cut.parents]]).toEqual([
      [4, 5, 7, 8],
      [-1, 0, -1, 2],
    ]);
    const small = fitDraft(draft, 9, 1, 1);
    expect([[...small.tokens], [...small.parents]]).toEqual([[4], [-1]]);
    expect(fitDraft(draft, 9, 3, 5)).toBe(draft);
  });

  it.each(["qwen3", "gemma3", "gpt-neox"])(
    "lets no branch of %s see another: changing one leaves all other logits",
    async (name) => {
      const { model, params, prompts } = recorded(name);
      const { vocabSize } = model.sizes;
      const decoder = new Decoder(model, params, backend, { prepack: false });
      const parents = Int32Array.of(-1, -1, 0, 0, 1, 2, 4);
      const below = [1, 4, 6];
      const logitsOf = async (shift: number): Promise<Float32Array> => {
        const tokens = Int32Array.from(
          parents,
          (_, i) => (3 + 2 * i + (below.includes(i) ? shift : 0)) % vocabSize,
        );
        let seen: Float32Array | undefined;
        await decoder.generate([prompts[0]!], {
          maxNewTokens: 5,
          drafter: drafterOf(() => ({ tokens, parents })),
          onPass: (_, { logits }) => {
            seen ??= Float32Array.from(logits);
          },
        });
        return seen!;
      };
      const [once, changed] = [await logitsOf(0), await logitsOf(1)];
      expect(once.length).toBe(8 * vocabSize);
      for (let node = -1; node < 7; node++) {
        const of = (logits: Float32Array): number[] => [
          ...logits.subarray((node + 1) * vocabSize, (node + 2) * vocabSize),
        ];
        if (below.includes(node)) expect(of(changed)).not.toEqual(of(once));
        else expect(of(changed)).toEqual(of(once));
      }
      await decoder.release();
    },
  );
});
