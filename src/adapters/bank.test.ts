import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import type { Backend } from "../backend/backend.ts";
import { compile, spec } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { Decoder } from "../infer/decoder.ts";
import { PromptMemory } from "../infer/memory.ts";
import type { Value } from "../ir/graph.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Llama } from "../models/llama.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { loraBank } from "./bank.ts";
import { type LoraAdapter, lora } from "./lora.ts";

const ort = await nodeOrt({ threads: 1 });

/** Counts what is compiled. */
let loads = 0;
const backend: Backend = {
  name: ort.name,
  load: (program, options) => {
    loads++;
    return ort.load(program, options);
  },
};

const model = new Llama({
  vocabSize: 61,
  dModel: 32,
  dFeedForward: 48,
  nLayers: 2,
  nHeads: 4,
  nKvHeads: 2,
  maxPositions: 64,
});

/** Wide weights: greedy choices then have clear margins. */
function widened(of: LanguageModel): TensorRecord {
  const { params } = of.init(new Rng(5));
  for (const tensor of Object.values(params)) {
    if (tensor.shape.length < 2) continue;
    for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 12;
  }
  return params;
}

const params = widened(model);

interface Filled {
  readonly adapter: LoraAdapter;
  readonly params: TensorRecord;
}

/** An adapter whose two factors are random. */
function random(of: LanguageModel, seed: number, options: Parameters<typeof lora>[1]): Filled {
  const adapter = lora(of, options);
  const own = adapter.init(new Rng(seed));
  for (const [name, { shape, size }] of Object.entries(own)) {
    own[name] = new Tensor("float32", shape, new Rng(seed).fold(name).normals(size, 0.3));
  }
  return { adapter, params: own };
}

const targetModules = ["q_proj", "v_proj", "down_proj"];
const adapters = [
  random(model, 1, { rank: 2, targetModules: ["q_proj", "v_proj"] }),
  random(model, 2, { rank: 5, alpha: 3, targetModules, rankPattern: { down_proj: 3 } }),
  random(model, 3, { rank: 8, targetModules: ["down_proj"], rankStabilized: true }),
] as const;

