import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectCall,
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  type RecordedCall,
} from "../../test/support/fixture.ts";
import { checkGradient, checkSecond, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate, spec, trace } from "../backend/compile.ts";
import { equal, mul, not, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { repeatInterleave, trilMask } from "../ir/indexing.ts";
import { concat, reshape, slice } from "../ir/layout.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  type AttentionOptions,
  alibiBias,
  alibiSlopes,
  attention,
  causalBias,
  positionMask,
} from "./attention.ts";

interface Case extends RecordedCall {
  readonly mask?: RawTensor;
}

const recorded = fixture<{
  inputs: RawTensors;
  gradOutput: RawTensor;
  cases: Record<string, Case>;
}>("attention");

/** A recorded case with the inputs that it shares. */
function caseOf(name: string): Case {
  const { inputs, gradOutput, cases } = recorded;
  const own = cases[name]!;
  const mask = own.mask ? { mask: own.mask } : {};
  return {
    ...own,
    gradOutput: own.gradOutput ?? gradOutput,
    op: name,
    inputs: { ...inputs, ...own.inputs, ...mask },
  };
}

function draw(rng: Rng, ...shape: number[]): Tensor<"float32"> {
  return new Tensor("float32", shape, rng.normals(sizeOf(shape)));
}

describe("attention equals PyTorch's, with its gradients", () => {
  const kinds: Record<string, (mask: Value) => AttentionOptions> = {
    causal: () => ({ causal: true }),
    booleanMask: (mask) => ({ mask: not(equal(mask, 0)) }),
    additiveMask: (mask) => ({ bias: mask }),
    scale: () => ({ scale: 0.3 }),
    slidingWindow: () => ({ causal: true, window: 3 }),
    alibi: () => ({ causal: true, bias: alibiBias(2, 6, 6) }),
    gqa: () => ({ causal: true }),
    cross: () => ({}),
  };
  test.each(Object.keys(kinds))("%s", async (name) => {
    await expectCall(caseOf(name), ({ q, k, v, mask }) =>
      attention(q!, k!, v!, kinds[name]!(mask!)),
    );
  });

  test("a row that sees no key, which here is the mean of the values instead of 0", async () => {
    const { output, gradOutput, ...rest } = caseOf("rowWithoutKeys");
    const isHidden = (i: number): boolean => i < 48 && (i >> 2) % 6 === 2;
    // That row apart: the loss does not see it, and the recorded output is 0 there.
    const zeroed = gradOutput.data.map((g, i) => (isHidden(i) ? 0 : g));
    const call = { ...rest, output, gradOutput: { ...gradOutput, data: zeroed } };
    const shown = Tensor.from(
      zeroed.map((_, i) => (isHidden(i) ? 0 : 1)),
      gradOutput.shape,
    );
    await expectCall(call, ({ q, k, v, mask }) =>
      mul(attention(q!, k!, v!, { mask: not(equal(mask!, 0)) }), shown),
    );
    const mean = await evaluate<Tensor>(
      await parityBackend(),
      (q: Value, v: Value) =>
        slice(
          attention(q, v, v, { mask: q.graph.lift(Tensor.from([0], [1, 1, 1, 1], "bool")) }),
          2,
          0,
          1,
        ),
      Tensor.from([1, 2], [1, 1, 1, 2]),
      Tensor.from([1, 2, 3, 6], [1, 1, 2, 2]),
    );
    allclose(mean, Tensor.from([2, 4], [1, 1, 1, 2]), tolerance.float32);
  });
});

