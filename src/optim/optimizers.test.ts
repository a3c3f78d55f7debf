import { describe, expect, it } from "vitest";
import { evaluate } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Updater } from "../train/updater.ts";
import { adafactor } from "./adafactor.ts";
import { adam, adamW } from "./adamw.ts";
import { lion } from "./lion.ts";
import { muon, orthogonalize } from "./muon.ts";
import type { Optimizer } from "./optimizer.ts";
import { sgd } from "./sgd.ts";

/** Parameters after steps on the given gradients, computed in float64 and kept in float32. */
async function valuesAfter(
  optimizer: Optimizer,
  learningRate: number,
  start: Tensor,
  ...gradients: readonly (readonly number[])[]
): Promise<number[]> {
  const updater = new Updater({ w: start }, [{ paths: ["w"], optimizer }], reference());
  for (const gradient of gradients) {
    updater.gradients["w"]!.data.set(gradient);
    await updater.step(learningRate);
  }
  return [...updater.params["w"]!.data];
}

const normals = (seed: number, shape: readonly number[], scale = 1): Tensor =>
  Tensor.from(new Rng(seed).normals(sizeOf(shape), scale), shape);

function expectClose(found: readonly number[], expected: readonly number[], within = 1e-6): void {
  expect(found.length).toBe(expected.length);
  found.forEach((x, i) => {
    expect(Math.abs(x - expected[i]!)).toBeLessThanOrEqual(
      within * Math.max(1, Math.abs(expected[i]!)),
    );
  });
}

const rms = (values: readonly number[]): number =>
  Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);

describe("AdamW", () => {
  it("moves by the learning rate at first, whatever the gradient's size", async () => {
    const found = await valuesAfter(
      adamW({ weightDecay: 0 }),
      0.1,
      Tensor.from([1, 1, 1]),
      [1e3, -2, 1e-3],
    );
    expectClose(found, [0.9, 1.1, 0.9], 2e-6);
  });

  it("shrinks by η λ alone where the gradient is zero", async () => {
    const found = await valuesAfter(adamW({ weightDecay: 0.5 }), 0.1, Tensor.from([2]), [0], [0]);
    expectClose(found, [2 * 0.95 * 0.95]);
  });

  it("takes two steps as worked by hand", async () => {
    // β₁ = β₂ = ½, λ = 0, ε = 0; g = 1 then 3
    // m = ½, ½·½ + ½·3 = 1.75, m̂ = 1, 1.75/0.75;  v = ½, ¼ + 4.5 = 4.75, v̂ = 1, 4.75/0.75
    const options = { beta1: 0.5, beta2: 0.5, epsilon: 0, weightDecay: 0 };
    const found = await valuesAfter(adamW(options), 0.1, Tensor.from([0]), [1], [3]);
    expectClose(found, [-0.1 - (0.1 * (1.75 / 0.75)) / Math.sqrt(4.75 / 0.75)]);
  });

  it("refuses what is outside its range, and unknown options", () => {
    expect(() => adamW({ beta1: 1 })).toThrow(
      new OptionError("adamw: beta1 must be in [0, 1), got 1."),
    );
    expect(() => adamW({ beta2: Number.NaN })).toThrow("adamw: beta2 must be in [0, 1), got NaN.");
    expect(() => adamW({ epsilon: -1 })).toThrow("adamw: epsilon must be a number from 0, got -1.");
    expect(() => adam({ weightDecay: -1 })).toThrow(
      "adam: weightDecay must be a number from 0, got -1.",
    );
    expect(() => adamW({ weight_decay: 0.1 } as never)).toThrow(
      new OptionError(
        'adamw: unknown option "weight_decay" — did you mean "weightDecay"? its options are beta1, beta2, epsilon, weightDecay.',
      ),
    );
  });
});

describe("SGD", () => {
  it("starts momentum from the whole first gradient, dampening or not", async () => {
    // b = 1, then ½·1 + ¼·1 = 0.75, then ½·0.75 + ¼ = 0.625
    const optimizer = sgd({ momentum: 0.5, dampening: 0.75 });
    expect(await valuesAfter(optimizer, 1, Tensor.from([0]), [1], [1], [1])).toEqual([-2.375]);
  });

  it("looks ahead with Nesterov's form", async () => {
    // b = 1, 1.5; steps g + ½ b = 1.5, 1.75
    const optimizer = sgd({ momentum: 0.5, nesterov: true });
    expect(await valuesAfter(optimizer, 1, Tensor.from([0]), [1], [1])).toEqual([-3.25]);
  });

  it("adds weight decay to the gradient, so that it enters the momentum", async () => {
    // g = 0.5·2 = 1: θ = 1; g = 0.5, b = 0.5·1 + 0.5 = 1: θ = 0
    const optimizer = sgd({ momentum: 0.5, weightDecay: 0.5 });
    expect(await valuesAfter(optimizer, 1, Tensor.from([2]), [0], [0])).toEqual([0]);
  });

  it("keeps no state without momentum", () => {
    expect(sgd().slots([3])).toEqual({});
    expect(sgd({ momentum: 0.9 }).slots([3])).toEqual({ momentum_buffer: [3] });
  });

  it("refuses Nesterov's form without momentum or with dampening", () => {
    expect(() => sgd({ nesterov: true })).toThrow(
      new OptionError(
        "sgd: nesterov needs momentum above 0 and no dampening, got momentum 0 and dampening 0.",
      ),
    );
    expect(() => sgd({ nesterov: true, momentum: 0.9, dampening: 0.1 })).toThrow("dampening 0.1.");
    expect(() => sgd({ momentum: -0.1 })).toThrow(
      "sgd: momentum must be a number from 0, got -0.1.",
    );
    expect(() => sgd({ dampening: Number.NaN })).toThrow(
      "sgd: dampening must be a number, got NaN.",
    );
  });
});