const bank = loraBank(model, { slots: 4, maxRank: 8, targetModules });
const prompts = [
  [1, 2, 3],
  [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
  [21],
  [22, 23, 24, 25],
].map((tokens) => Int32Array.from(tokens));
const settings = { maxNewTokens: 12, temperature: 0, logprobs: 8 };

describe("a batch of different adapters", () => {
  const mixed = new Decoder(model, params, backend, { bank });
  const plain = [undefined, ...adapters].map(
    (adapter) => new Decoder(model, params, ort, adapter ? { adapter } : {}),
  );
  afterAll(async () => {
    for (const decoder of [mixed, ...plain]) await decoder.release();
  });
  beforeAll(() => {
    adapters.forEach(({ adapter, params: own }, i) => {
      bank.fill(i + 1, adapter, own);
    });
  });

  it.each([[[0, 1, 2, 3]], [[3, 0, 1, 0]], [[2, 2, 2, 2]]])(
    "gives every row what its adapter gives alone, slots %j",
    async (slots) => {
      const together = await mixed.complete(prompts, { ...settings, slots });
      const seen = new Set<string>();
      for (const [row, slot] of slots.entries()) {
        const [alone] = await plain[slot]!.complete([prompts[row]!], settings);
        const own = together[row]!;
        expect([...own.tokens], `row ${row}, slot ${slot}`).toEqual([...alone!.tokens]);
        own.logprobs!.forEach(({ logprob, top }, i) => {
          const expected = alone!.logprobs![i]!;
          expect(Math.abs(logprob - expected.logprob)).toBeLessThan(1e-5);
          top.forEach((one, k) => {
            expect(Math.abs(one.logprob - expected.top[k]!.logprob)).toBeLessThan(1e-5);
          });
        });
        seen.add(`${slot}: ${[...own.tokens]}`);
      }
      expect(seen.size).toBe(4);
    },
  );

  it("gives the base alone, bit for bit, to a row without an adapter", async () => {
    const { logprobs } = (await mixed.complete(prompts, { ...settings, slots: [0, 1, 2, 3] }))[0]!;
    const base = (await plain[0]!.complete(prompts, settings))[0]!;
    expect(logprobs).toEqual(base.logprobs);
    const none = await mixed.complete(prompts, settings);
    expect(none).toEqual(await plain[0]!.complete(prompts, settings));
  });

  it("answers by what is in a slot at the call, and compiles nothing for it", async () => {
    const slots = [1, 2, 3, 4];
    const first = await mixed.generate(prompts, { ...settings, slots });
    const before = loads;
    const { adapter, params: own } = adapters[2];
    bank.fill(1, adapter, own);
    const filled = await mixed.generate(prompts, { ...settings, slots });
    expect([...filled[0]!]).toEqual([...(await plain[3]!.generate([prompts[0]!], settings))[0]!]);
    expect([...filled[0]!]).not.toEqual([...first[0]!]);
    expect(filled.slice(1)).toEqual(first.slice(1));

    bank.clear(1);
    const cleared = await mixed.generate(prompts, { ...settings, slots });
    expect([...cleared[0]!]).toEqual([...(await plain[0]!.generate([prompts[0]!], settings))[0]!]);
    // A smaller adapter leaves nothing of a larger one behind.
    bank.fill(2, adapters[0].adapter, adapters[0].params);
    const smaller = await mixed.generate(prompts, { ...settings, slots });
    expect([...smaller[1]!]).toEqual([...(await plain[1]!.generate([prompts[1]!], settings))[0]!]);
    expect(loads).toBe(before);
    adapters.forEach((one, i) => {
      bank.fill(i + 1, one.adapter, one.params);
    });
  });

  it("refuses to go on in a slot that was changed below it", async () => {
    const change = (): void => bank.fill(4, adapters[0].adapter, adapters[0].params);
    change();
    await expect(
      mixed.generate(prompts, { ...settings, slots: [0, 4, 0, 0], onToken: change }),
    ).rejects.toThrow(
      "generate: slot 4 was filled or cleared while a call used it — wait for the call's end.",
    );
    // A slot that no row takes may be filled meanwhile.
    const made = await mixed.generate(prompts, {
      ...settings,
      slots: [0, 1, 2, 3],
      onToken: change,
    });
    expect(made).toHaveLength(4);
  });

  it("lets a memory serve one content of one slot", async () => {
    const memory = new PromptMemory();
    const [prompt] = prompts;
    const options = { ...settings, memory, slots: [1] };
    const [first] = await mixed.generate([prompt!], options);
    const longer = Int32Array.from([...prompt!, ...first!, 7]);
    const [more] = await mixed.generate([longer], options);
    expect(more).toEqual((await mixed.generate([longer], { ...settings, slots: [1] }))[0]);
    await expect(mixed.generate([longer], { ...options, slots: [2] })).rejects.toThrow(
      "memory: belongs to another decoder — clear it first.",
    );
    bank.fill(1, adapters[0].adapter, adapters[0].params);
    await expect(mixed.generate([longer], options)).rejects.toThrow(
      "memory: belongs to another decoder — clear it first.",
    );
    memory.clear();
    expect((await mixed.generate([longer], options))[0]).toEqual(more);
  });

  it.each([
    [{ slots: [1] }, "generate: slots must have one number for each prompt, got 1 for 4."],
    [
      { slots: [0, 0, 5, 0] },
      "bank: slot must be a whole number from 1 to 4, got 5 — 0 is the base model.",
    ],
  ])("refuses %j", async (options, sentence) => {
    await expect(mixed.generate(prompts, options)).rejects.toThrow(sentence);
  });

  it("refuses slots without a bank, and a bank beside an adapter", async () => {
    await expect(plain[0]!.generate(prompts, { slots: [0, 0, 0, 0] })).rejects.toThrow(
      "generate: slots need a decoder with a bank.",
    );
    const adapter = adapters[0];
    expect(() => new Decoder(model, params, ort, { bank, adapter })).toThrow(
      "decoder: takes an adapter or a bank, got both — fill a slot with it.",
    );
  });
});

describe("the layers of a bank", () => {
  it.each([
    ["reference", reference()],
    ["ONNX Runtime", ort],
  ] as const)("give the logits of each adapter, inputs first or last (%s)", async (_, on) => {
    const gpt = new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 4, maxPositions: 16 });
    const base = widened(gpt);
    const own = loraBank(gpt, { slots: 2, maxRank: 4, targetModules: "all-linear" });
    const two = [
      random(gpt, 1, { rank: 4, targetModules: ["c_attn", "c_proj"] }),
      random(gpt, 2, { rank: 1, targetModules: ["c_fc"] }),
    ] as const;
    two.forEach(({ adapter, params: numbers }, i) => {
      own.fill(i + 1, adapter, numbers);
    });
    const ids = Tensor.from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [3, 4], "int32");
    const forward = await compile<Tensor>(
      ((values: ValueRecord, fixed: ValueRecord, x: Value) =>
        gpt.forward(gpt.context(fixed, {}, own.context(values)), x).logits) as never,
      [own.specs, base, spec(["rows", 4], "int32")],
      { backend: on },
    );
    const logits = await forward.run(own.inputs([2, 0, 1]), base, ids);
    await forward.release();
    for (const [row, which] of [1, undefined, 0].entries()) {
      const adapter = which === undefined ? undefined : two[which];
      const alone = await compile<Tensor>(
        ((values: ValueRecord, fixed: ValueRecord, x: Value) =>
          gpt.forward(gpt.context(fixed, {}, adapter?.adapter.context(values)), x).logits) as never,
        [adapter?.params ?? {}, base, ids],
        { backend: on },
      );
      const all = await alone.run(adapter?.params ?? {}, base, ids);
      await alone.release();
      const part = (tensor: Tensor): Tensor =>
        new Tensor(
          "float32",
          [4, 31],
          (tensor.data as Float32Array).slice(row * 124, row * 124 + 124),
        );
      allclose(part(logits), part(all), 1e-5, `row ${row}`);
    }
  });
});

