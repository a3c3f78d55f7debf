import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { parityBackend } from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGrad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { square } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { TensorRecord, ValueRecord } from "./module.ts";
import { capacityFor, combine, dispatch, loadBalancingLoss, Moe, route } from "./moe.ts";

const moe = new Moe(6, { nExperts: 4, topK: 2, dFeedForward: 5 });
const { params } = moe.init(new Rng(1));
const x = new Tensor("float32", [10, 6], new Rng(2).normals(60));

interface Found {
  output: Tensor;
  load: Tensor;
  overflow: Tensor;
  needed: Tensor;
}

async function run(capacity: number): Promise<Found> {
  return evaluate<Found & Record<string, Tensor>>(
    await parityBackend(),
    (p: ValueRecord, v: Value) => {
      const { output, load, overflow, needed } = moe.forward(moe.context(p), v, capacity);
      return { output, load, overflow, needed };
    },
    params,
    x,
  );
}

const ints = (tensor: Tensor): number[] => [...(tensor.data as Int32Array)];

describe("dispatch", () => {
  test("puts tokens in order of arrival, and counts what does not fit", async () => {
    // Expert 0 is asked for by tokens 0, 1 and 2, has room for two; expert 1 by token 3.
    const found = await evaluate<Record<string, Tensor>>(
      await parityBackend(),
      (rows: Value, experts: Value) => {
        const sent = dispatch(rows, experts, 2, 2);
        const weights = rows.graph.lift(Tensor.from([1, 10, 100, 2], [4, 1]));
        return { ...sent, back: combine(sent.rows, sent, weights) };
      },
      Tensor.from([1, 2, 3, 4], [4, 1]),
      Tensor.from([0, 0, 0, 1], [4, 1], "int32"),
    );
    allclose(found["rows"]!, Tensor.from([1, 2, 4, 0], [2, 2, 1]), 0);
    expect(ints(found["load"]!)).toEqual([3, 1]);
    expect(found["overflow"]!.item()).toBe(1);
    allclose(found["back"]!, Tensor.from([1, 20, 0, 8], [4, 1]), 0);
  });

  test("and back is the identity when all fits and weights sum to 1", async () => {
    const back = await evaluate<Tensor>(
      await parityBackend(),
      (rows: Value, experts: Value) => {
        const sent = dispatch(rows, experts, 4, 16);
        const half = rows.graph.lift(Tensor.from(new Float32Array(20).fill(0.5), [10, 2]));
        return combine(sent.rows, sent, half);
      },
      x,
      Tensor.from(
        Array.from({ length: 20 }, (_, i) => (i * 7 + (i >> 1)) % 4),
        [10, 2],
        "int32",
      ),
    );
    allclose(back, x, tolerance.float32);
  });
});

describe("Moe", () => {
  test("equals its dense form when nothing is dropped, in its gradients too", async () => {
    const gradients = async (sparse: boolean): Promise<[Tensor, [TensorRecord, Tensor]]> =>
      evaluate<[Tensor, [TensorRecord, Tensor]]>(
        await parityBackend(),
        (p: ValueRecord, v: Value) =>
          valueAndGrad(([q, w]: readonly [ValueRecord, Value]) => {
            const context = moe.context(q);
            const { output } = sparse ? moe.forward(context, w, 16) : moe.dense(context, w);
            return sum(square(output));
          })([p, v]),
        params,
        x,
      );
    const [sparse, dense] = [await gradients(true), await gradients(false)];
    allclose(sparse[0], dense[0], tolerance.float32);
    allclose(sparse[1][1], dense[1][1], tolerance.float32, "dx");
    for (const [name, expected] of Object.entries(dense[1][0])) {
      allclose(sparse[1][0][name]!, expected, tolerance.float32, name);
    }
  });

  test("says how many rows would have been enough", async () => {
    const small = await run(2);
    expect(ints(small.load).reduce((a, b) => a + b)).toBe(20);
    const beyond = ints(small.load).reduce((total, n) => total + Math.max(0, n - 2), 0);
    expect(small.overflow.item()).toBe(beyond);
    expect(beyond).toBeGreaterThan(0);
    const enough = await run(small.needed.item());
    expect(enough.overflow.item()).toBe(0);
    allclose((await run(16)).output, enough.output, tolerance.float32);
  });

  test("refuses more experts than there are", () => {
    expect(() => new Moe(6, { nExperts: 2, topK: 3, dFeedForward: 4 })).toThrow(
      "moe: topK must be in [1, 2], got 3.",
    );
  });
});

describe("route", () => {
  test("weighs the best experts, normalised or as they are", async () => {
    const logits = Tensor.from([Math.log(1), Math.log(3), Math.log(4)], [1, 3]);
    const run = async (normalize: boolean): Promise<Tensor[]> =>
      evaluate<Tensor[]>(
        await parityBackend(),
        (v: Value) => {
          const { weights, experts } = route(v, 2, normalize);
          return [weights, experts];
        },
        logits,
      );
    const [weights, experts] = await run(true);
    allclose(weights!, Tensor.from([4 / 7, 3 / 7], [1, 2]), tolerance.float32);
    expect(ints(experts!)).toEqual([2, 1]);
    allclose((await run(false))[0]!, Tensor.from([0.5, 0.375], [1, 2]), tolerance.float32);
  });
});

describe("loadBalancingLoss", () => {
  const loss = async (logits: readonly number[]): Promise<number> =>
    (
      await evaluate<Tensor>(
        await parityBackend(),
        (v: Value) => loadBalancingLoss(route(v, 1)),
        Tensor.from(logits, [logits.length / 2, 2]),
      )
    ).item();

  test("is K when balanced and E when all go to one expert", async () => {
    expect(await loss([50, 0, 0, 50])).toBeCloseTo(1, 5);
    expect(await loss([50, 0, 50, 0])).toBeCloseTo(2, 5);
  });

  test("has the gradient of its formula", async () => {
    await checkGradient((v) => loadBalancingLoss(route(v!, 2)), [randomTensor(new Rng(3), [5, 4])]);
  });
});

test("capacityFor is a power of two above an even share", () => {
  // 100 · 2 / 8 = 25, with a quarter to spare 31.25
  expect(capacityFor(100, 8, 2)).toBe(32);
  expect(capacityFor(100, 8, 2, 1)).toBe(32);
  expect(capacityFor(3, 8, 1)).toBe(1);
});
