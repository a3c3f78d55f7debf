import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { parityBackend } from "../../test/support/fixture.ts";
import { checkGradient, checkSecond, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { grad } from "../autodiff/grad.ts";
import { evaluate, spec, trace } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { repeatInterleave } from "../ir/indexing.ts";
import { concat, expand, reshape, slice, squeeze, stack } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { ValueRecord } from "./module.ts";
import {
  linearRecurrence,
  type SelectiveScanInputs,
  type SsdInputs,
  selectiveScan,
  selectiveStep,
  ssd,
  ssdStep,
} from "./ssm.ts";

function draw(rng: Rng, shape: number[], scale = 1): Tensor<"float32"> {
  return new Tensor("float32", shape, rng.normals(sizeOf(shape), scale));
}

function positive(rng: Rng, shape: number[], low: number, high: number): Tensor<"float32"> {
  const numbers = rng.uniforms(sizeOf(shape)).map((u) => low + (high - low) * u);
  return new Tensor("float32", shape, numbers);
}

function double(tensors: Record<string, Tensor>): Tensor[] {
  return Object.values(tensors).map((tensor) => tensor.to("float64"));
}

describe("linearRecurrence", () => {
  test("is h = a h + b, step by step, from its initial state", async () => {
    // 2·1 + 1 = 3, 3·3 + 1 = 10; backwards 3·1 + 1 = 4, 2·4 + 1 = 9
    const a = Tensor.from([2, 3], [2, 1]);
    const b = Tensor.from([1, 1], [2, 1]);
    const one = Tensor.from([1]);
    const run = async (reverse: boolean): Promise<Tensor> =>
      evaluate<Tensor>(
        await parityBackend(),
        (x: Value, y: Value, initial: Value) => linearRecurrence(x, y, { initial, reverse }),
        a,
        b,
        one,
      );
    allclose(await run(false), Tensor.from([3, 10], [2, 1]), tolerance.float32);
    allclose(await run(true), Tensor.from([9, 4], [2, 1]), tolerance.float32);
  });

  test("has first and second derivatives, in both directions", async () => {
    const rng = new Rng(1);
    const inputs = [randomTensor(rng, [4, 3]), randomTensor(rng, [4, 3]), randomTensor(rng, [3])];
    for (const reverse of [false, true]) {
      const fn = (a: Value, b: Value, initial: Value): Value =>
        linearRecurrence(a, b, { initial, reverse });
      await checkGradient((a, b, c) => fn(a!, b!, c!), inputs);
      await checkSecond((a, b, c) => fn(a!, b!, c!), inputs);
    }
  });

  test("refuses shapes that differ", async () => {
    const wrong = evaluate(
      reference(),
      (a: Value, b: Value) => linearRecurrence(a, b),
      Tensor.zeros([2, 3], "float32"),
      Tensor.zeros([2, 4], "float32"),
    );
    await expect(wrong).rejects.toThrow(
      "linearRecurrence: needs a and b (T, …), got (2, 3), (2, 4).",
    );
  });
});

/** Inputs of a selective scan: B 2, T 7, D 3, N 2. */
function selective(rng: Rng, length = 7): Record<string, Tensor> {
  return {
    x: draw(rng, [2, length, 3]),
    delta: positive(rng, [2, length, 3], 0.05, 0.9),
    a: positive(rng, [3, 2], -1.5, -0.2),
    b: draw(rng, [2, length, 2]),
    c: draw(rng, [2, length, 2]),
    skip: draw(rng, [3]),
    initial: draw(rng, [2, 3, 2]),
  };
}

/** The recurrence as its formula says it, in float64. */
function plainScan(inputs: Record<string, Tensor>, resets?: readonly number[]): Tensor {
  const { x, delta, a, b, c, skip, initial } = inputs;
  const [batch, length, channels] = x!.shape as [number, number, number];
  const states = a!.shape[1]!;
  const y = new Float64Array(batch * length * channels);
  const at = (t: Tensor, ...index: number[]): number =>
    t.numbers()[index.reduce((flat, i, k) => flat * t.shape[k]! + i, 0)]!;
  for (let i = 0; i < batch; i++) {
    for (let d = 0; d < channels; d++) {
      const h = Array.from({ length: states }, (_, n) => at(initial!, i, d, n));
      for (let t = 0; t < length; t++) {
        if (resets?.[i * length + t]) h.fill(0);
        const step = at(delta!, i, t, d);
        let total = at(skip!, d) * at(x!, i, t, d);
        for (let n = 0; n < states; n++) {
          h[n] = Math.exp(step * at(a!, d, n)) * h[n]! + step * at(b!, i, t, n) * at(x!, i, t, d);
          total += at(c!, i, t, n) * h[n]!;
        }
        y[(i * length + t) * channels + d] = total;
      }
    }
  }
  return Tensor.from(y, [batch, length, channels]);
}

const marks = [0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1];

describe("selectiveScan", () => {
  const inputs = selective(new Rng(2));
  const run = async (chunk: number, resets?: Tensor): Promise<Tensor> =>
    evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, mark: Value[]) =>
        selectiveScan(
          { ...(p as unknown as SelectiveScanInputs), ...(mark[0] && { resets: mark[0] }) },
          { chunk },
        ).y,
      inputs,
      resets ? [resets] : [],
    );

  test("is its formula, whatever the chunk", async () => {
    const expected = plainScan(inputs);
    for (const chunk of [1, 3, 7, 32]) allclose(await run(chunk), expected, tolerance.float32);
  });

  test("clears its state where a sequence begins", async () => {
    const resets = Tensor.from(marks, [2, 7], "bool");
    const expected = plainScan(inputs, marks);
    for (const chunk of [3, 7]) allclose(await run(chunk, resets), expected, tolerance.float32);
  });

  test("token by token gives the same, and the same last state", async () => {
    const [whole, steps, state, last] = await evaluate<Tensor[]>(
      await parityBackend(),
      (p: ValueRecord) => {
        const all = selectiveScan(p as unknown as SelectiveScanInputs, { chunk: 3 });
        let h = p["initial"]!;
        const ys: Value[] = [];
        for (let t = 0; t < 7; t++) {
          const at = (name: string): Value => squeeze(slice(p[name]!, 1, t, t + 1), 1);
          const [y, next] = selectiveStep(h, {
            x: at("x"),
            delta: at("delta"),
            b: at("b"),
            c: at("c"),
            a: p["a"]!,
            skip: p["skip"]!,
          });
          ys.push(y);
          h = next;
        }
        return [all.y, stack(ys, 1), all.state, h];
      },
      inputs,
    );
    allclose(steps!, whole!, tolerance.float32);
    allclose(last!, state!, tolerance.float32);
  });

  test("has the gradient of its formula, with resets and a last chunk that is not full", async () => {
    const names = Object.keys(inputs);
    const resets = Tensor.from(marks.slice(0, 10), [2, 5], "bool");
    await checkGradient(
      (...values) => {
        const p = Object.fromEntries(names.map((name, i) => [name, values[i]!]));
        const { y, state } = selectiveScan(
          { ...(p as unknown as SelectiveScanInputs), resets: values[0]!.graph.lift(resets) },
          { chunk: 2 },
        );
        return [y, state];
      },
      double(selective(new Rng(3), 5)),
    );
  });

  test("refuses inputs that do not fit", async () => {
    const wrong = evaluate(
      reference(),
      (p: ValueRecord) => selectiveScan(p as unknown as SelectiveScanInputs).y,
      { ...inputs, b: Tensor.zeros([2, 6, 2], "float32") },
    );
    await expect(wrong).rejects.toThrow(
      "selectiveScan: needs x and delta (B, T, D), a (D, N), b and c (B, T, N), resets (B, T), got (2, 7, 3), (2, 7, 3), (3, 2), (2, 6, 2), (2, 7, 2).",
    );
  });
});

