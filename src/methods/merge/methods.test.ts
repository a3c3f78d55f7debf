/** What every merge promises, and units worked by hand. */
import { describe, expect, it } from "vitest";
import { readOptions } from "../../options.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { AnyMethod, MergeInput } from "../method.ts";
import { breadcrumbs } from "./breadcrumbs.ts";
import { dareLinear } from "./dare-linear.ts";
import { della } from "./della.ts";
import { dellaLinear } from "./della-linear.ts";
import { mergeMethods } from "./index.ts";
import { linear, weightedSum } from "./linear.ts";
import { modelStock, stockRatio } from "./model-stock.ts";
import { chancesByRank } from "./shared/sparsify.ts";
import { slerp, slerpBetween } from "./slerp.ts";
import { taskArithmetic } from "./task-arithmetic.ts";
import { ties } from "./ties.ts";

const vector = (...numbers: number[]): Tensor<"float32"> => Tensor.from(numbers);

/** Runs a method with options for each model; those of the first hold for all where only one is given. */
function run(
  method: AnyMethod,
  base: Tensor<"float32"> | undefined,
  tensors: readonly Tensor<"float32">[],
  options: readonly Readonly<Record<string, unknown>>[] = [{}],
  rng: Rng = new Rng(0),
): number[] {
  const own = tensors.map((_, i) =>
    readOptions(method.id, method.options as never, options[i] ?? options[0]!),
  );
  const input: MergeInput = { name: "w", base, tensors, rng };
  return Array.from(method.roles.merge!.merge(input, own as never).data);
}

function random(seed: number, shape: readonly number[] = [6, 40]): Tensor<"float32"> {
  const size = shape.reduce((a, b) => a * b, 1);
  return new Tensor("float32", shape, new Rng(seed).normals(size));
}

const inputsOf = ({
  roles,
}: AnyMethod): { base: Tensor<"float32"> | undefined; count: number } => ({
  base: roles.merge!.needsBase ? random(1) : undefined,
  count: roles.merge!.models.most ?? Math.max(3, roles.merge!.models.least),
});

describe.each(mergeMethods.map((method) => [method.id, method] as const))("%s", (_, method) => {
  const { base, count } = inputsOf(method);

  it("merges models that are all the same into that model, bit for bit", () => {
    const same = random(1);
    const merged = run(
      method,
      base && same,
      Array.from({ length: count }, () => same),
    );
    expect(merged).toEqual(Array.from(same.data));
  });

  it("leaves its inputs as they are, and gives the same bits again", () => {
    const tensors = Array.from({ length: count }, (_, i) => random(10 + i));
    const before = tensors.map(({ data }) => Array.from(data));
    const first = run(method, base, tensors);
    expect(run(method, base, tensors)).toEqual(first);
    expect(tensors.map(({ data }) => Array.from(data))).toEqual(before);
    expect(first.every(Number.isFinite)).toBe(true);
  });

  it("takes tensors without elements and of one element", () => {
    for (const shape of [[0], [0, 4], [1], []]) {
      const size = shape.reduce((a, b) => a * b, 1);
      const one = new Tensor("float32", shape, new Float32Array(size).fill(2));
      const merged = run(
        method,
        base && one,
        Array.from({ length: count }, () => one),
      );
      expect(merged).toEqual(new Array(size).fill(2));
    }
  });

  it("does not ask in what order models come, but for slerp and random masks", () => {
    const isOrdered = method.roles.merge!.models.most === 2;
    const isRandom = "rescale" in method.options;
    if (isOrdered || isRandom) return;
    const tensors = Array.from({ length: count }, (_, i) => random(20 + i));
    const there = run(method, base, tensors);
    const back = run(method, base, [...tensors].reverse());
    there.forEach((value, i) => {
      expect(Math.abs(value - back[i]!)).toBeLessThan(1e-6);
    });
  });

  it("with density 1 trims nothing: all of a single change is there", () => {
    if (!("density" in method.options)) return;
    const tuned = random(30);
    const merged = run(method, base, [tuned], [{ density: 1, weight: 1 }]);
    merged.forEach((value, i) => {
      expect(Math.abs(value - tuned.data[i]!)).toBeLessThan(1e-6);
    });
  });
});

