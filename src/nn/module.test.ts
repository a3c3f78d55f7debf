import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { parityBackend } from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Embedding } from "./embedding.ts";
import { ones, zeros } from "./init.ts";
import { Linear } from "./linear.ts";
import { type Context, Module, ModuleList, type Slot, type ValueRecord } from "./module.ts";

/** Counts its calls and adds up its inputs, in state. */
class Counter extends Module {
  readonly scale: Slot = this.parameter("scale", [2], ones);
  readonly total: Slot = this.state("total", [2], zeros);
  readonly calls: Slot = this.state("calls", [], zeros, "int32");

  forward(context: Context, x: Value): Value {
    context.set(this.total, add(context.get(this.total), x));
    context.set(this.calls, add(context.get(this.calls), 1));
    return mul(context.get(this.total), context.get(this.scale));
  }
}

class Pair extends Module {
  readonly list = this.child("list", new ModuleList([new Counter(), new Counter()]));
}

describe("Module", () => {
  const pair = new Pair();
  const { params, state } = pair.init(new Rng(1));
  const step = async (): Promise<[Tensor, Record<string, Tensor>]> =>
    evaluate<[Tensor, Record<string, Tensor>]>(
      await parityBackend(),
      (p: ValueRecord, s: ValueRecord, x: Value) =>
        pair.apply(p, s, (context) => {
          const [first, second] = pair.list.items;
          first!.forward(context, x);
          return second!.forward(context, first!.forward(context, x));
        }),
      params,
      state,
      Tensor.from([1, 2]),
    );

  test("names slots by their path, in order", () => {
    expect(Object.keys(params)).toEqual(["list.0.scale", "list.1.scale"]);
    expect(Object.keys(state)).toEqual([
      "list.0.total",
      "list.0.calls",
      "list.1.total",
      "list.1.calls",
    ]);
    expect(state["list.0.calls"]!.dtype).toBe("int32");
  });

  test("sees its state as updated within a call", async () => {
    const [y, next] = await step();
    allclose(y, Tensor.from([2, 4]), tolerance.float32);
    expect(next["list.0.calls"]!.item()).toBe(2);
    expect(next["list.1.calls"]!.item()).toBe(1);
  });

  test("applied twice from the same state gives the same, and leaves that state", async () => {
    expect(await step()).toEqual(await step());
    expect(state["list.0.calls"]!.item()).toBe(0);
  });

  test("gives each parameter numbers of its path alone", () => {
    const alone = new Linear(3, 2).init(new Rng(5).fold("a"));
    const again = new Linear(3, 2).init(new Rng(5).fold("a"));
    expect(alone).toEqual(again);
    const other = new Linear(3, 2).init(new Rng(6).fold("a"));
    expect(alone.params["weight"]).not.toEqual(other.params["weight"]);
  });

  test("names what is missing, and shapes that do not fit", async () => {
    const linear = new Linear(3, 2);
    const run = async (p: Record<string, Tensor>): Promise<Tensor> =>
      evaluate<Tensor>(
        await parityBackend(),
        (q: ValueRecord, x: Value) => linear.forward(linear.context(q), x),
        p,
        Tensor.zeros([2, 3], "float32"),
      );
    await expect(run({ weight: Tensor.zeros([2, 3], "float32") })).rejects.toThrow(
      'apply: no value for "bias".',
    );
    await expect(run({ weight: Tensor.zeros([3, 2], "float32") })).rejects.toThrow(
      'apply: "weight" must have shape (2, 3), got (3, 2).',
    );
  });
});

describe("Linear", () => {
  test("is x Wᵀ + b over any leading axes, whichever way the weight is stored", async () => {
    // (1, 2) · (3, 4) + 5 = 16, (1, 2) · (-1, 1) + 6 = 7
    const x = Tensor.from([1, 2, 0, 0], [1, 2, 2]);
    const expected = Tensor.from([16, 7, 5, 6], [1, 2, 2]);
    for (const [inputsFirst, weight] of [
      [false, [3, 4, -1, 1]],
      [true, [3, -1, 4, 1]],
    ] as const) {
      const layer = new Linear(2, 2, { inputsFirst });
      const y = await evaluate<Tensor>(
        await parityBackend(),
        (p: ValueRecord, v: Value) => layer.forward(layer.context(p), v),
        { weight: Tensor.from(weight, [2, 2]), bias: Tensor.from([5, 6]) },
        x,
      );
      allclose(y, expected, tolerance.float32);
    }
  });

  test("reads its weight and output where the context replaces them", async () => {
    const layer = new Linear(2, 1, { bias: false });
    const y = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, v: Value) => {
        const replace = new Map([[layer.weight, () => mul(p["weight"]!, 10)]]);
        const sites = new Map([[layer, (_: Value, out: Value) => add(out, 1)]]);
        return layer.forward(layer.context(p, {}, { replace, sites }), v);
      },
      { weight: Tensor.from([1, 2], [1, 2]) },
      Tensor.from([1, 1, 2, 0], [2, 2]),
    );
    allclose(y, Tensor.from([31, 21], [2, 1]), tolerance.float32);
  });
});

test("Embedding reads rows of its table", async () => {
  const layer = new Embedding(3, 2);
  const y = await evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, ids: Value) => layer.forward(layer.context(p), ids),
    { weight: Tensor.from([0, 1, 10, 11, 20, 21], [3, 2]) },
    Tensor.from([2, 0], [1, 2], "int32"),
  );
  allclose(y, Tensor.from([20, 21, 0, 1], [1, 2, 2]), 0);
});