describe.each([
  [
    "selectiveScan",
    selective(new Rng(8)),
    (p: ValueRecord, resets: Value) =>
      selectiveScan({ ...(p as unknown as SelectiveScanInputs), resets }, { chunk: 3 }),
  ],
  [
    "ssd",
    scalar(new Rng(9)),
    (p: ValueRecord, resets: Value) =>
      ssd({ ...(p as unknown as SsdInputs), resets }, { chunk: 3 }),
  ],
] as const)("%s over rows that are a symbol", (_, inputs, of) => {
  const perRow = (name: string): boolean => name !== "a" && name !== "skip";
  const resets = Tensor.from(marks, [2, 7], "bool");
  const function_ = ((p: ValueRecord, r: Value) => {
    const { y, state } = of(p, r);
    return [y, state];
  }) as never;

  test("is one program that gives what a program of each size gives", async () => {
    const backend = await nodeOrt({ threads: 1 });
    const open = Object.fromEntries(
      Object.entries(inputs).map(([name, { shape }]) => [
        name,
        spec(perRow(name) ? ["rows", ...shape.slice(1)] : shape),
      ]),
    );
    const program = await backend.load(trace(function_, [open, spec(["rows", 7], "bool")]).program);
    for (const rows of [1, 2, 5]) {
      const take = (tensor: Tensor): Tensor => {
        const size = tensor.size / 2;
        const picked = Array.from({ length: rows }, (_unused, i) => i % 2).flatMap((row) =>
          Array.from(tensor.numbers()).slice(row * size, (row + 1) * size),
        );
        return Tensor.from(picked, [rows, ...tensor.shape.slice(1)], tensor.dtype);
      };
      const own = Object.fromEntries(
        Object.entries(inputs).map(([name, t]) => [name, perRow(name) ? take(t) : t]),
      );
      const [y, state] = await program.run([...Object.values(own), take(resets)]);
      const [wantedY, wantedState] = await evaluate<Tensor[]>(
        reference(),
        function_,
        own,
        take(resets),
      );
      allclose(y!, wantedY!, tolerance.float32);
      allclose(state!, wantedState!, tolerance.float32);
    }
    await program.release();
  });
});