describe("hand-worked", () => {
  it("linear: 0.75 · 2 + 0.25 · 6 = 3", () => {
    expect(run(linear, undefined, [vector(2), vector(6)], [{ weight: 3 }, { weight: 1 }])).toEqual([
      (3 * 2 + 1 * 6) / 4,
    ]);
    const whole = { normalize: false };
    expect(
      run(
        linear,
        undefined,
        [vector(2), vector(6)],
        [
          { weight: 3, ...whole },
          { weight: 1, ...whole },
        ],
      ),
    ).toEqual([12]);
    expect(() => weightedSum([Float32Array.of(1), Float32Array.of(2)], [1, -1], true)).toThrow(
      "linear: the weights 1, -1 add up to 0, and cannot be divided by it — change one, or set normalize to false.",
    );
  });

  it("slerp: half way between two axes lies at 45 degrees; nearly one direction is averaged", () => {
    const half = slerpBetween(Float32Array.of(2, 0), Float32Array.of(0, 2), 0.5);
    // sin(45°) / sin(90°) · 2 = √2 on both axes.
    expect(half[0]).toBeCloseTo(Math.SQRT2, 6);
    expect(half[1]).toBeCloseTo(Math.SQRT2, 6);
    expect([...slerpBetween(Float32Array.of(1, 0), Float32Array.of(3, 0), 0.5)]).toEqual([2, 0]);
    const [a, b] = [random(1), random(2)];
    expect(run(slerp, undefined, [a, b], [{ t: 0 }])).toEqual(Array.from(a.data));
    expect(run(slerp, undefined, [a, b], [{ t: 1 }])).toEqual(Array.from(b.data));
  });

  it("task arithmetic: 1 + 0.5 · (3 - 1) - 1 · (0 - 1) = 3", () => {
    expect(
      run(taskArithmetic, vector(1), [vector(3), vector(0)], [{ weight: 0.5 }, { weight: -1 }]),
    ).toEqual([3]);
  });

  it("TIES: trims half, elects a sign, averages what agrees", () => {
    // Changes (4, 1, -3, 2) and (-1, 2, -5, 3); half of each is kept: (4, 0, -3, 0) and (0, 0, -5, 3).
    // Signs elected: +, +, -, +. Means of those that agree: 4, 0, -4, 3.
    const base = vector(1, 1, 1, 1);
    const models = [vector(5, 2, -2, 3), vector(0, 3, -4, 4)];
    expect(run(ties, base, models, [{ density: 0.5 }])).toEqual([5, 1, -3, 4]);
    // Without division they add up: 4, 0, -8, 3.
    expect(run(ties, base, models, [{ density: 0.5, normalize: false }])).toEqual([5, 1, -7, 4]);
    // Where signs differ the larger sum wins: 4 - 1 > 0, so that only the first counts.
    expect(run(ties, base, models, [{ density: 1 }])[0]).toBe(5);
  });

  it("breadcrumbs: cuts the largest tenth, keeps two tenths, scales by α", () => {
    const tuned = vector(10, -9, 8, -7, 6, -5, 4, -3, 2, -1);
    const base = vector(...new Array<number>(10).fill(0));
    const merged = run(breadcrumbs, base, [tuned], [{ density: 0.2, gamma: 0.1, weight: 0.5 }]);
    expect(merged).toEqual([0, -4.5, 4, 0, 0, 0, 0, 0, 0, 0]);
    // By row: of each row of five the largest is cut (0.2) and two are kept (0.4).
    const rows = { density: 0.4, gamma: 0.2, weight: 1, granularity: "row" };
    expect(run(breadcrumbs, base.reshape([2, 5]), [tuned.reshape([2, 5])], [rows])).toEqual([
      0, -9, 8, 0, 0, 0, 4, -3, 0, 0,
    ]);
  });

  it("Model Stock: at right angles the base stays, along one line the average is taken", () => {
    expect(run(modelStock, vector(0, 0), [vector(1, 0), vector(0, 1)])).toEqual([0, 0]);
    expect(run(modelStock, vector(0, 0), [vector(1, 0), vector(3, 0)])).toEqual([2, 0]);
    // cos 60° = 1/2: t = 2 · 0.5 / 1.5 = 2/3 of the way; for three models 3 · 0.5 / 2 = 3/4.
    expect(stockRatio(2, 0.5)).toBeCloseTo(2 / 3, 12);
    expect(stockRatio(3, 0.5)).toBeCloseTo(3 / 4, 12);
    expect(stockRatio(2, -1)).toBe(0);
  });
});

