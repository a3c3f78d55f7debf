/** Weights by the rule of `scripts/parity/by_rule.py`, and the comparison of gradients recorded in short. */
import { expect } from "vitest";
import type { Module, TensorRecord } from "../../src/nn/index.ts";
import { type StaticShape, sizeOf } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

export function fnv1a(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

export function uniforms(name: string, count: number): Float64Array {
  const start = fnv1a(name);
  return Float64Array.from({ length: count }, (_, i) => {
    let h = (start + Math.imul(2654435769 | 0, i)) | 0;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return ((h ^ (h >>> 16)) >>> 8) / 2 ** 24;
  });
}

/** The numbers of one tensor. */
export function numbersByRule(name: string, shape: StaticShape): Tensor<"float32"> {
  const center = shape.length >= 2 ? 0 : name.endsWith("weight") ? 1 : 0;
  const width = shape.length >= 2 ? 0.8 : 0.2;
  const values = uniforms(name, sizeOf(shape)).map((u) => width * u - width / 2 + center);
  return new Tensor("float32", shape, Float32Array.from(values));
}

/** Every parameter of a model. */
export function paramsByRule(model: Module): TensorRecord {
  return Object.fromEntries(
    [...model.slots()].map(([path, slot]) => [path, numbersByRule(path, slot.shape)]),
  );
}

/** What a fixture's loss multiplies the outputs by. */
export function lossPattern(shape: StaticShape): Tensor<"float32"> {
  return numbersByRule("the loss", shape);
}

/** Of a gradient its norm, its largest, and values at a few places. */
export type ShortGradient = readonly [norm: number, largest: number, ...values: number[]];

/** Asserts that gradients are the recorded ones, and that none is left out on either side. */
export function expectGradients(
  actual: TensorRecord,
  expected: Readonly<Record<string, ShortGradient>>,
  within: number,
): void {
  const top = Math.max(...Object.values(expected).map(([, largest]) => largest));
  expect(Object.keys(actual).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, [expectedNorm, largest, ...values]] of Object.entries(expected)) {
    const data = actual[name]!.numbers();
    const norm = Math.sqrt(Array.from(data).reduce((sum, x) => sum + x * x, 0));
    // What is zero in exact arithmetic (the bias of keys) is noise on both sides.
    const size = Math.max(largest, 1e-3 * top);
    const what = `gradient of ${name}`;
    expect(Math.abs(norm - expectedNorm), what).toBeLessThan(
      within * Math.max(expectedNorm, size) + within * size,
    );
    values.forEach((value, k) => {
      const place = (k * 7919 + 13) % data.length;
      expect(Math.abs(data[place]! - value), `${what} at ${place}`).toBeLessThan(within * size);
    });
  }
}
