/** Row invariance of the whole program: what a row gives depends on nothing but the row. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  backend,
  model,
  pageBytes,
  params,
  randomPrompt,
} from "../../../test/support/serve-engine.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { Mamba } from "../../models/mamba.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { quantizedLayers, quantizeLinear } from "../../nn/quantize.ts";
import { Rng } from "../../tensor/rng.ts";
import { Decoder } from "../decoder.ts";
import { PagedCache, type PagedSequence } from "./pages.ts";
import { cacheSizesOf, PagedProgram, type PassRow, passLength } from "./program.ts";

/** Logits of a row, and its keys and values, as bits. */
interface Bits {
  readonly logits: Int32Array;
  readonly present: readonly Int32Array[];
}

const bitsOf = (data: Float32Array): Int32Array => new Int32Array(data.slice().buffer);

const four = quantizedBase();

/** The model's layers in 4 bits. */
function quantizedBase(): {
  readonly params: TensorRecord;
  readonly form: (base: ValueRecord) => ContextOptions;
} {
  const layers = [...model.targets].map(([path, layer]) => {
    const { packed, scales, attrs } = quantizeLinear(layer, params[`${path}.weight`]!, {
      blockSize: 16,
    });
    return { path, layer, packed, scales, attrs };
  });
  const own: TensorRecord = { ...params };
  for (const { path, packed, scales } of layers) {
    delete own[`${path}.weight`];
    own[`${path}.packed`] = packed;
    own[`${path}.scales`] = scales;
  }
  const form = (base: ValueRecord): ContextOptions => ({
    linear: quantizedLayers(
      layers.map(({ path, layer, attrs }) => [
        layer,
        { packed: base[`${path}.packed`]!, scales: base[`${path}.scales`]!, attrs },
      ]),
    ),
  });
  return { params: own, form };
}

describe.each([
  { threads: 1, name: "weights in the session", own: params, options: {} },
  { threads: 2, name: "weights in the session", own: params, options: {} },
  { threads: 1, name: "weights as inputs", own: params, options: { prepack: false } },
  { threads: 1, name: "weights of 4 bits", own: four.params, options: { form: four.form } },
])("PagedProgram with $name and $threads threads", ({ threads, own, options }) => {
  let cache: PagedCache;
  let program: PagedProgram;

  beforeAll(async () => {
    cache = new PagedCache(cacheSizesOf(model), { pageTokens: 8, bytes: 300 * pageBytes });
    program = await PagedProgram.load(model, own, await nodeOrt({ threads }), cache, options);
  });
  afterAll(() => program.release());

  /** A sequence that has read a text, in chunks of a page. */
  async function reading(text: Int32Array): Promise<PagedSequence> {
    const sequence = cache.open(cache.newRoot());
    for (let from = 0; from < text.length; from += 8) {
      const tokens = text.subarray(from, from + 8);
      cache.reserve(sequence, from + tokens.length);
      const { present } = await program.run([rowOf(sequence, tokens)]);
      cache.write(sequence, present, 0, tokens.length);
    }
    return sequence;
  }

  const rowOf = (sequence: PagedSequence, tokens: ArrayLike<number>): PassRow => ({
    tokens,
    held: sequence.length,
    pages: sequence.pages,
    slot: 0,
  });

  async function bits(rows: readonly PassRow[], at: number): Promise<Bits> {
    const { logits, present } = await program.run(rows);
    const { vocabSize } = model.sizes;
    const count = rows[at]!.tokens.length;
    return {
      logits: bitsOf(logits.subarray(at * vocabSize, (at + 1) * vocabSize)),
      present: present.map(({ data, shape }) => {
        const [, heads, length, size] = shape as readonly [number, number, number, number];
        const own = new Float32Array(heads * count * size);
        for (let head = 0; head < heads; head++) {
          const from = (at * heads + head) * length * size;
          own.set((data as Float32Array).subarray(from, from + count * size), head * count * size);
        }
        return bitsOf(own);
      }),
    };
  }

  it("gives a row of a step the same bits among others of any length", async () => {
    const lengths = [5, 8, 31, 64, 65, 100, 130, 200];
    const held = await Promise.all(
      lengths.map((length, i) => ({ length, text: randomPrompt(i, length) })),
    );
    const sequences: PagedSequence[] = [];
    for (const { text } of held) sequences.push(await reading(text));
    const rows = sequences.map((sequence, i) => rowOf(sequence, [i + 1]));
    for (const [i, row] of rows.entries()) {
      const single = await bits([row], 0);
      const crowd = [...rows, ...rows, ...rows, ...rows];
      expect(await bits(crowd, i)).toEqual(single);
      expect(await bits(crowd, i + 24)).toEqual(single);
      expect(await bits([rows[(i + 3) % rows.length]!, row], 1)).toEqual(single);
    }
    for (const sequence of sequences) cache.close(sequence);
  });

  it.each([3, 8, 33, 64])("gives a chunk of %i tokens the same bits", async (count) => {
    const sequence = await reading(randomPrompt(1, 24));
    const long = await reading(randomPrompt(2, 120));
    const row = rowOf(sequence, randomPrompt(3, count));
    const single = await bits([row], 0);
    const others = [4, 5, 6, 7].map((seed) => rowOf(long, randomPrompt(seed, count)));
    expect(await bits([...others, row], 4)).toEqual(single);
    expect(await bits([row, others[0]!], 0)).toEqual(single);
    for (const one of [sequence, long]) cache.close(one);
  });

  it("gives the logits that a decoder has, to rounding", async () => {
    const prompt = randomPrompt(9, 21);
    const decoder = new Decoder(model, own, backend, options);
    const [whole] = await decoder.complete([prompt], { maxNewTokens: 1, logprobs: 5 });
    const sequence = await reading(prompt.subarray(0, 16));
    const { logits } = await program.run([rowOf(sequence, prompt.subarray(16))]);
    const found = logits.subarray(0, model.sizes.vocabSize);
    const best = whole!.logprobs![0]!;
    const top = Math.max(...found);
    const total = top + Math.log(found.reduce((sum, x) => sum + Math.exp(x - top), 0));
    for (const { token, logprob } of best.top) {
      expect(Math.abs(found[token]! - total - logprob)).toBeLessThan(1e-4);
    }
    await decoder.release();
    cache.close(sequence);
  });
});

describe("PagedProgram.load", () => {
  const cache = new PagedCache(cacheSizesOf(model), { pageTokens: 8, bytes: 4 * pageBytes });

  it("refuses a model without keys and values, and a device", async () => {
    const mamba = new Mamba({ vocabSize: 11, dModel: 8, nLayers: 1 });
    const own = mamba.init(new Rng(0)).params;
    await expect(PagedProgram.load(mamba, own, backend, cache)).rejects.toThrow(
      "serve: mamba carries a state between tokens, and pages hold keys and values — use a decoder.",
    );
    const device = { ...backend, name: "a device", device: {} as never };
    await expect(PagedProgram.load(model, params, device, cache)).rejects.toThrow(
      "serve: pages are in the host's memory, and a device would copy them at every step — use the CPU engine.",
    );
  });

  it("takes lengths of few kinds", () => {
    expect([1, 2, 16, 17, 64].map(passLength)).toEqual([1, 16, 16, 32, 64]);
  });
});