describe("a row of a batch with adapters of many slots", () => {
  const gpt = new Gpt2({ vocabSize: 31, dModel: 192, nLayers: 1, nHeads: 4, maxPositions: 16 });
  const { params: base } = gpt.init(new Rng(3));
  const own = loraBank(gpt, { slots: 7, maxRank: 20, targetModules: "all-linear" });
  const rows = [3, 0, 7, 1, 2, 6, 5, 3, 4];

  /** Logits of one token for each row: products of as many rows as there are. */
  async function logitsOf(slots: readonly number[]): Promise<Float32Array[]> {
    const forward = await compile<Tensor>(
      ((values: ValueRecord, fixed: ValueRecord, x: Value) =>
        gpt.forward(gpt.context(fixed, {}, own.context(values)), x).logits) as never,
      [own.specs, base, spec(["rows", 1], "int32")],
      { backend: ort },
    );
    const ids = Tensor.from(
      slots.map(() => 5),
      [slots.length, 1],
      "int32",
    );
    const logits = (await forward.run(own.inputs(slots), base, ids)).data as Float32Array;
    await forward.release();
    return slots.map((_, row) => logits.slice(31 * row, 31 * row + 31));
  }

  it("has the bits that it has among rows of its own adapter, wherever its slot stands", async () => {
    for (let slot = 1; slot <= 7; slot++) {
      const { adapter, params: numbers } = random(gpt, slot, {
        rank: 13 + slot,
        targetModules: "all-linear",
      });
      own.fill(slot, adapter, numbers);
    }
    const mixed = await logitsOf(rows);
    expect(new Set(mixed.map((row) => row.join())).size).toBe(8);
    for (const [i, slot] of rows.entries()) {
      expect((await logitsOf([slot, slot]))[0], `slot ${slot}`).toEqual(mixed[i]);
    }
  });

  it("is not touched by an adapter whose products overflow", async () => {
    const { adapter, params: numbers } = random(gpt, 9, { rank: 4, targetModules: ["c_attn"] });
    const wild = Object.fromEntries(
      Object.entries(numbers).map(([name, { shape, size }]) => [
        name,
        // Signs by chance, as inputs have a mean of zero.
        new Tensor(
          "float32",
          shape,
          name.includes("lora_A")
            ? Float32Array.from(numbers[name]!.numbers(), (x) => Math.sign(x) * 3e38)
            : new Float32Array(size).fill(1),
        ),
      ]),
    );
    const before = await logitsOf([1, 2, 3]);
    own.fill(2, adapter, wild);
    const after = await logitsOf([1, 2, 3]);
    expect(after[1]!.some((x) => !Number.isFinite(x))).toBe(true);
    expect([after[0], after[2]]).toEqual([before[0], before[2]]);
  });
});