describe("Lion", () => {
  it("moves every element by the learning rate, or not at all", async () => {
    const found = await valuesAfter(lion(), 0.25, Tensor.from([1, 1, 1]), [1e-3, -50, 0]);
    expect(found).toEqual([0.75, 1.25, 1]);
  });

  it("follows the mean of earlier gradients against a small new one", async () => {
    // m = ½·4 = 2 after the first; c = ½·2 + ½·(−1) = ½: still down. m = 1 − ½ = ½; c = ¼ − ½: up.
    const optimizer = lion({ beta1: 0.5, beta2: 0.5 });
    expect(await valuesAfter(optimizer, 1, Tensor.from([0]), [4], [-1], [-1])).toEqual([-1]);
  });

  it("shrinks weights apart from the sign", async () => {
    const optimizer = lion({ weightDecay: 0.5 });
    expect(await valuesAfter(optimizer, 0.5, Tensor.from([4]), [1])).toEqual([4 - 0.5 * (1 + 2)]);
  });

  it("refuses a decay outside [0, 1)", () => {
    expect(() => lion({ beta2: 1.5 })).toThrow("lion: beta2 must be in [0, 1), got 1.5.");
  });
});

describe("Adafactor", () => {
  const plain = { epsilon2: 1, scaleParameter: false, relativeStep: false, clipThreshold: 1e9 };

  it("keeps a row and a column of a matrix, and stacks of them", () => {
    const { slots } = adafactor();
    expect(slots([3, 5])).toEqual({ row_var: [3, 1], col_var: [1, 5] });
    expect(slots([2, 3, 5])).toEqual({ row_var: [2, 3, 1], col_var: [2, 1, 5] });
    expect(slots([7])).toEqual({ variance: [7] });
    expect(slots([])).toEqual({ variance: [] });
  });

  it("moves by the sign where squares are a row times a column", async () => {
    // G² = (1, 4)ᵀ (1, 9): the factors hold all of it, as at the first step β̂₂ = 0.
    const found = await valuesAfter(
      adafactor(plain),
      0.5,
      Tensor.zeros([2, 2], "float32"),
      [1, -3, -2, 6],
    );
    expectClose(found, [-0.5, 0.5, 0.5, -0.5]);
  });

  it("takes a step as worked by hand where they are not", async () => {
    // G² = (1 0; 0 4): rows ½, 2, columns ½, 2, mean of rows 1.25; V̂ = (0.2 0.8; 0.8 3.2)
    const found = await valuesAfter(
      adafactor(plain),
      1,
      Tensor.zeros([2, 2], "float32"),
      [1, 0, 0, 2],
    );
    expectClose(found, [-1 / Math.sqrt(0.2), 0, 0, -2 / Math.sqrt(3.2)]);
  });

  it("never moves by more than d times the step, in root mean square", async () => {
    for (const clipThreshold of [0.5, 1]) {
      const optimizer = adafactor({ clipThreshold, scaleParameter: false });
      const start = Tensor.zeros([4, 6], "float32");
      const spread = Array.from(normals(1, [4, 6]).data as Float32Array, (x) => x ** 5);
      expect(rms(await valuesAfter(optimizer, 0.1, start, spread))).toBeLessThanOrEqual(
        0.1 * clipThreshold * (1 + 1e-6),
      );
    }
  });

  it("steps relative to the parameter's size, bounded by 1/√t", async () => {
    // RMS(θ) = 2, so α = 2·0.1; a learning rate of 5 counts as 1 at the first step.
    const gradient = [1, 1];
    expectClose(await valuesAfter(adafactor(), 0.1, Tensor.from([2, -2]), gradient), [1.8, -2.2]);
    expectClose(await valuesAfter(adafactor(), 5, Tensor.from([2, -2]), gradient), [0, -4]);
    const free = adafactor({ relativeStep: false });
    expectClose(await valuesAfter(free, 5, Tensor.from([2, -2]), gradient), [-8, -12]);
    // A parameter of zeros counts as ε₂ in size.
    expectClose(
      await valuesAfter(adafactor({ epsilon2: 0.5 }), 0.1, Tensor.from([0]), [3]),
      [-0.05],
    );
  });

  it("leaves a parameter alone whose gradient is zero, even with the smallest epsilon", async () => {
    const optimizer = adafactor({ epsilon1: 1e-30 });
    expect(await valuesAfter(optimizer, 0.1, Tensor.from([1, 2], [1, 2]), [0, 0])).toEqual([1, 2]);
    expect(await valuesAfter(optimizer, 0.1, Tensor.from([1, 2]), [0, 0])).toEqual([1, 2]);
  });

  it("refuses what is outside its range", () => {
    expect(() => adafactor({ beta2Decay: 0 })).toThrow(
      new OptionError("adafactor: beta2Decay must be below 0, got 0."),
    );
    expect(() => adafactor({ clipThreshold: 0 })).toThrow(
      "adafactor: clipThreshold must be above 0, got 0.",
    );
    expect(() => adafactor({ epsilon1: 0 })).toThrow("adafactor: epsilon1 must be above 0, got 0.");
  });
});

