import { describe, expect, it } from "vitest";
import type { TensorRecord } from "../../../nn/module.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { compose, SparseDelta } from "./sparse-delta.ts";

describe("SparseDelta", () => {
  const delta = (entries: Record<string, readonly (readonly [number, number])[]>): SparseDelta =>
    new SparseDelta(
      new Map(
        Object.entries(entries).map(([path, pairs]) => [
          path,
          {
            indices: Int32Array.from(pairs, ([place]) => place),
            values: Float32Array.from(pairs, ([, value]) => value),
          },
        ]),
      ),
    );
  const task = delta({
    w: [
      [0, 1],
      [3, 2],
    ],
    b: [[1, 4]],
  });
  const language = delta({
    w: [
      [3, 0.5],
      [4, 8],
    ],
  });
  const theta = { w: Tensor.zeros([2, 3], "float32"), b: Tensor.from([1, 1]), n: Tensor.from([7]) };

  it("adds, overlaps and composes as by hand", () => {
    const made = compose(theta, [task, language], { n: Tensor.from([9]) });
    expect([...(made["w"]!.numbers() as Float32Array)]).toEqual([1, 0, 0, 2.5, 8, 0]);
    expect([...(made["b"]!.numbers() as Float32Array)]).toEqual([1, 5]);
    expect(made["n"]!.item()).toBe(9);
    expect(theta.w.data.every((x) => x === 0)).toBe(true);
    expect(task.overlap(language)).toBeCloseTo(1 / 3, 12);
    expect(language.overlap(task)).toBe(0.5);
    expect(task.add(language)).toEqual(language.add(task));
  });

  it("reads back what it packs, and refuses what is broken", () => {
    const sizes = (path: string): number | undefined => ({ w: 6, b: 2 })[path];
    const stored = { ...task.pack("m."), head: Tensor.from([1]) };
    const { delta: read, rest } = SparseDelta.unpack(stored, "f", sizes, "m.");
    expect(read).toEqual(task);
    expect(Object.keys(rest)).toEqual(["head"]);
    expect(task.toBytes().length).toBeGreaterThan(20);
    const ints = (...values: readonly number[]): Tensor =>
      Tensor.from(values, [values.length], "int32");
    const broken = (change: TensorRecord) => () =>
      SparseDelta.unpack({ ...task.pack(), ...change }, "f", sizes);
    expect(broken({ "w.sft_index": ints(3, 3) })).toThrow(
      'f: "w" has place 3 at 1, where at least 4 must stand.',
    );
    expect(broken({ "w.sft_index": ints(-1, 3) })).toThrow("has place -1 at 0");
    expect(broken({ "w.sft_index": ints(0, 6) })).toThrow(
      '"w" has 6 numbers, place 6 lies outside',
    );
    expect(broken({ "w.sft_index": ints(1) })).toThrow("needs as many int32 places");
    expect(broken({ "x.sft_index": ints(1) })).toThrow('"x" is no parameter that this model may');
    expect(() => SparseDelta.unpack({ "w.sft_value": Tensor.from([1]) }, "f", sizes)).toThrow(
      'f: "w" has no .sft_index.',
    );
    expect(() => delta({ q: [[0, 1]] }).apply(theta)).toThrow(
      'sparse delta: the model has no parameter "q" — was it made for another model?',
    );
    expect(() => delta({ b: [[2, 1]] }).apply(theta)).toThrow('"b" has 2 numbers, the difference');
  });
});