describe("attention", () => {
  test("with a past is attention over the joined sequence", async () => {
    const rng = new Rng(1);
    const all = { q: draw(rng, 2, 4, 7, 3), k: draw(rng, 2, 2, 7, 3), v: draw(rng, 2, 2, 7, 3) };
    const [whole, parts, masked] = await evaluate<Tensor[]>(
      await parityBackend(),
      ({ q, k, v }: Record<string, Value>) => {
        const late = (x: Value): Value => slice(x, 2, 4);
        const early = (x: Value): Value => slice(x, 2, 0, 4);
        const [keys, values] = [early(k!), early(v!)];
        const seen = q!.graph.lift(Tensor.from([1, 1, 1, 1], [1, 1, 1, 4], "bool"));
        const past = { keys, values, mask: seen };
        const half = q!.graph.lift(Tensor.from([0, 0, 1, 1], [1, 1, 1, 4], "bool"));
        const cut = (x: Value): Value => slice(x, 2, 2);
        const shorter = attention(cut(q!), cut(k!), cut(v!), { causal: true });
        return [
          slice(attention(q!, k!, v!, { causal: true }), 2, 4),
          attention(late(q!), late(k!), late(v!), { causal: true, past }),
          // Hidden entries of a past count for nothing.
          sub(
            attention(late(q!), late(k!), late(v!), {
              causal: true,
              past: { ...past, mask: half },
            }),
            slice(shorter, 2, 2),
          ),
        ];
      },
      all,
    );
    allclose(parts!, whole!, tolerance.float32);
    allclose(masked!, Tensor.zeros(masked!.shape, "float32"), tolerance.float32);
  });

  test("with grouped keys is attention with each key repeated", async () => {
    const rng = new Rng(2);
    const all = { q: draw(rng, 1, 6, 5, 4), k: draw(rng, 1, 2, 5, 4), v: draw(rng, 1, 2, 5, 4) };
    const [grouped, repeated] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      ({ q, k, v }: Record<string, Value>) => [
        attention(q!, k!, v!, { causal: true }),
        attention(q!, repeatInterleave(k!, 3, 1), repeatInterleave(v!, 3, 1), { causal: true }),
      ],
      all,
    );
    allclose(grouped, repeated, tolerance.float32);
  });

  test("a causal rule equals its mask, and one query sees every key", async () => {
    const rng = new Rng(3);
    const [q, k, v] = [draw(rng, 1, 2, 3, 4), draw(rng, 1, 2, 5, 4), draw(rng, 1, 2, 5, 4)];
    const [rule, mask, one, free] = await evaluate<Tensor[]>(
      await parityBackend(),
      (a: Value, b: Value, c: Value) => {
        const allowed = trilMask(3, 5, 3);
        const last = slice(a, 2, 2);
        return [
          attention(a, b, c, { causal: true }),
          attention(a, b, c, { mask: allowed }),
          attention(last, b, c, { causal: true }),
          attention(last, b, c),
        ];
      },
      q,
      k,
      v,
    );
    allclose(rule!, mask!, tolerance.float32);
    allclose(one!, free!, tolerance.float32);
  });

  test("has the gradient of its formula, with a window and grouped keys", async () => {
    const rng = new Rng(4);
    await checkGradient(
      (q, k, v) => attention(q!, k!, v!, { causal: true, window: 2 }),
      [
        randomTensor(rng, [1, 2, 3, 2]),
        randomTensor(rng, [1, 1, 3, 2]),
        randomTensor(rng, [1, 1, 3, 2]),
      ],
    );
  });

  test("refuses heads that do not divide, and shapes that do not fit", async () => {
    const run = async (...shapes: number[][]): Promise<unknown> =>
      evaluate(
        await parityBackend(),
        (q: Value, k: Value, v: Value) => attention(q, k, v),
        ...shapes.map((shape) => Tensor.zeros(shape, "float32")),
      );
    await expect(run([1, 3, 2, 4], [1, 2, 2, 4], [1, 2, 2, 4])).rejects.toThrow(
      "attention: 3 heads do not divide into 2 groups of keys.",
    );
    await expect(run([1, 2, 4], [1, 2, 2, 4], [1, 2, 2, 4])).rejects.toThrow(
      "attention: needs q (B, H, T, D), k and v (B, Hkv, S, D), got (1, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4).",
    );
  });

  test("has a second derivative", async () => {
    const rng = new Rng(5);
    const shapes = [
      [1, 2, 2, 2],
      [1, 1, 3, 2],
      [1, 1, 3, 2],
    ];
    await checkSecond(
      (q, k, v) => attention(q!, k!, v!),
      shapes.map((shape) => randomTensor(rng, shape)),
    );
  });
});