describe("loraBank", () => {
  it("takes the memory that it says, and no more after filling", () => {
    const own = loraBank(model, { slots: 3, maxRank: 4, targetModules: ["q_proj"] });
    // Two layers of 32 to 32: (3 + 1) slots × rank 4 × (32 + 32) numbers of four bytes each.
    expect(own.bytes).toBe(2 * 4 * 4 * 64 * 4);
    const tensors = Object.values(own.params);
    expect(tensors.reduce((sum, { data }) => sum + data.byteLength, 0)).toBe(own.bytes);
    const { adapter, params: numbers } = random(model, 1, { rank: 2, targetModules: ["q_proj"] });
    for (let i = 0; i < 10; i++) own.fill(1 + (i % 3), adapter, numbers);
    expect(Object.values(own.params)).toEqual(tensors);
    Object.values(own.params).forEach((tensor, i) => {
      expect(tensor).toBe(tensors[i]);
    });
  });

  it.each([
    [{ slots: 0 }, "bank: slots must be a whole number from 1 to 1024, got 0."],
    [{ maxRank: 1025 }, "bank: maxRank must be a whole number from 1 to 1024, got 1025."],
    [
      { targetModules: ["nothing"] },
      "targetModules [nothing] match no layer of this llama — it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
    ],
  ])("refuses %j", (options, sentence) => {
    expect(() => loraBank(model, { slots: 2, maxRank: 2, ...options })).toThrow(sentence);
  });

  it("refuses a bank beyond 8 GiB before it allocates", () => {
    const wide = new Gpt2({ vocabSize: 4, dModel: 2048, nLayers: 2, nHeads: 4, maxPositions: 4 });
    expect(() =>
      loraBank(wide, { slots: 1024, maxRank: 1024, targetModules: "all-linear" }),
    ).toThrow(
      // Per layer c_attn 2048 + 6144, c_proj 4096, c_fc and its c_proj 10240 each; two layers.
      `bank: 1024 slots of rank 1024 on 8 layers take ${2 * (8192 + 4096 + 2 * 10240) * 1024 * 4 * 1025} bytes, at most 8589934592 are taken — use fewer slots, a smaller rank or fewer layers.`,
    );
  });

  it("refuses what does not fit, and leaves the slot as it was", () => {
    const own = loraBank(model, { slots: 1, maxRank: 2, targetModules: ["q_proj"] });
    const fits = random(model, 1, { rank: 2, targetModules: ["q_proj"] });
    own.fill(1, fits.adapter, fits.params);
    const before = Object.values(own.params).map(({ data }) => data.slice());
    const content = own.contentOf(1);
    const path = "model.layers.0.self_attn.q_proj";
    const name = `base_model.model.${path}.lora_A.weight`;
    const refuse = ({ adapter, params: numbers }: Filled, sentence: string, slot = 1): void =>
      expect(() => own.fill(slot, adapter, numbers)).toThrow(sentence);
    const wild = {
      ...fits.params,
      [`base_model.model.${path}.lora_B.weight`]: Tensor.from(
        new Float32Array(64).fill(3e38),
        [32, 2],
      ),
    };
    refuse(
      { ...fits, params: wild },
      `bank: "base_model.model.${path}.lora_B.weight" holds 3.0000000054977558e+38 at element 0, which is no finite number when scaled by 2.`,
    );
    refuse(
      random(model, 1, { rank: 3, targetModules: ["q_proj"] }),
      `bank: the adapter has rank 3 on "${path}", the bank takes 2 — make it with a larger maxRank.`,
    );
    refuse(
      random(model, 1, { rank: 2, targetModules: ["v_proj"] }),
      'bank: the adapter sits on "model.layers.0.self_attn.v_proj", the bank does not — make the bank with its targetModules.',
    );
    const { [name]: _, ...rest } = fits.params;
    refuse(
      { ...fits, params: rest },
      `bank: "${name}" must have shape (2, 32), got nothing — are these the adapter's parameters, and is it for this model?`,
    );
    refuse(
      { ...fits, params: { ...fits.params, stray: Tensor.scalar(1) } },
      'bank: "stray" is no parameter of the adapter.',
    );
    refuse(
      random(model, 1, { rank: 2, targetModules: ["q_proj"], useDora: true }),
      "bank: this LoRA has more than products beside linear layers (DoRA, biases, embeddings or convolutions) — give it a batch of its own.",
    );
    const { layers: __, ...bare } = fits.adapter;
    refuse(
      { ...fits, adapter: { ...bare, kind: "IA3" } as unknown as LoraAdapter },
      "bank: an adapter of kind IA3 does not fit a bank, only LoRA does — give it a batch of its own.",
    );
    refuse(fits, "bank: slot must be a whole number from 1 to 1, got 0 — 0 is the base model.", 0);
    expect(own.contentOf(1)).toBe(content);
    expect(Object.values(own.params).map(({ data }) => data)).toEqual(before);
  });
});
