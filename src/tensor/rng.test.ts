import { describe, expect, it } from "vitest";
import { philox, Rng } from "./rng.ts";

describe("philox", () => {
  it("gives the known answers of the Random123 distribution", () => {
    // kat_vectors, philox4x32 10: counter, key, expected.
    const vectors: [number[], number[], number[]][] = [
      [
        [0, 0, 0, 0],
        [0, 0],
        [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
      ],
      [
        [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
        [0xffffffff, 0xffffffff],
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
      ],
      [
        [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
        [0xa4093822, 0x299f31d0],
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
      ],
    ];
    for (const [[c0, c1, c2, c3], [k0, k1], expected] of vectors) {
      const out = new Uint32Array(4);
      philox(c0!, c1!, c2!, c3!, k0!, k1!, out);
      expect([...out]).toEqual(expected);
    }
  });
});

describe("Rng", () => {
  it("begins with the block of counter 0 under the seed as key", () => {
    const rng = new Rng(0);
    expect([rng.bits(), rng.bits(), rng.bits(), rng.bits()]).toEqual([
      0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8,
    ]);
  });

  it("uses all 53 bits of a seed", () => {
    expect(new Rng(1).bits()).not.toBe(new Rng(1 + 2 ** 32).bits());
    expect(new Rng(2 ** 53 - 1).state.key).toEqual([0xffffffff, 0x1fffff]);
  });

  it("goes on with the same bits after it is restored between blocks", () => {
    const rng = new Rng(7);
    for (let i = 0; i < 8; i++) rng.bits();
    const restored = Rng.restore(rng.state);
    for (let i = 0; i < 9; i++) expect(restored.bits()).toBe(rng.bits());
  });

  it("passes a counter of 2^32 without repeating", () => {
    const key = [1, 2] as const;
    const low = Rng.restore({ key, counter: 0 });
    const high = Rng.restore({ key, counter: 2 ** 32 });
    expect(high.bits()).not.toBe(low.bits());
    const words = new Uint32Array(4);
    philox(0, 1, 0, 0, 1, 2, words);
    expect(Rng.restore({ key, counter: 2 ** 32 }).bits()).toBe(words[0]);
  });

  it("folds names and numbers into streams that differ, and stays where it is", () => {
    const rng = new Rng(3);
    const paths = [["a"], ["b"], ["a", "b"], ["b", "a"], [0], [1], ["0"], [2 ** 32], ["a", 0]];
    const first = paths.map((path) => rng.fold(...path).bits());
    expect(new Set(first).size).toBe(paths.length);
    expect(rng.fold("a").fold("b").bits()).toBe(rng.fold("a", "b").bits());
    expect(rng.bits()).toBe(new Rng(3).bits());
  });

  it("draws uniforms in [0, 1) that float32 holds exactly", () => {
    const values = new Rng(11).uniforms(20_000);
    let sum = 0;
    for (const value of values) {
      expect(value >= 0 && value < 1).toBe(true);
      sum += value;
    }
    // Five standard errors: 5 / sqrt(12 · 20000) = 0.0102.
    expect(Math.abs(sum / values.length - 0.5)).toBeLessThan(0.0102);
    const rng = new Rng(11);
    expect(rng.uniform()).toBe(values[0]);
  });

  it("draws normals of mean 0 and variance 1", () => {
    const values = new Rng(12).normals(20_000, 2);
    let sum = 0;
    let squares = 0;
    for (const value of values) {
      sum += value / 2;
      squares += (value / 2) ** 2;
    }
    const n = values.length;
    // Five standard errors of the mean, 1 / sqrt(n), and of the variance, sqrt(2 / n).
    expect(Math.abs(sum / n)).toBeLessThan(5 / Math.sqrt(n));
    expect(Math.abs(squares / n - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
  });

  it("draws whole numbers evenly", () => {
    const rng = new Rng(13);
    const counts = new Array<number>(6).fill(0);
    for (let i = 0; i < 12_000; i++) counts[rng.integer(6)]!++;
    // Expected 2000 each, standard deviation sqrt(12000 · 1/6 · 5/6) = 40.8; five of them.
    for (const count of counts) expect(Math.abs(count - 2000)).toBeLessThan(205);
    expect(rng.integer(1)).toBe(0);
  });

  it("permutes: each number once, and not in order", () => {
    const order = new Rng(14).permutation(100);
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, i) => i));
    expect([...order]).not.toEqual(Array.from({ length: 100 }, (_, i) => i));
    expect(new Rng(14).permutation(0).length).toBe(0);
  });
});
