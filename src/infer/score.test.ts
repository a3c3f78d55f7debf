import { describe, expect, it } from "vitest";
import { compile } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/example.ts";
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { Gpt2 } from "../models/gpt2.ts";
import type { ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Scorer, slidingWindows } from "./score.ts";

const backend = await nodeOrt({ threads: 1 });
const model = new Gpt2({ vocabSize: 13, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 24 });
const { params } = model.init(new Rng(3));
for (const tensor of Object.values(params)) {
  if (tensor.shape.length < 2) continue;
  for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 15;
}

/** Probabilities after each token, (T, V), by a plain forward pass. */
async function probabilities(ids: readonly number[]): Promise<number[][]> {
  const x = Tensor.from([...ids], [1, ids.length], "int32");
  const forward = await compile<Tensor>(
    ((p: ValueRecord, input: Value) => model.forward(model.context(p), input).logits) as never,
    [params, x],
    { backend },
  );
  const logits = await forward.run(params, x);
  await forward.release();
  return ids.map((_, t) => {
    const row = [...(logits.data as Float32Array).subarray(t * 13, (t + 1) * 13)];
    const total = row.reduce((sum, l) => sum + Math.exp(l), 0);
    return row.map((l) => Math.exp(l) / total);
  });
}

const rng = new Rng(8);
const text = (length: number, isScored: (i: number) => boolean = (i) => i > 0): Example => {
  const ids = Int32Array.from({ length }, () => rng.integer(13));
  return { ids, mask: Uint8Array.from(ids, (_, i) => (isScored(i) ? 1 : 0)) };
};

describe("slidingWindows", () => {
  it("scores each token once, in the context of the window before", () => {
    expect(slidingWindows(5, 8, 4)).toEqual([{ start: 0, end: 5, from: 1 }]);
    // 8 positions take 9 tokens.
    expect(slidingWindows(9, 8, 4)).toEqual([{ start: 0, end: 9, from: 1 }]);
    expect(slidingWindows(18, 8, 4)).toEqual([
      { start: 0, end: 9, from: 1 },
      { start: 4, end: 13, from: 9 },
      { start: 8, end: 17, from: 13 },
      { start: 12, end: 18, from: 17 },
    ]);
    expect(slidingWindows(17, 8, 8).map(({ start, from }) => [start, from])).toEqual([
      [0, 1],
      [8, 9],
    ]);
    expect(slidingWindows(1, 8, 4)).toEqual([]);
  });

  it("refuses strides that would skip tokens", () => {
    expect(() => slidingWindows(9, 8, 9)).toThrow(
      new OptionError("score: stride must be a whole number from 1 to the window of 8, got 9."),
    );
    expect(() => slidingWindows(9, 0, 1)).toThrow(
      new OptionError("score: window must be a whole number from 1, got 0."),
    );
  });
});

describe("Scorer", () => {
  it("gives the probabilities of a plain forward pass, whatever is read together", async () => {
    const examples = [text(9), text(3), text(20, (i) => i > 4 && i % 3 !== 0), text(14), text(1)];
    const scorer = new Scorer(model, params, backend);
    let progress = [0, 0];
    const scores = await scorer.score(examples, {
      batchSize: 2,
      onProgress: (done, all) => {
        progress = [done, all];
      },
    });
    expect(progress).toEqual([4, 4]);
    for (const [i, { ids, mask }] of examples.entries()) {
      const own = scores[i]!;
      expect([...own.positions]).toEqual([...ids.keys()].filter((t) => t > 0 && mask[t]));
      const all = await probabilities([...ids]);
      own.positions.forEach((t, k) => {
        const p = all[t - 1]!;
        const top = Math.max(...p);
        expect(own.logprobs[k]).toBeCloseTo(Math.log(p[ids[t]!]!), 4);
        expect(own.topProbabilities[k]).toBeCloseTo(top, 5);
        expect(own.isTop[k]).toBe(p[ids[t]!] === top ? 1 : 0);
        expect(own.squares[k]).toBeCloseTo(
          p.reduce((sum, x) => sum + x * x, 0),
          5,
        );
      });
    }
    await scorer.release();
    await expect(scorer.score(examples)).rejects.toThrow("score: the scorer was released.");
  });

  it("reads texts beyond the model's positions in windows", async () => {
    const long = text(40);
    const scorer = new Scorer(model, params, backend);
    const [own] = await scorer.score([long], { window: 16, stride: 6 });
    expect([...own!.positions]).toEqual(Array.from({ length: 39 }, (_, i) => i + 1));
    for (const { start, end, from } of slidingWindows(40, 16, 6)) {
      const all = await probabilities([...long.ids.subarray(start, end - 1)]);
      for (let t = from; t < end; t++) {
        const p = all[t - start - 1]![long.ids[t]!]!;
        expect(own!.logprobs[t - 1], `token ${t}`).toBeCloseTo(Math.log(p), 4);
      }
    }
    await expect(scorer.score([long], { window: 25 })).rejects.toThrow(
      "score: window 25 is beyond the model's 24 positions.",
    );
    const abort = new AbortController();
    abort.abort();
    await expect(scorer.score([long], { signal: abort.signal })).rejects.toThrow(
      "score: ended by the signal.",
    );
    await scorer.release();
  });
});