describe("random masks", () => {
  const size = 200_000;
  const base = Tensor.zeros([400, size / 400], "float32");
  const ones = new Tensor("float32", base.shape, new Float32Array(size).fill(1));

  it("of DARE keep the density's share, and rescaled keep the mean", () => {
    const merged = run(dareLinear, base, [ones], [{ density: 0.3 }]);
    const kept = merged.filter((value) => value !== 0);
    expect(new Set(kept)).toEqual(new Set([Math.fround(1 / 0.3)]));
    // Five standard deviations of a binomial share.
    expect(Math.abs(kept.length / size - 0.3)).toBeLessThan(5 * Math.sqrt((0.3 * 0.7) / size));
    const plain = run(dareLinear, base, [ones], [{ density: 0.3, rescale: false }]);
    expect(new Set(plain)).toEqual(new Set([0, 1]));
  });

  it("of DELLA favour large changes, and rescaled keep the mean", () => {
    const ramp = Float32Array.from({ length: size }, (_, i) => 1 + (i % 500));
    const tuned = new Tensor("float32", base.shape, ramp);
    const merged = run(dellaLinear, base, [tuned], [{ density: 0.5, epsilon: 0.3 }]);
    const share = (from: number, to: number): number => {
      let [kept, all] = [0, 0];
      for (let i = 0; i < size; i++) {
        if (i % 500 < from || i % 500 >= to) continue;
        all++;
        if (merged[i] !== 0) kept++;
      }
      return kept / all;
    };
    expect(Math.abs(share(0, 50) - (0.2 + (0.6 * 24.5) / 499))).toBeLessThan(0.02);
    expect(Math.abs(share(450, 500) - (0.8 - (0.6 * 24.5) / 499))).toBeLessThan(0.02);
    const sum = merged.reduce((a, b) => a + b, 0);
    const whole = ramp.reduce((a, b) => a + b, 0);
    expect(Math.abs(sum / whole - 1)).toBeLessThan(0.01);
  });

  it("of DELLA have chances from density - ε to density + ε along each row", () => {
    const chances = chancesByRank(Float32Array.of(3, -1, 2, 5, 0, -9), 3, 0.5, 0.2);
    [0.7, 0.3, 0.5, 0.5, 0.3, 0.7].forEach((chance, i) => {
      expect(chances[i]).toBeCloseTo(chance, 6);
    });
    expect(() => run(della, base, [ones], [{ density: 0.9, epsilon: 0.2 }])).toThrow(
      /^della: density 0\.9 and epsilon 0\.2 give chances from 0\.7\d* to 1\.1, which must lie inside \(0, 1\) — take a smaller epsilon\.$/,
    );
  });

  it("depend on the stream that they are given, and on the model's place", () => {
    const one = run(dareLinear, base, [ones], [{}], new Rng(1));
    const other = run(dareLinear, base, [ones], [{}], new Rng(2));
    expect(one).not.toEqual(other);
    // Two models: where each alone is kept half of the time, both are in a quarter.
    const both = run(dareLinear, base, [ones, ones], [{}]);
    const share = both.filter((value) => value === 4).length / size;
    expect(Math.abs(share - 0.25)).toBeLessThan(0.01);
  });
});
