import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { parityBackend } from "../../test/support/fixture.ts";
import { valueAndGrad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { square } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { checkpointed } from "./checkpoint.ts";
import { Dropout } from "./dropout.ts";
import { type ContextOptions, Module, type Noise } from "./module.ts";

class Outer extends Module {
  readonly drop = this.child("drop", new Dropout(0.25));
}

const outer = new Outer();

/** Uniforms of the site's name. */
function noiseFor(x: Value): Noise {
  return (site, shape) =>
    x.graph.lift(new Tensor("float32", shape, new Rng(1).fold(site).uniforms(sizeOf(shape))));
}

async function run(x: Tensor, options: (v: Value) => ContextOptions): Promise<Tensor> {
  return evaluate<Tensor>(
    await parityBackend(),
    (v: Value) => outer.drop.forward(outer.context({}, {}, options(v)), v),
    x,
  );
}

describe("Dropout", () => {
  const x = Tensor.from(new Float32Array(4000).fill(3), [40, 100]);

  test("zeroes its share and scales the rest", async () => {
    const y = await run(x, (v) => ({ training: true, noise: noiseFor(v) }));
    const kept = (y.data as Float32Array).filter((value) => value !== 0);
    expect(kept.every((value) => value === 4)).toBe(true);
    // 3000 expected, deviation √(4000 · 0.25 · 0.75) = 27
    expect(Math.abs(kept.length - 3000)).toBeLessThan(4 * 27);
  });

  test("leaves its input alone outside training", async () => {
    allclose(await run(x, () => ({})), x, 0);
  });

  test("drops the same elements when its block is computed again", async () => {
    const results = await Promise.all(
      [false, true].map(async (checkpoint) =>
        evaluate<[Tensor, Tensor]>(
          await parityBackend(),
          (v: Value) => {
            const noise = noiseFor(v);
            const context = outer.context({}, {}, { training: true, noise, checkpoint });
            return valueAndGrad((w: Value) =>
              sum(square(checkpointed(context, w, (u) => outer.drop.forward(context, u)))),
            )(v);
          },
          x,
        ),
      ),
    );
    expect(results[1]).toEqual(results[0]);
  });

  test("says where noise is missing, and which rates it takes", async () => {
    await expect(run(x, () => ({ training: true }))).rejects.toThrow(
      'dropout: "drop" trains with rate 0.25 but has no source of noise.',
    );
    expect(() => new Dropout(1)).toThrow("dropout must be in [0, 1), got 1.");
  });
});
