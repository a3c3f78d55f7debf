import { describe, expect, it } from "vitest";
import { checkGradient, checkSecond, randomTensor } from "../../test/support/gradient.ts";
import { compile, evaluate, trace } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { customVjp, scan, type ValueTree } from "../ir/control.ts";
import {
  add,
  cast,
  exp,
  floor,
  maximum,
  mul,
  sin,
  stopGradient,
  sub,
  tanh,
} from "../ir/elementwise.ts";
import { crossEntropyRows, gelu, layerNorm, softmax } from "../ir/fused.ts";
import { Graph, type Value } from "../ir/graph.ts";
import { expand, reshape } from "../ir/layout.ts";
import { conv, dot, matmul } from "../ir/linear.ts";
import { max, mean, sum } from "../ir/reduce.ts";
import { legalize, reachable } from "../ir/rewrite.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { flatten } from "../tensor/tree.ts";
import { backward } from "./backward.ts";
import {
  checkpoint,
  grad,
  gradientOf,
  hvp,
  valueAndGrad,
  valueAndGradWithAux,
  vjp,
} from "./grad.ts";

const of = (...values: number[]): Tensor => Tensor.from(values, [values.length], "float64");

/** The numbers of every result, in order. */
async function numbers(
  fn: (...args: never[]) => ValueTree,
  ...args: Tensor[]
): Promise<number[][]> {
  const results = await evaluate(reference(), fn, ...args);
  return flatten<Tensor>(results).leaves.map((leaf) => [...Array.from(leaf.numbers())]);
}

describe("grad", () => {
  it("has the form of the first argument, with zeros where nothing depends on a leaf", async () => {
    const params = { layers: [{ w: of(2, 3) }, { w: of(5) }], unused: of(7, 7) };
    // d/dw Σ w² · 5 = 2 · w · 5; d/dv v · Σ w² = 4 + 9
    const fn = (p: { layers: { w: Value }[]; unused: Value }): Value =>
      sum(mul(sum(mul(p.layers[0]!.w, p.layers[0]!.w)), p.layers[1]!.w));
    const found = await evaluate(reference(), grad(fn), params);
    expect(flatten<Tensor>(found).paths).toEqual(["layers.0.w", "layers.1.w", "unused"]);
    expect(flatten<Tensor>(found).leaves.map((leaf) => [...leaf.data])).toEqual([
      [20, 30],
      [13],
      [0, 0],
    ]);
  });

  it("leaves the other arguments alone and gives zeros to whole numbers", async () => {
    const fn = (p: { x: Value; n: Value }, y: Value): Value =>
      sum(mul(mul(p.x, cast(p.n, "float64")), y));
    const params = { x: of(1, 2), n: Tensor.from([3, 4], [2], "int32") };
    const found = await evaluate<{ x: Tensor; n: Tensor }>(
      reference(),
      grad(fn),
      params,
      of(10, 1),
    );
    expect([...found.x.data]).toEqual([30, 4]);
    expect([found.n.dtype, ...found.n.data]).toEqual(["int32", 0, 0]);
  });

  it("goes to any order: sin‴ = -cos", async () => {
    const third = grad(grad(grad((x: Value) => sin(x))));
    const [[found]] = await numbers(third, Tensor.scalar(0.3, "float64"));
    expect(found).toBeCloseTo(-Math.cos(0.3), 14);
  });

  it("takes what the function closes over as constant, though it is made of the same value", async () => {
    // v = 2w outside: d/dp Σ p v = v
    const fn = (w: Value): Value => {
      const v = mul(w, 2);
      return grad((p: Value) => sum(mul(p, v)))(w);
    };
    expect(await numbers(fn, of(3, 4))).toEqual([[6, 8]]);
  });

  it("keeps an argument apart from an equal value inside the function", async () => {
    // Both are w + 1, but only one is the argument: d/dp Σ p (w + 1)
    const fn = (w: Value): Value => grad((p: Value) => sum(mul(p, add(w, 1))))(add(w, 1));
    expect(await numbers(fn, of(3, 4))).toEqual([[4, 5]]);
    const zeros = (w: Value): Value => {
      const zero = (): Value => expand(w.graph.lift(0, "float64"), [2]);
      return grad((p: Value) => sum(mul(add(p, w), add(zero(), w))))(zero());
    };
    expect(await numbers(zeros, of(3, 4))).toEqual([[3, 4]]);
  });

  it("gives each of two equal leaves its own part", async () => {
    const fn = (w: Value): ValueTree =>
      grad((p: { a: Value; b: Value }) => sum(mul(mul(p.a, p.a), p.b)))({ a: w, b: w });
    // d/da a²b = 2ab, d/db a²b = a²
    expect(await numbers(fn, of(3))).toEqual([[18], [9]]);
  });

  it("shares the slope of a tie equally", async () => {
    const fn = grad((x: Value) => sum(maximum(x, 1)));
    expect(await numbers(fn, of(0, 1, 2))).toEqual([[0, 0.5, 1]]);
    expect(
      await numbers(
        grad((x: Value) => max(x)),
        of(2, 1, 2),
      ),
    ).toEqual([[0.5, 0, 0.5]]);
  });

  it("works inside the body of a scan, by the carry and by a value from outside", async () => {
    // Two steps of w ← w - ½ ∂/∂w (w x - a)², x = 1 and 2, from w = 0 with a = 3:
    // w = 0 - (0 - 3) · 1 = 3; w = 3 - (6 - 3) · 2 = -3
    // ∂/∂a (w x - a)² = -2 (w x - a): 6, then -6
    const fn = (w: Value, xs: Value, a: Value): Value[] => {
      const body = (state: Value, x: Value): readonly [Value, Value] => {
        const loss = (p: Value, q: Value): Value => {
          const miss = sub(mul(p, x), q);
          return mul(miss, miss);
        };
        const slope = grad((p: Value) => loss(p, a))(state);
        return [sub(state, mul(slope, 0.5)), grad((q: Value) => loss(state, q))(a)];
      };
      return scan(body, w, xs);
    };
    const scalar = (x: number): Tensor => Tensor.scalar(x, "float64");
    expect(await numbers(fn, scalar(0), of(1, 2), scalar(3))).toEqual([[-3], [6, -6]]);
    await checkGradient(fn, [scalar(0.2), of(1, 2), scalar(3)]);
    await checkSecond(fn, [scalar(0.2), of(1, 2), scalar(3)]);
  });

  it("refuses a loss of more than one number", () => {
    const fn = (): unknown =>
      trace(
        grad((x: Value) => mul(x, 2)),
        [of(1, 2)],
      );
    expect(fn).toThrow(
      "grad: the function must return one number, got shape (2,) — sum or average it, or use vjp.",
    );
  });

  it("takes a loss of shape (1, 1)", async () => {
    expect(
      await numbers(
        grad((x: Value) => reshape(sum(x), [1, 1])),
        of(1, 2),
      ),
    ).toEqual([[1, 1]]);
  });

  it("refuses values of another trace and constants outside one", () => {
    const other = new Graph().input("x", { shape: [], dtype: "float64" });
    expect(() => trace((x: Value) => mul(x, other), [of(1)])).toThrow(
      "input: a value of another trace was used — return it from its function and pass it in.",
    );
    expect(() => mul(2, Tensor.scalar(3))).toThrow(
      "mul: called outside a trace with constants alone — use it inside compile(fn), or eager(backend).mul(…).",
    );
  });
});

