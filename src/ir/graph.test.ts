import { describe, expect, it } from "vitest";
import { Tensor } from "../tensor/tensor.ts";
import { scan } from "./control.ts";
import { add, and, equal, exp, mul, sub } from "./elementwise.ts";
import { emit } from "./emit.ts";
import { Graph, outputsOf, type Spec, Value } from "./graph.ts";
import { topK } from "./reduce.ts";
import { verify } from "./verify.ts";

const vector: Spec = { shape: [2], dtype: "float32" };

describe("hash-consing", () => {
  it("makes a node once for the same operator, inputs and attributes", () => {
    const graph = new Graph();
    const x = graph.input("x", vector);
    graph.trace(() => {
      expect(add(x, 1).node).toBe(add(x, 1).node);
      expect(add(x, 1).node).not.toBe(add(1, x).node);
      expect(topK(x, 1).values.node).toBe(topK(x, 1).indices.node);
      expect(topK(x, 1).values.node).not.toBe(topK(x, 2).values.node);
    });
  });

  it("tells -0, NaN and infinities apart, in constants and attributes", () => {
    const graph = new Graph();
    const x = graph.input("x", vector);
    const numbers = [0, -0, Number.NaN, Infinity, -Infinity];
    const padded = numbers.map(
      (value) => emit("pad", [x], { before: [1], after: [0], value }).node,
    );
    expect(new Set(padded).size).toBe(5);
    expect(new Set(numbers.map((value) => graph.lift(value).node)).size).toBe(5);
    expect(graph.lift(Number.NaN).node).toBe(graph.lift(Number.NaN).node);
  });

  it("merges constants of one element by number, type and shape, larger ones by tensor", () => {
    const graph = new Graph();
    expect(graph.lift(2).node).toBe(graph.lift(Tensor.scalar(2)).node);
    expect(graph.lift(2).node).not.toBe(graph.lift(2, "int32").node);
    expect(graph.lift(2).node).not.toBe(graph.lift(Tensor.from([2])).node);
    const pair = Tensor.from([1, 2]);
    expect(graph.lift(pair).node).toBe(graph.lift(pair).node);
    expect(graph.lift(pair).node).not.toBe(graph.lift(Tensor.from([1, 2])).node);
  });

  it("keeps equal nodes of another region apart, and comes back from it", () => {
    const graph = new Graph();
    const x = graph.input("x", vector);
    graph.trace(() => {
      const first = exp(x);
      const [again, within] = graph.inNewRegion(() => [exp(x), exp(x)]);
      expect(again!.node).not.toBe(first.node);
      expect(again!.node).toBe(within!.node);
      expect(graph.inNewRegion(() => exp(x)).node).not.toBe(again!.node);
      expect(exp(x).node).toBe(first.node);
      expect([first, again!].map((v) => v.node.region)).toEqual([0, 1]);
    });
  });
});

describe("operands", () => {
  it("take the type of the value beside them", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [], dtype: "float64" });
    const i = graph.input("i", { shape: [], dtype: "int32" });
    const b = graph.input("b", { shape: [], dtype: "bool" });
    expect([mul(2, x), sub(i, 1), and(true, b), equal(b, false)].map((v) => v.dtype)).toEqual([
      "float64",
      "int32",
      "bool",
      "bool",
    ]);
  });

  it("are refused where a whole number is needed", () => {
    const i = new Graph().input("i", { shape: [], dtype: "int32" });
    expect(() => mul(i, 0.5)).toThrow(
      "constant: 0.5 is not a whole number, but the other operand is int32 — cast that one.",
    );
  });
});

describe("captures", () => {
  it("stand for outer values, once each however the value was come by", () => {
    const outer = new Graph();
    const x = outer.input("x", vector);
    const y = outer.trace(() => add(x, 1));
    const same = new Value(y.node, y.index);
    const inner = new Graph(outer);
    const [a, b] = [inner.lift(y), inner.lift(same)];
    expect(a.key).toBe(b.key);
    expect([...inner.captures.keys()].map((v) => v.key)).toEqual([y.key]);
    expect(a.node.op).toBe("input");
    expect([a.graph, a.shape, a.dtype]).toEqual([inner, [2], "float32"]);
  });

  it("pass through every level between", () => {
    const top = new Graph();
    const x = top.input("x", vector);
    const middle = new Graph(top);
    const inner = new Graph(middle);
    const lifted = inner.lift(x);
    const [through] = [...inner.captures.keys()];
    expect(through!.graph).toBe(middle);
    expect([...middle.captures.entries()].map(([from, to]) => [from.key, to.key])).toEqual([
      [x.key, through!.key],
    ]);
    expect(lifted.graph).toBe(inner);
  });

  it("repeat constants instead of passing them", () => {
    const outer = new Graph();
    const inner = new Graph(outer);
    expect(inner.lift(outer.lift(3)).node.op).toBe("constant");
    expect(inner.captures.size).toBe(0);
  });

  it("become inputs of a scan, after carries and xs", () => {
    const graph = new Graph();
    const [x, a] = [graph.input("x", vector), graph.input("a", { shape: [], dtype: "float32" })];
    const [carry] = graph.trace(() =>
      scan((c: Value, step: Value) => [add(c, mul(step, a)), []] as const, a, x),
    );
    const { node } = carry;
    expect(node.inputs.map((v) => v.key)).toEqual([a.key, x.key, a.key]);
    // Last carry; no ys; the carries before each step.
    expect(outputsOf(carry).map((v) => v.shape)).toEqual([[], [2]]);
    expect(() => verify(graph)).not.toThrow();
  });

  it("are refused from a graph that is not around this one", () => {
    const x = new Graph().input("x", vector);
    expect(() => new Graph().lift(x)).toThrow("input: a value of another trace was used");
    expect(() => new Graph(new Graph()).lift(x)).toThrow("a value of another trace was used");
  });
});

describe("tracing", () => {
  it("goes back to the outer graph, after an error too", () => {
    const [outer, inner] = [new Graph(), new Graph()];
    outer.trace(() => {
      expect(() =>
        inner.trace(() => {
          throw new Error("inside");
        }),
      ).toThrow("inside");
      expect(Graph.current).toBe(outer);
    });
    expect(Graph.current).toBeUndefined();
  });
});