/** Inputs of SSD: B 2, T 7, H 4, P 3, G 2, N 2. */
function scalar(rng: Rng, length = 7): Record<string, Tensor> {
  return {
    x: draw(rng, [2, length, 4, 3]),
    delta: positive(rng, [2, length, 4], 0.05, 0.9),
    a: positive(rng, [4], -1.5, -0.2),
    b: draw(rng, [2, length, 2, 2]),
    c: draw(rng, [2, length, 2, 2]),
    skip: draw(rng, [4]),
    initial: draw(rng, [2, 4, 3, 2]),
  };
}

/** The steps of SSD one after another: y (B, T, H, P) and the last state. */
function stepwise(p: ValueRecord, resets?: readonly number[]): [Value, Value] {
  const length = p["x"]!.shape[1] as number;
  let h = p["initial"]!;
  const ys: Value[] = [];
  for (let t = 0; t < length; t++) {
    const at = (name: string): Value => squeeze(slice(p[name]!, 1, t, t + 1), 1);
    if (resets) {
      const kept = [0, 1].map((i) => 1 - resets[i * length + t]!);
      h = mul(h, Tensor.from(kept, [2, 1, 1, 1], h.dtype));
    }
    const [y, next] = ssdStep(h, {
      x: at("x"),
      delta: at("delta"),
      b: at("b"),
      c: at("c"),
      a: p["a"]!,
      skip: p["skip"]!,
    });
    ys.push(y);
    h = next;
  }
  return [stack(ys, 1), h];
}

