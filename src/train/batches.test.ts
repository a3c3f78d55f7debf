import { describe, expect, it } from "vitest";
import type { Example } from "../data/examples.ts";
import { packRow } from "../data/packing.ts";
import { makeBatch, roundUp } from "./batches.ts";

const example = (ids: readonly number[], mask: readonly number[]): Example => ({
  ids: Int32Array.from(ids),
  mask: Uint8Array.from(mask),
});

const two = [example([5, 6, 7, 8], [0, 0, 1, 1]), example([9, 4, 3], [0, 1, 0])];

describe("roundUp", () => {
  it("gives the next multiple, and one multiple for nothing", () => {
    expect([0, 1, 16, 17].map((size) => roundUp(size, 16))).toEqual([16, 16, 16, 32]);
  });
});

describe("makeBatch", () => {
  it("pads at the end, and asks for logits at the place before each token with loss", () => {
    const { ids, rows, targets, weights } = makeBatch(two, { rows: 3, lengthMultiple: 4 });
    // The last token of an example is only ever predicted; the third sequence is empty.
    expect(ids.shape).toEqual([3, 4]);
    expect([...ids.data]).toEqual([5, 6, 7, 0, 9, 4, 0, 0, 0, 0, 0, 0]);
    // Targets 7 and 8 of the first are predicted at 1 and 2, target 4 of the second at 4 + 0.
    const filled = (values: number[]): number[] => [...values, ...new Array<number>(29).fill(0)];
    expect([...rows!.data]).toEqual(filled([1, 2, 4]));
    expect([...targets.data]).toEqual(filled([7, 8, 4]));
    expect([...weights.data]).toEqual(filled([1, 1, 1]));
    expect([rows!.shape, targets.shape, weights.shape]).toEqual([[32], [32], [32]]);
  });

  it("has the same shape for examples of near lengths, so that they share a program", () => {
    const shapes = [3, 16, 17].map((length) => {
      const ids = Array.from({ length }, (_, i) => i + 1);
      const mask = ids.map((_, i) => (i > 0 ? 1 : 0));
      const batch = makeBatch([example(ids, mask)], { rows: 1 });
      return [batch.ids.shape, batch.rows!.shape, batch.weights.shape];
    });
    // 17 tokens take 16 positions.
    expect(new Set(shapes.map(String)).size).toBe(1);
    const longer = makeBatch([example(new Array<number>(18).fill(1), [0, 1])], { rows: 1 });
    expect(longer.ids.shape).toEqual([1, 32]);
  });

  it("pads no further than the longest sequence that the model takes", () => {
    const ids = Array.from({ length: 20 }, (_, i) => i);
    const long = example([...ids, 20], [0, ...ids.map(() => 1)]);
    expect(makeBatch([long], { rows: 2, maxLength: 20 }).ids.shape).toEqual([2, 20]);
    expect(makeBatch([long], { rows: 2, maxLength: 40 }).ids.shape).toEqual([2, 32]);
  });
});

describe("a batch of packed rows", () => {
  it("says whose each token is and where it stands there, padding apart", () => {
    const row = packRow([example([1, 2, 3], [0, 1, 1]), example([4, 5], [0, 1])]);
    const batch = makeBatch([row], { rows: 2, lengthMultiple: 6 });
    // The last token is never read: 1 2 3 4 stand at four of six places.
    expect([...batch.ids.data.subarray(0, 6)]).toEqual([1, 2, 3, 4, 0, 0]);
    expect([...batch.segments!.data]).toEqual([0, 0, 0, 1, -1, -1, ...new Array(6).fill(-1)]);
    expect([...batch.positions!.data.subarray(0, 6)]).toEqual([0, 1, 2, 0, 0, 0]);
    // 1→2, 2→3 and 4→5, but not 3→4.
    expect([...batch.rows!.data.subarray(0, 4)]).toEqual([0, 1, 3, 0]);
    expect([...batch.targets.data.subarray(0, 4)]).toEqual([2, 3, 5, 0]);
    expect(batch.weights.data.reduce((a, b) => a + b)).toBe(3);
  });
});