describe("valueAndGrad", () => {
  it("gives both", async () => {
    const fn = valueAndGrad((x: Value) => sum(mul(x, x)));
    expect(await numbers(fn, of(3, 4))).toEqual([[25], [6, 8]]);
  });

  it("gives what else the function returns", async () => {
    const fn = valueAndGradWithAux((x: Value, y: Value) => {
      const z = mul(x, y);
      return [sum(z), { z, half: mul(z, 0.5) }];
    });
    expect(await numbers(fn, of(3, 4), of(2, 10))).toEqual([[46], [6, 40], [3, 20], [2, 10]]);
  });
});

describe("gradientOf", () => {
  it("differentiates by values inside the computation", async () => {
    const fn = (x: Value): Value => {
      const y = mul(x, x);
      return gradientOf(sum(mul(y, y)), y);
    };
    expect(await numbers(fn, of(3))).toEqual([[18]]);
  });

  it("gives zeros by a value of an inner graph, which no outer loss depends on", async () => {
    const fn = (x: Value): Value => {
      const loss = sum(mul(x, x));
      return scan((c: Value, step: Value) => [c, gradientOf(loss, step)], x, x)[1];
    };
    expect(await numbers(fn, of(3, 4))).toEqual([[0, 0]]);
  });
});

describe("vjp", () => {
  it("maps cotangents back through several outputs", async () => {
    const fn = (x: Value, u: Value): ValueTree => {
      const [outputs, pull] = vjp((p: Value) => ({ s: sin(p), q: mul(p, p) }), x);
      return pull({ s: u, q: outputs.q });
    };
    // cos x · u + 2x · x²
    const [[found]] = await numbers(fn, of(0.5), of(2));
    expect(found).toBeCloseTo(2 * Math.cos(0.5) + 2 * 0.5 ** 3, 14);
  });

  it("can be applied inside a scan, again and again", async () => {
    // J = diag(2x) for x², so three pulls give (2x)³ u; through a scan in the function too.
    const fn = (x: Value, u: Value): Value => {
      const twice = (p: Value): Value => {
        const steps = expand(p, [2, 1]);
        return scan(
          (c: Value, s: Value) => [mul(c, s), []] as const,
          reshape(steps, [2]),
          steps,
        )[0];
      };
      const [, square] = vjp((p: Value) => mul(p, p), x);
      const [, cube] = vjp(twice, x);
      const [result] = scan((c: Value) => [square(c), []] as const, u, [], { length: 3 });
      return add(
        result,
        sum(scan((c: Value) => [cube(expand(c, [2])), []] as const, u, [], { length: 1 })[0]),
      );
    };
    // Σ over the two of d/dx x · x² = 3x² each: 2 · 3 · 9; and 6³
    expect(await numbers(fn, of(3), of(1))).toEqual([[216 + 54]]);
  });

  it("cuts at what is asked for: a value between is not walked past", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [], dtype: "float64" });
    graph.trace(() => {
      const y = mul(x, x);
      const [ofX, ofY] = backward([mul(y, x)], [graph.lift(1, "float64")], [x, y]);
      expect(ofX!.node.inputs.map((v) => v.key)).toContain(y.key);
      expect(ofY!.node.inputs.map((v) => v.key)).toContain(x.key);
    });
  });
});

