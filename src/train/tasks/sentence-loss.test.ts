/** Losses on vectors of sentences against sentence-transformers, and what missing rows do to them. */
import { describe, expect, test } from "vitest";
import {
  fixture,
  parityBackend,
  type RawTensor,
  relativeDifference,
  tensorOf,
} from "../../../test/support/fixture.ts";
import { valueAndGrad } from "../../autodiff/grad.ts";
import { evaluate } from "../../backend/compile.ts";
import { div, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import { Tensor } from "../../tensor/tensor.ts";
import {
  contrastive,
  cosent,
  cosineLoss,
  matryoshka,
  multipleNegatives,
  type SentenceLoss,
  triplet,
} from "./sentence-loss.ts";

const { sentences } = fixture<{
  readonly sentences: {
    readonly vectors: readonly RawTensor[];
    readonly scores: RawTensor;
    readonly labels: RawTensor;
    readonly cases: Readonly<
      Record<string, { readonly loss: number; readonly gradients: readonly RawTensor[] }>
    >;
  };
}>("task-metrics");
const vectors = sentences.vectors.map(tensorOf);
const scores = tensorOf(sentences.scores);
const labels = tensorOf(sentences.labels);

const cases: Readonly<Record<string, readonly [SentenceLoss, number, Tensor]>> = {
  mnrl: [multipleNegatives(), 2, labels],
  "mnrl-negatives": [multipleNegatives({ scale: 10 }), 3, labels],
  triplet: [triplet(), 3, labels],
  "triplet-cosine": [triplet({ distance: "cosine" }), 3, labels],
  cosine: [cosineLoss(), 2, scores],
  contrastive: [contrastive(), 2, labels],
  cosent: [cosent(), 2, scores],
};

/** Mean loss of the rows that count, and its gradients. */
async function run(
  loss: SentenceLoss,
  own: readonly Tensor[],
  wanted: Tensor,
  weights: Tensor,
): Promise<readonly [Tensor, readonly Tensor[]]> {
  return evaluate(
    await parityBackend(),
    (x: Value[], s: Value, w: Value) =>
      valueAndGrad((y: Value[]) => {
        const rows = loss.rows({ vectors: y, scores: s, weights: w });
        return div(sum(mul(rows, w)), sum(w));
      })(x),
    own as Tensor[],
    wanted,
    weights,
  );
}

const all = Tensor.from(new Float32Array(5).fill(1), [5], "float32");

describe.each(Object.entries(cases))("%s", (name, [loss, places, wanted]) => {
  const own = vectors.slice(0, places);

  test("is that of sentence-transformers, gradients too", async () => {
    const { loss: expected, gradients } = sentences.cases[name]!;
    const [value, found] = await run(loss, own, wanted, all);
    expect(Math.abs(value.item() - expected)).toBeLessThan(1e-5 * Math.max(1, expected));
    gradients.forEach((raw, i) => {
      expect(relativeDifference(found[i]!, tensorOf(raw)), `place ${i}`).toBeLessThan(1e-4);
    });
  });

  test("does not see rows that are missing", async () => {
    const rows = (tensor: Tensor, count: number): Tensor => {
      const width = tensor.size / tensor.shape[0]!;
      return Tensor.from(
        (tensor.data as Float32Array).slice(0, count * width),
        tensor.shape.length === 1 ? [count] : [count, width],
        "float32",
      );
    };
    const [whole] = await run(
      loss,
      own.map((x) => rows(x, 3)),
      rows(wanted, 3),
      Tensor.from([1, 1, 1], [3], "float32"),
    );
    const [padded, gradients] = await run(
      loss,
      own,
      wanted,
      Tensor.from([1, 1, 1, 0, 0], [5], "float32"),
    );
    expect(padded.item()).toBeCloseTo(whole.item(), 5);
    for (const gradient of gradients) {
      const rest = (gradient.data as Float32Array).slice(3 * 8);
      expect(Math.max(...rest.map(Math.abs))).toBe(0);
    }
  });
});

describe("matryoshka", () => {
  test("is the weighted sum of the losses of cut vectors", async () => {
    const own = vectors.slice(0, 2);
    const cut = own.map((x) => {
      const data = Float32Array.from({ length: 15 }, (_, i) =>
        Number(x.data[Math.floor(i / 3) * 8 + (i % 3)]),
      );
      return Tensor.from(data, [5, 3], "float32");
    });
    const base = multipleNegatives();
    const [whole] = await run(base, own, labels, all);
    const [small] = await run(base, cut, labels, all);
    const [both] = await run(matryoshka(base, [8, 3], [1, 0.5]), own, labels, all);
    expect(both.item()).toBeCloseTo(whole.item() + 0.5 * small.item(), 5);
  });

  test("refuses sizes beyond the vectors, and none", async () => {
    await expect(
      run(matryoshka(cosineLoss(), [9]), vectors.slice(0, 2), scores, all),
    ).rejects.toThrow("the Matryoshka size 9 is beyond the vectors' 8 numbers.");
    expect(() => matryoshka(cosineLoss(), [])).toThrow("must be 1 to 64 whole numbers");
    expect(() => matryoshka(cosineLoss(), [2], [1, 1])).toThrow("1 Matryoshka sizes need as many");
  });
});

test("settings outside their range are refused", () => {
  expect(() => multipleNegatives({ scale: 0 })).toThrow("scale must be a number above 0, got 0.");
  expect(() => triplet({ margin: -1 })).toThrow("margin must be a number from 0, got -1.");
  expect(() => contrastive(3)).toThrow("margin must be above 0 and at most 2, got 3.");
  expect(() => cosent(Number.NaN)).toThrow("scale must be a number above 0, got NaN.");
});
