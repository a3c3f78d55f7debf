import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { NextTokenRows } from "./next-token-rows.ts";
import { likeliest, noToken, TrigramRepresentative } from "./representative.ts";

const options = { width: 4, maxBytes: 2 ** 20 };

/** The row for what follows u, v as pairs in falling order. */
function rowOf(model: TrigramRepresentative, u: number, v: number): [number, number][] {
  const place = model.find(u, v);
  if (place < 0) return [];
  const { rows } = model;
  return Array.from({ length: rows.sizeAt(place) }, (_, i) => [
    rows.tokenAt(place, i),
    Number(rows.shareAt(place, i).toFixed(6)),
  ]);
}

describe("TrigramRepresentative", () => {
  it("takes shares from counts, the likeliest first", () => {
    const model = new TrigramRepresentative(10, options);
    // After 1 2: 3 twice, 4 once. After 2: 3 twice, 4 once. After 3: 1.
    model.fit(Int32Array.of(1, 2, 3, 1, 2, 4, 1, 2, 3));
    expect(rowOf(model, 1, 2)).toEqual([
      [3, 0.666667],
      [4, 0.333333],
    ]);
    expect(rowOf(model, 2, 3)).toEqual([[1, 1]]);
  });

  it("backs off from both tokens to the last, and from that to all text", () => {
    const model = new TrigramRepresentative(10, options);
    expect(model.find(1, 2)).toBe(-1);
    model.fit(Int32Array.of(1, 2, 3, 1, 2, 4, 1, 2, 3));
    // 9 2 was not seen: the row of 2. 9 9 neither: 1, 2 three times each, 3 twice, 4 once of nine.
    expect(rowOf(model, 9, 2)).toEqual(rowOf(model, noToken, 2));
    expect(rowOf(model, 9, 2)).toEqual([
      [3, 0.666667],
      [4, 0.333333],
    ]);
    expect(rowOf(model, 9, 9)).toEqual([
      [1, 0.333333],
      [2, 0.333333],
      [3, 0.222222],
      [4, 0.111111],
    ]);
  });

  it("moves a row towards the model's distribution by the rate, and that of the last token by half", () => {
    const model = new TrigramRepresentative(10, options);
    model.update(1, 2, [3, 4], [0.75, 0.25], 0.5);
    expect(rowOf(model, 1, 2)).toEqual([
      [3, 0.75],
      [4, 0.25],
    ]);
    model.update(1, 2, [5, 4], [0.6, 0.4], 0.5);
    // 3: 0.5 · 0.75; 4: 0.5 · 0.25 + 0.5 · 0.4; 5: 0.5 · 0.6
    expect(rowOf(model, 1, 2)).toEqual([
      [3, 0.375],
      [4, 0.325],
      [5, 0.3],
    ]);
    // Of 2 alone: 0.75 · 0.75, 0.75 · 0.25 + 0.25 · 0.4, 0.25 · 0.6
    expect(rowOf(model, noToken, 2)).toEqual([
      [3, 0.5625],
      [4, 0.2875],
      [5, 0.15],
    ]);
  });

  it("keeps a row's likeliest tokens and divides them by their sum", () => {
    const model = new TrigramRepresentative(10, options);
    model.update(1, 2, [1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1], 0.5);
    model.update(1, 2, [5], [1], 0.5);
    // 5: 0.5, 1: 0.2, 2: 0.15, 3: 0.1; 4 with 0.05 goes, and 0.95 is left.
    expect(rowOf(model, 1, 2)).toEqual([
      [5, 0.526316],
      [1, 0.210526],
      [2, 0.157895],
      [3, 0.105263],
    ]);
  });

  it("leaves a rare context as it is, however often others are written", () => {
    const model = new TrigramRepresentative(10, options);
    model.update(7, 8, [1, 2], [0.9, 0.1], 0.5);
    for (let i = 0; i < 500; i++) model.update(i % 6, i % 5, [i % 10], [1], 0.5);
    expect(rowOf(model, 7, 8)).toEqual([
      [1, 0.9],
      [2, 0.1],
    ]);
  });

  it("refuses what it cannot number", () => {
    expect(() => new TrigramRepresentative(2 ** 27, options)).toThrow(
      "table: takes vocabularies of at most 67108864 tokens, got 134217728.",
    );
    const model = new TrigramRepresentative(10, options);
    expect(() => model.fit(Int32Array.of(3, 10))).toThrow(
      "table: token 10 of the corpus is not among the model's 10.",
    );
    expect(() => new NextTokenRows({ width: 16, maxBytes: 100 })).toThrow(
      "table: 100 bytes do not hold 8 rows of 16 tokens — allow more memory.",
    );
  });
});

