import { describe, expect, it } from "vitest";
import { directionsOf, started, starts, unit } from "../../../test/support/lora-start.ts";
import { matrix, svd } from "../../tensor/linalg/index.ts";
import { loraGa, loraGaFactors } from "./lora-ga.ts";

// diag(9, 4, 1) over a row of zeros: U and V are axes.
const gradient = matrix(4, 3, Float64Array.of(9, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0));
const sizes = (data: Float64Array, factor: number): number[] =>
  [...data].map((x) => Math.round((1e9 * Math.abs(x)) / factor) / 1e9);

describe("LoRA-GA", () => {
  it("takes A from the gradient's first directions and B from the next, worked by hand", () => {
    const { a, b } = loraGaFactors(svd(gradient), 1);
    const factor = 4 ** 0.25 / 4;
    expect(sizes(a.data, factor)).toEqual([1, 0, 0]);
    expect(sizes(b.data, factor)).toEqual([0, 1, 0, 0]);
  });

  it.each([
    ["A2rBr", [0, 1, 0], [1, 0, 0, 0]],
    ["ArBr", [0, 1, 0], [1, 0, 0, 0]],
    ["ArB2r", [1, 0, 0], [0, 1, 0, 0]],
  ] as const)("takes them as %s says, smaller with gamma", (direction, ofA, ofB) => {
    const { a, b } = loraGaFactors(svd(gradient), 1, { direction, gamma: 4 });
    const factor = 4 ** 0.25 / 2;
    expect(sizes(a.data, factor)).toEqual(ofA);
    expect(sizes(b.data, factor)).toEqual(ofB);
  });

  it("overlaps both halves where there are fewer than 2r directions", () => {
    const { a, b } = loraGaFactors(svd(gradient), 2);
    const factor = 4 ** 0.25 / 4;
    expect(sizes(a.data, factor)).toEqual([1, 0, 0, 0, 1, 0]);
    expect(sizes(b.data, factor)).toEqual([0, 0, 1, 0, 0, 1, 0, 0]);
  });

  it("begins along the directions that peft finds in its own gradients", async () => {
    const one = starts.cases.find(({ init }) => init === "lora_ga")!;
    const { adapter, found } = await started(one, loraGa, { batches: 1 });
    let seen = 0;
    for (const [name, theirs, ours] of directionsOf(one, adapter, found.params)) {
      const [first, second] = [unit(theirs), unit(ours)];
      const cosine = first.reduce((sum, x, j) => sum + x * second[j]!, 0);
      // Float32 gradients tell directions of small singular values less sharply.
      expect(cosine, name).toBeGreaterThan(0.999);
      seen++;
    }
    expect(seen).toBe(2 * 4 * adapter.layers.size);
    const { gradientEnergy } = found.report as { gradientEnergy: Record<string, number> };
    for (const share of Object.values(gradientEnergy)) expect(share).toBeGreaterThan(0.5);
  });
});
