import { describe, expect, test } from "vitest";
import { expectCall, parityBackend, recordedCalls } from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { evaluate } from "../backend/compile.ts";
import { cast, exp, log } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  bceWithLogits,
  contrastiveLoss,
  cosineEmbeddingLoss,
  cosineSimilarity,
  crossEntropy,
  huberLoss,
  klDivergence,
  l1Loss,
  mseLoss,
  type Reduction,
  smoothL1Loss,
  softCrossEntropy,
} from "./losses.ts";

async function one(fn: (...x: never[]) => Value, ...args: Tensor[]): Promise<number> {
  return (await evaluate<Tensor>(await parityBackend(), fn, ...args)).item();
}

describe("losses equal PyTorch's, with their gradients", () => {
  test("crossEntropy", async () => {
    for (const call of recordedCalls("cross_entropy")) {
      await expectCall(call, ({ input, target, weight }) => {
        const { reduction, label_smoothing: labelSmoothing = 0 } = call.options;
        if (target!.dtype === "float32") return softCrossEntropy(input!, target!, reduction);
        // Classes on axis 1 become the last axis of rows.
        const logits = input!.rank === 3 ? reshape(transpose(input!, [0, 2, 1]), [-1, 4]) : input!;
        return crossEntropy(logits, reshape(target!, [-1]), {
          reduction,
          labelSmoothing,
          ...(weight && { classWeights: weight }),
        });
      });
    }
  });

  test("mseLoss, l1Loss, huberLoss and smoothL1Loss", async () => {
    const fns = {
      mse_loss: (a: Value, b: Value, r: Reduction) => mseLoss(a, b, r),
      l1_loss: (a: Value, b: Value, r: Reduction) => l1Loss(a, b, r),
      huber_loss: (a: Value, b: Value, r: Reduction, delta: number) => huberLoss(a, b, delta, r),
      smooth_l1_loss: (a: Value, b: Value, r: Reduction, _: number, beta: number) =>
        smoothL1Loss(a, b, beta, r),
    };
    for (const [op, fn] of Object.entries(fns)) {
      for (const call of recordedCalls(op)) {
        const { reduction, delta, beta } = call.options;
        await expectCall(call, ({ input, target }) => fn(input!, target!, reduction, delta, beta));
      }
    }
  });

  test("bceWithLogits, with weights of positive targets too", async () => {
    for (const call of recordedCalls("binary_cross_entropy_with_logits")) {
      await expectCall(call, ({ input, target, pos_weight }) =>
        bceWithLogits(input!, target!, call.options["reduction"], pos_weight),
      );
    }
  });

  test("klDivergence", async () => {
    for (const call of recordedCalls("kl_div")) {
      await expectCall(call, ({ input, target }) => {
        const { reduction, log_target: isLog } = call.options;
        const logP = isLog ? target! : log(target!);
        return klDivergence(logP, input!, reduction === "batchmean" ? "mean" : reduction);
      });
    }
  });

  test("cosineSimilarity and cosineEmbeddingLoss", async () => {
    for (const call of recordedCalls("cosine_similarity")) {
      await expectCall(call, ({ x1, x2 }) => cosineSimilarity(x1!, x2!));
    }
    for (const call of recordedCalls("cosine_embedding_loss")) {
      await expectCall(call, ({ input1, input2, target }) =>
        cosineEmbeddingLoss(input1!, input2!, cast(target!, "float32"), call.options["margin"]),
      );
    }
  });
});

describe("crossEntropy", () => {
  test("is log V for equal logits", async () => {
    const value = await one(
      (x: Value, t: Value) => crossEntropy(x, t),
      Tensor.zeros([3, 7], "float32"),
      Tensor.from([0, 3, 6], [3], "int32"),
    );
    expect(value).toBeCloseTo(Math.log(7), 6);
  });

  test("is 0 when no row carries loss", async () => {
    const value = await one(
      (x: Value, t: Value) => crossEntropy(x, t),
      Tensor.zeros([2, 3], "float32"),
      Tensor.from([-100, -100], [2], "int32"),
    );
    expect(value).toBe(0);
  });

  test("weighs rows", async () => {
    // Row losses log 2 and log(1 + e^2), weights 3 and 1.
    const logits = Tensor.from([0, 0, 0, 2], [2, 2]);
    const value = await one(
      (x: Value, t: Value, w: Value) => crossEntropy(x, t, { weights: w }),
      logits,
      Tensor.from([0, 0], [2], "int32"),
      Tensor.from([3, 1]),
    );
    const second = Math.log(1 + Math.exp(2));
    expect(value).toBeCloseTo((3 * Math.log(2) + second) / 4, 6);
  });

  test("refuses a smoothing of 1", () => {
    expect(() => crossEntropy({} as Value, {} as Value, { labelSmoothing: 1 })).toThrow(
      "labelSmoothing must be in [0, 1), got 1.",
    );
  });
});

describe("contrastiveLoss", () => {
  test("is log N when all rows are the same", async () => {
    const rows = Tensor.from([1, 0, 1, 0, 1, 0], [3, 2]);
    const value = await one((a: Value, b: Value) => contrastiveLoss(a, b, 10), rows, rows);
    expect(value).toBeCloseTo(Math.log(3), 5);
  });

  test("does not change when the sides change places", async () => {
    const rng = new Rng(1);
    const [a, b] = [1, 2].map(() => new Tensor("float32", [4, 3], rng.normals(12)));
    const fn = (x: Value, y: Value): Value => contrastiveLoss(x, y, 2);
    expect(await one(fn, a!, b!)).toBeCloseTo(await one(fn, b!, a!), 5);
  });
});

test("gradients of losses hold against central differences", async () => {
  const rng = new Rng(3);
  const [x, y] = [randomTensor(rng, [3, 4]), randomTensor(rng, [3, 4])];
  await checkGradient((a, b) => cosineSimilarity(a!, b!), [x, y]);
  await checkGradient((a, b) => huberLoss(a!, b!, 0.5), [x, y]);
  await checkGradient((a, b) => bceWithLogits(a!, exp(b!), "mean", 2), [x, y]);
});