describe("likeliest", () => {
  it("gives the largest logits in falling order, and their softmax among themselves", () => {
    const logits = Float32Array.of(0, Math.log(2), -5, Math.log(6), Math.log(2));
    const { tokens, shares } = likeliest(logits, 3);
    expect(tokens).toEqual([3, 1, 4]);
    shares.forEach((share, i) => {
      expect(share).toBeCloseTo([0.6, 0.2, 0.2][i]!, 6);
    });
    expect(likeliest(Float32Array.of(1, 2), 8).tokens).toEqual([1, 0]);
  });
});

describe("NextTokenRows", () => {
  const writes = fc.array(
    fc.record({
      context: fc.integer({ min: 0, max: 2 ** 50 }),
      row: fc.uniqueArray(fc.tuple(fc.nat(30), fc.double({ min: 1e-6, max: 5, noNaN: true })), {
        selector: ([token]) => token,
        minLength: 1,
        maxLength: 12,
      }),
      rate: fc.double({ min: 0.01, max: 1, noNaN: true }),
    }),
    { minLength: 1, maxLength: 300 },
  );

  it("holds distributions of at most `width` tokens in at most so many bytes", () => {
    fc.assert(
      fc.property(writes, (list) => {
        const maxBytes = 16_000;
        const rows = new NextTokenRows({ width: 4, maxBytes });
        for (const { context, row, rate } of list) {
          const tokens = row.map(([token]) => token);
          const sum = row.reduce((total, [, weight]) => total + weight, 0);
          rows.blend(
            context,
            tokens,
            row.map(([, weight]) => weight / sum),
            rate,
          );
          const place = rows.find(context);
          const size = rows.sizeAt(place);
          let total = 0;
          for (let i = 0; i < size; i++) {
            total += rows.shareAt(place, i);
            if (i > 0) {
              expect(rows.shareAt(place, i)).toBeLessThanOrEqual(rows.shareAt(place, i - 1));
            }
          }
          expect(size).toBeLessThanOrEqual(4);
          expect(Math.abs(total - 1)).toBeLessThan(1e-6);
        }
        expect(rows.bytes).toBeLessThanOrEqual(maxBytes);
      }),
      { numRuns: 40, seed: 1 },
    );
  });

  it("finds every row again while it grows, and drops the ones written longest ago when it is full", () => {
    const rows = new NextTokenRows({ width: 2, maxBytes: 2 ** 22 });
    for (let i = 0; i < 20_000; i++) rows.write(i * 7919, [i % 100], [1]);
    expect(rows.dropped).toBe(0);
    expect(rows.rows).toBe(20_000);
    for (let i = 0; i < 20_000; i++) expect(rows.tokenAt(rows.find(i * 7919), 0)).toBe(i % 100);
    const full = new NextTokenRows({ width: 2, maxBytes: 2 ** 17 });
    for (let i = 0; i < 20_000; i++) full.write(i * 7919, [i % 100], [1]);
    expect(full.bytes).toBeLessThanOrEqual(2 ** 17);
    expect(full.rows + full.dropped).toBe(20_000);
    const held = Array.from({ length: 20_000 }, (_, i) => full.find(i * 7919) >= 0);
    const late = held.slice(-2000).filter(Boolean).length;
    expect(late).toBeGreaterThan(1900);
    expect(held.slice(0, 2000).filter(Boolean).length).toBeLessThan(100);
  });
});