describe("ssd", () => {
  const inputs = scalar(new Rng(4));

  test("is the selective scan with one decay per head", async () => {
    const [found, expected] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord) => {
        const heads = [0, 1, 2, 3].map((head) => {
          const of = (name: string, axis: number, at: number): Value =>
            squeeze(slice(p[name]!, axis, at, at + 1), axis);
          const group = head >> 1;
          return selectiveScan({
            x: of("x", 2, head),
            delta: repeatInterleave(slice(p["delta"]!, 2, head, head + 1), 3, 2),
            a: expand(reshape(slice(p["a"]!, 0, head, head + 1), [1, 1]), [3, 2]),
            b: of("b", 2, group),
            c: of("c", 2, group),
            skip: repeatInterleave(slice(p["skip"]!, 0, head, head + 1), 3, 0),
            initial: of("initial", 1, head),
          }).y;
        });
        return [ssd(p as unknown as SsdInputs, { chunk: 3 }).y, stack(heads, 2)];
      },
      inputs,
    );
    allclose(found, expected, tolerance.float32);
  });

  test("token by token gives the same and the same last state, with resets too", async () => {
    for (const [chunk, resets] of [
      [3, undefined],
      [7, undefined],
      [2, marks],
      [7, marks],
    ] as const) {
      const [y, state, steps, last] = await evaluate<Tensor[]>(
        await parityBackend(),
        (p: ValueRecord) => {
          const mark = resets && { resets: p["x"]!.graph.lift(Tensor.from(marks, [2, 7], "bool")) };
          const all = ssd({ ...(p as unknown as SsdInputs), ...mark }, { chunk });
          return [all.y, all.state, ...stepwise(p, resets)];
        },
        inputs,
      );
      allclose(y!, steps!, tolerance.float32);
      allclose(state!, last!, tolerance.float32);
    }
  });

  test("goes on from the state it returned", async () => {
    const [whole, parts] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord) => {
        const cut = (from: number, to: number): Record<string, Value> =>
          Object.fromEntries(
            ["x", "delta", "b", "c"].map((name) => [name, slice(p[name]!, 1, from, to)]),
          );
        const options = { chunk: 2 };
        const first = ssd({ ...(p as unknown as SsdInputs), ...cut(0, 3) }, options);
        const rest = { ...cut(3, 7), initial: first.state };
        const second = ssd({ ...(p as unknown as SsdInputs), ...rest }, options);
        return [ssd(p as unknown as SsdInputs, options).y, concat([first.y, second.y], 1)];
      },
      inputs,
    );
    allclose(parts, whole, tolerance.float32);
  });

  test("stays finite over strong decay, in its gradient too", async () => {
    const strong = { ...inputs, a: Tensor.from([-500, -900, -1, -0.1]) };
    const gradients = await evaluate<Record<string, Tensor>>(
      await parityBackend(),
      (p: ValueRecord) => grad((q: ValueRecord) => sum(ssd(q as unknown as SsdInputs).y))(p),
      strong,
    );
    for (const tensor of Object.values(gradients)) {
      expect((tensor.data as Float32Array).every(Number.isFinite)).toBe(true);
    }
  });

  test("has the gradient of its formula, with resets and a last chunk that is not full", async () => {
    const names = Object.keys(inputs);
    const resets = Tensor.from(marks.slice(0, 10), [2, 5], "bool");
    await checkGradient(
      (...values) => {
        const p = Object.fromEntries(names.map((name, i) => [name, values[i]!]));
        const { y, state } = ssd(
          { ...(p as unknown as SsdInputs), resets: values[0]!.graph.lift(resets) },
          { chunk: 2 },
        );
        return [y, state];
      },
      double(scalar(new Rng(5), 5)),
    );
  });

  test("refuses a chunk of 0", async () => {
    const wrong = evaluate(
      reference(),
      (p: ValueRecord) => ssd(p as unknown as SsdInputs, { chunk: 0 }).y,
      inputs,
    );
    await expect(wrong).rejects.toThrow("ssd: chunk must be a whole number from 1, got 0.");
  });
});