describe("Muon", () => {
  const shaped = (matrix: Tensor, options?: Parameters<typeof orthogonalize>[1]): Promise<Tensor> =>
    evaluate<Tensor>(reference(), (x: Value) => orthogonalize(x, options), matrix);
  /** X Xᵀ of rows. */
  const gram = ({ shape, data }: Tensor): number[][] => {
    const [rows, columns] = shape as [number, number];
    const at = (i: number, k: number): number => data[i * columns + k] as number;
    return Array.from({ length: rows }, (_, i) =>
      Array.from({ length: rows }, (__, j) =>
        Array.from({ length: columns }, (___, k) => at(i, k) * at(j, k)).reduce((a, b) => a + b),
      ),
    );
  };

  it("brings singular values near 1, where the published iteration ends between 0.68 and 1.13", async () => {
    const x = await shaped(normals(1, [4, 32]));
    // Eigenvalues lie within the sum of a row's other entries (Gershgorin) of its diagonal.
    gram(x).forEach((row, i) => {
      const others = row.reduce((sum, y, j) => sum + (j === i ? 0 : Math.abs(y)), 0);
      expect(row[i]! - others).toBeGreaterThan(0.3);
      expect(row[i]! + others).toBeLessThan(1.6);
    });
  });

  it("ends orthogonal with coefficients that keep 1 where it is, and more iterations", async () => {
    const coefficients = [15 / 8, -10 / 8, 3 / 8] as const;
    const x = await shaped(normals(2, [3, 5]), { coefficients, iterations: 20 });
    for (const [i, row] of gram(x).entries()) {
      const identity = row.map((_, j) => Number(i === j));
      expectClose(row, identity, 1e-6);
    }
  });

  it("does not depend on the size of the gradient", async () => {
    const small = await shaped(normals(3, [3, 4], 1e-4));
    const large = await shaped(normals(3, [3, 4], 1e4));
    expectClose(Array.from(small.numbers()), Array.from(large.numbers()), 1e-5);
  });

  it("treats a tall matrix as its transpose", async () => {
    const tall = normals(4, [6, 2]);
    const wide = Tensor.from(
      Array.from({ length: 12 }, (_, i) => tall.data[(i % 6) * 2 + Math.floor(i / 6)] as number),
      [2, 6],
    );
    const [a, b] = [await shaped(tall), await shaped(wide)];
    expectClose(
      Array.from({ length: 12 }, (_, i) => a.data[(i % 6) * 2 + Math.floor(i / 6)] as number),
      Array.from(b.numbers()),
    );
  });

  it("scales steps by the matrix's sizes", async () => {
    const start = Tensor.zeros([8, 2], "float32");
    const gradient = Array.from(normals(5, [8, 2]).numbers());
    const original = await valuesAfter(muon(), 1, start, gradient);
    const matched = await valuesAfter(muon({ scale: "match_rms_adamw" }), 1, start, gradient);
    // √(8/2) = 2 against 0.2·√8
    expectClose(
      matched,
      original.map((x) => (x / 2) * 0.2 * Math.sqrt(8)),
    );
  });

  it("only shrinks a parameter whose gradient is zero", async () => {
    const found = await valuesAfter(
      muon({ weightDecay: 0.5 }),
      0.5,
      Tensor.from([1, 2], [1, 2]),
      [0, 0],
    );
    expect(found).toEqual([0.75, 1.5]);
  });

  it("takes matrices only", () => {
    const sentence = "muon takes matrices only — put it into another group";
    expect(muon().refusal?.([3])).toBe(sentence);
    expect(muon().refusal?.([3, 3, 3, 3])).toBe(sentence);
    expect(muon().refusal?.([3, 4])).toBeUndefined();
  });

  it("refuses what is outside its range", () => {
    expect(() => muon({ scale: "none" as never })).toThrow(
      new OptionError('muon: scale must be original or match_rms_adamw, got "none".'),
    );
    expect(() => muon({ iterations: 0 })).toThrow(
      "muon: iterations must be a whole number from 1, got 0.",
    );
    expect(() => muon({ coefficients: [1, 2] as never })).toThrow(
      "muon: coefficients must be three numbers, got [1, 2].",
    );
    expect(() => muon({ momentum: 1 })).toThrow("muon: momentum must be in [0, 1), got 1.");
  });
});