describe("hvp", () => {
  it("is the Hessian times the vector", async () => {
    // f = x²y: H = [[2y, 2x], [2x, 0]]; at (3, 5) times (1, 10): 10 + 60, 6
    const fn = (x: Value, y: Value, u: Value, v: Value): ValueTree =>
      hvp((p: { x: Value; y: Value }) => sum(mul(mul(p.x, p.x), p.y)))({ x, y }, { x: u, y: v });
    expect(await numbers(fn, of(3), of(5), of(1), of(10))).toEqual([[70], [6]]);
  });

  it("agrees with differences for a small network", async () => {
    const rng = new Rng(3);
    const t = (...shape: number[]): Tensor => randomTensor(rng, shape);
    const targets = Tensor.from([1, 0, 2], [3], "int32");
    const network = (x: Value, k: Value, w: Value, g: Value, b: Value, v: Value): Value => {
      const y = conv(reshape(x, [3, 1, 4]), k, { padding: 1 });
      const h = gelu(layerNorm(reshape(y, [3, 8]), g, b));
      const attention = softmax(dot(h, h, { transB: true, alpha: 0.3 }));
      const mixed = tanh(matmul(attention, matmul(h, w)));
      return mean(crossEntropyRows(matmul(mixed, v), targets));
    };
    const inputs = [t(3, 4), t(2, 1, 3), t(8, 4), t(8), t(8), t(4, 3)];
    await checkGradient(network, inputs);
    await checkSecond(network, inputs);
  });
});

describe("stopGradient", () => {
  it("keeps the value and stops the derivative", async () => {
    const fn = valueAndGrad((x: Value) => sum(mul(x, stopGradient(x))));
    expect(await numbers(fn, of(3, 4))).toEqual([[25], [3, 4]]);
  });

  it("lets a derivative of one's own pass straight through", async () => {
    const straight = (x: Value): Value => add(x, stopGradient(sub(floor(x), x)));
    const fn = valueAndGrad((x: Value) => sum(mul(straight(x), straight(x))));
    expect(await numbers(fn, of(2.5))).toEqual([[4], [4]]);
  });
});

describe("customVjp", () => {
  it("uses the derivative that it was given, for captures too", async () => {
    const fn = (x: Value, y: Value): ValueTree =>
      grad((p: Value[]) => {
        const reversed = customVjp(
          (a) => mul(a, p[1]!),
          (inputs, outputs, [ct]) => [mul(ct!, -1), mul(ct!, add(inputs[1]!, outputs[0]!))],
        );
        return sum(reversed(p[0]!)[0]!);
      })([x, y]);
    // -1 for x; y + x y for the capture
    expect(await numbers(fn, of(3), of(5))).toEqual([[-1], [20]]);
  });
});

describe("checkpoint", () => {
  const rng = new Rng(4);
  const inputs = [randomTensor(rng, [3, 4]), randomTensor(rng, [4, 4])];
  const block = (x: Value, w: Value): Value => tanh(add(dot(x, w), exp(sin(x))));
  const loss = (wrap: typeof checkpoint | undefined) => (x: Value, w: Value) => {
    const apply = (v: Value): Value =>
      wrap ? wrap((a, b) => block(a!, b!))(v, w)[0]! : block(v, w);
    return valueAndGrad((p: Value[]) => sum(mul(apply(apply(p[0]!)), p[1]!)))([
      x,
      reshape(w, [4, 4]),
    ]);
  };

  it("gives the same bits as the function without it", async () => {
    const square = [randomTensor(rng, [4, 4]), inputs[1]!];
    expect(await numbers(loss(checkpoint), ...square)).toEqual(
      await numbers(loss(undefined), ...square),
    );
  });

  it("keeps the recomputed nodes apart from the first ones when the graph is legalised", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [2], dtype: "float64" });
    const [value, slope] = graph.trace(() =>
      valueAndGrad((p: Value) => sum(checkpoint((v) => sin(exp(v!)))(p)[0]!))(x),
    );
    const legal = legalize(graph, [value, slope], () => true);
    const exps = reachable(legal.graph, legal.outputs).filter((node) => node.op === "exp");
    expect(exps.map((node) => node.region > 0)).toEqual([false, true]);
  });

  it("runs as compiled once and many times", async () => {
    const fn = grad((x: Value) => sum(checkpoint((v) => mul(v!, mul(v!, v!)))(x)[0]!));
    const compiled = await compile<Tensor>(fn, [of(0)], { backend: reference() });
    expect([1, 2, 3].map((x) => compiled.runSync(of(x)).item())).toEqual([3, 12, 27]);
  });
});