describe("a window", () => {
  const rng = new Rng(8);
  const T = 7;
  const [q, k, v] = [2, 1, 1].map(
    (heads) => new Tensor("float32", [1, heads, T, 4], rng.normals(heads * T * 4)),
  ) as [Tensor, Tensor, Tensor];
  const rows = (x: Value, from: number, to?: number): Value => slice(x, 2, from, to);

  test("holds over a past, whatever its padding", async () => {
    const [late, joined] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (a: Value, b: Value, c: Value, mask: Value, positions: Value) => {
        const rule = { causal: true, window: 3 } as const;
        // Two empty slots before the past and one after it: its n-th token is at position n.
        const past = (x: Value): Value => concat([rows(x, 0, 2), rows(x, 0, 5), rows(x, 0, 1)], 2);
        const rest = attention(rows(a, 5), rows(b, 5), rows(c, 5), {
          ...rule,
          positions,
          past: { keys: past(b), values: past(c), mask },
        });
        return [rest, rows(attention(a, b, c, rule), 5)];
      },
      q,
      k,
      v,
      Tensor.from([0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 8], "bool"),
      Tensor.from([5, 6], [1, 2], "int32"),
    );
    allclose(late, joined, tolerance.float32);
  });

  test("over a past needs positions", async () => {
    const run = async (): Promise<unknown> =>
      evaluate(
        await parityBackend(),
        (a: Value, b: Value, c: Value, mask: Value) =>
          attention(a, b, c, { causal: true, window: 3, past: { keys: b, values: c, mask } }),
        q,
        k,
        v,
        Tensor.zeros([1, 1, 1, T], "float32"),
      );
    await expect(run()).rejects.toThrow(
      "attention: a window over a past needs positions — give those of the queries.",
    );
  });

  test.each([undefined, 3])(
    "and the causal rule are traced for any length (window %s)",
    async (window) => {
      const rule = { causal: true, ...(window !== undefined && { window }) };
      const shapes = [2, 1, 1].map((heads) => spec(["rows", heads, "length", 4]));
      const backend = await parityBackend();
      const traced = trace(
        ((a: Value, b: Value, c: Value) => attention(a, b, c, rule)) as never,
        shapes,
      );
      const any = await backend.load(traced.program);
      const [free] = await any.run([q, k, v]);
      const fixed = await evaluate<Tensor>(
        backend,
        (a: Value, b: Value, c: Value) => attention(a, b, c, rule),
        q,
        k,
        v,
      );
      allclose(free as Tensor, fixed, tolerance.float32);
      await any.release();
    },
  );
});

describe("masks and biases", () => {
  test("causalBias counts from the end when there are more keys", () => {
    const open = [...(causalBias(2, 4, 2).data as Float32Array)].map((b) => (b === 0 ? 1 : 0));
    expect(open).toEqual([0, 1, 1, 0, 0, 0, 1, 1]);
  });

  test("alibiSlopes are those of the paper for 8 heads, and interleaved for others", () => {
    expect(alibiSlopes(8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
    expect(alibiSlopes(3)).toEqual([2 ** -4, 2 ** -8, 2 ** -2]);
  });

  test("positionMask lets a query see its window of the past", async () => {
    const mask = await evaluate<Tensor>(
      await parityBackend(),
      (q: Value, k: Value) => reshape(positionMask(q, k, 2), [2, 3]),
      Tensor.from([5, 6], [1, 2], "int32"),
      Tensor.from([4, 5, 6], [1, 3], "int32"),
    );
    expect([...(mask.data as Uint8Array)]).toEqual([1, 1, 0, 0, 1, 1]);
  });
});
