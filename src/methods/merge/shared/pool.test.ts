import { describe, expect, it } from "vitest";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { BreadcrumbPool, breadcrumb, mergeBreadcrumbs } from "./pool.ts";

const base = {
  w: Tensor.zeros([10, 10], "float32"),
  scale: Tensor.from([1]),
  steps: Tensor.from([3], [1], "int32"),
};

const tuned = (seed: number): typeof base => ({
  w: new Tensor("float32", [10, 10], new Rng(seed).normals(100)),
  scale: Tensor.from([1 + seed]),
  steps: Tensor.from([3], [1], "int32"),
});

describe("breadcrumb", () => {
  it("keeps exactly the entries between β and γ, and parameters of one element whole", () => {
    const { w } = tuned(1);
    const crumb = breadcrumb(base, tuned(1), { bottom: 0.8, top: 0.05 });
    const { places, values } = crumb.get("w")!;
    expect(places.length).toBe(15);
    const order = Array.from(w.data, (value, i) => [Math.abs(value), i] as const)
      .sort(([a], [b]) => b - a)
      .map(([, i]) => i);
    expect([...places].sort((a, b) => a - b)).toEqual(order.slice(5, 20).sort((a, b) => a - b));
    places.forEach((place, i) => {
      expect(values[i]).toBe(w.data[place]);
    });
    expect(crumb.get("scale")!.values).toEqual(Float32Array.of(1));
    expect(crumb.has("steps")).toBe(false);
  });

  it("refuses shares that leave nothing, and parameters that do not fit", () => {
    expect(() => breadcrumb(base, tuned(1), { bottom: 0.99, top: 0.02 })).toThrow(
      "breadcrumb: bottom and top must be shares from 0 that leave something between them, got 0.99 and 0.02.",
    );
    const { w, ...rest } = base;
    expect(() => breadcrumb(rest, tuned(1))).toThrow(
      'breadcrumb: the base lacks "w" — both must have the same parameters.',
    );
    expect(() => breadcrumb({ ...base, w: Tensor.zeros([5], "float32") }, tuned(1))).toThrow(
      'breadcrumb: "w" has shape (10, 10), the base\'s is (5,).',
    );
    expect(w.size).toBe(100);
  });
});

describe("a pool of breadcrumbs", () => {
  const [one, two] = [breadcrumb(base, tuned(1)), breadcrumb(base, tuned(2))];

  it("is the base at first, and again when all tasks are gone", () => {
    const pool = new BreadcrumbPool(base);
    expect(pool.materialise()).toEqual(base);
    pool.add("digits", one).add("clothes", two).remove("digits").remove("clothes");
    expect(pool.tasks).toEqual([]);
    expect(pool.materialise()).toEqual(base);
  });

  it("gives what a merge of its tasks gives, in whatever order they came", () => {
    const pool = new BreadcrumbPool(base, { alpha: 0.5 }).add("a", one).add("b", two);
    const other = new BreadcrumbPool(base, { alpha: 0.5 })
      .add("b", two)
      .add("x", two)
      .add("a", one);
    other.remove("x");
    const merged = mergeBreadcrumbs(base, [one, two], { alpha: 0.5 });
    expect(pool.materialise()).toEqual(merged);
    expect(other.materialise()).toEqual(merged);
    // 1 + 0.5 · ((2 - 1) + (3 - 1)) = 2.5
    expect(merged["scale"]!.data[0]).toBe(2.5);
  });

  it("knows its tasks by name", () => {
    const pool = new BreadcrumbPool(base).add("a", one);
    expect(() => pool.add("a", two)).toThrow(
      'breadcrumb: there is a task "a" already — remove it first.',
    );
    expect(() => pool.remove("b")).toThrow('breadcrumb: there is no task "b" — there are a.');
  });
});
