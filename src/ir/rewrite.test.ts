import { describe, expect, it } from "vitest";
import { spec, trace } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AttrsOf, OpName } from "./attrs.ts";
import { customVjp, scan } from "./control.ts";
import { add, exp, mul, sin } from "./elementwise.ts";
import { crossEntropyRows, gelu, layerNorm, silu, softmax } from "./fused.ts";
import { Graph, outputsOf, type Value } from "./graph.ts";
import { reshape } from "./layout.ts";
import { sum } from "./reduce.ts";
import { alias, inline, legalize, reachable } from "./rewrite.ts";
import { verify } from "./verify.ts";

const [matrix, vector] = [spec([2, 3]), spec([3])];

function opsOf(graph: Graph): OpName[] {
  return graph.nodes.map((node) => node.op);
}

/** A traced function, legalised for a target with the given fused operators. */
function legal(
  fn: (...args: Value[]) => Value | Value[],
  native: readonly OpName[],
): { graph: Graph; outputs: Value[] } {
  const { program } = trace(fn, [matrix, vector]);
  return legalize(program.graph, program.outputs, (node) => native.includes(node.op));
}

describe("legalize", () => {
  it("expands fused operators that are not native, and those they expand to", () => {
    const fn = (x: Value, w: Value): Value => mul(softmax(x), layerNorm(x, w, w));
    const kept = opsOf(legal(fn, ["softmax", "layerNorm"]).graph);
    expect(kept).toContain("softmax");
    expect(kept).toContain("layerNorm");
    const half = opsOf(legal(fn, ["layerNorm"]).graph);
    expect(half).not.toContain("softmax");
    expect(half).toContain("layerNorm");
    const loss = (x: Value): Value => crossEntropyRows(x, Tensor.from([0, 1], [2], "int32"));
    expect(opsOf(legal(loss, ["logSoftmax"]).graph)).toContain("logSoftmax");
    expect(opsOf(legal(loss, []).graph)).not.toContain("logSoftmax");
  });

  it("keeps inputs in order with their names, used or not, and nothing else unused", () => {
    const { graph, outputs } = legal((x) => {
      sin(exp(x!));
      return exp(x!);
    }, []);
    expect(graph.inputs.map((v) => (v.node.attrs as AttrsOf["input"]).name)).toEqual(["0", "1"]);
    expect(opsOf(graph)).toEqual(["input", "input", "exp"]);
    expect(reachable(graph, outputs).map((node) => node.op)).toEqual(["input", "exp"]);
  });

  it("leaves to reachable what an expansion gives beside the outputs in use", () => {
    const targets = Tensor.from([0, 1], [2], "int32");
    const logProbs = (x: Value): Value => outputsOf(crossEntropyRows(x, targets))[1]!;
    const { graph, outputs } = legal((x) => logProbs(x!), []);
    expect(opsOf(graph)).toContain("gatherElements");
    const used = reachable(graph, outputs).map((node) => node.op);
    expect(used).not.toContain("gatherElements");
    expect(used).toContain("log");
  });

  it("opens calls, one in another too", () => {
    const inner = customVjp(
      (v) => silu(v),
      () => [],
    );
    const outer = customVjp(
      (v) => mul(inner(v)[0]!, 2),
      () => [],
    );
    const ops = opsOf(legal((x) => outer(x!)[0]!, []).graph);
    expect(ops).not.toContain("call");
    expect(ops.slice(2)).toEqual(["sigmoid", "mul", "constant", "mul"]);
  });

  it("keeps regions apart and numbers them as they were", () => {
    const fn = (x: Value): Value[] => [
      gelu(x),
      x.graph.inNewRegion(() => gelu(x)),
      x.graph.inNewRegion(() => gelu(x)),
    ];
    const { graph, outputs } = legal((x) => fn(x!), []);
    expect(outputs.map((v) => v.node.region)).toEqual([0, 1, 2]);
    expect(opsOf(graph).filter((op) => op === "erf").length).toBe(3);
  });

  it("makes a graph that verifies and gives the same numbers", async () => {
    const fn = (x: Value, w: Value): Value[] => {
      const rows = silu(layerNorm(x, w, add(w, 1)));
      const [last, ys] = scan((c: Value, row: Value) => [mul(softmax(c), row), sum(c)], w, rows);
      return [last, ys];
    };
    const { program } = trace(fn, [matrix, vector]);
    const { graph, outputs } = legalize(program.graph, program.outputs, () => false);
    expect(() => verify(graph)).not.toThrow();
    const inputs = [Tensor.from([1, 2, 4, -1, 0, 3], [2, 3]), Tensor.from([0.5, 1, 2])];
    const results = [];
    for (const p of [program, { ...program, graph, outputs }]) {
      const executable = await reference().load(p);
      results.push((await executable.run(inputs)).map((tensor) => [...tensor.data]));
    }
    expect(results[1]).toEqual(results[0]);
  });

  it("keeps the captures of a body as inputs after its own", () => {
    const { program } = trace(
      (x: Value, w: Value) =>
        scan((c: Value, row: Value) => [add(c, softmax(mul(row, w))), []] as const, w, x)[0],
      [matrix, vector],
    );
    const { body, outputs } = program.outputs[0]!.node.attrs as AttrsOf["scan"];
    const result = legalize(body, outputs, () => false);
    const names = result.graph.inputs.map((v) => (v.node.attrs as AttrsOf["input"]).name);
    expect(names).toEqual(["carry0", "x0", "capture0"]);
    expect(opsOf(result.graph)).not.toContain("softmax");
  });
});

describe("alias", () => {
  it("is a node of its own that copying leaves out", () => {
    const graph = new Graph();
    const x = graph.input("x", vector);
    graph.trace(() => {
      const [a, b] = [alias(x), alias(x)];
      expect(a.key).not.toBe(b.key);
      const to = new Graph();
      const y = to.input("y", vector);
      const [copied] = inline(graph, [mul(exp(a), exp(b))], [y], to);
      expect(opsOf(to)).toEqual(["input", "exp", "mul"]);
      expect(copied!.node.inputs.map((v) => v.node.op)).toEqual(["exp", "exp"]);
    });
  });

  it("is not what a reshape to another shape is", () => {
    const { graph } = legal((x) => reshape(x!, [3, 2]), []);
    expect(opsOf(graph)).toContain("reshape");
  });
});

describe("inline", () => {
  it("puts values in the place of inputs and captures", () => {
    const outer = new Graph();
    const [x, w] = [outer.input("x", vector), outer.input("w", vector)];
    const body = new Graph(outer);
    const own = body.input("p", vector);
    const result = body.trace(() => mul(exp(own), w));
    const to = new Graph();
    const [a, b] = [to.input("a", vector), to.input("b", vector)];
    const [made] = inline(body, [result], [a, b], to);
    expect(made!.node.inputs.map((v) => v.node.op)).toEqual(["exp", "input"]);
    expect(made!.node.inputs[1]!.key).toBe(b.key);
    expect(x.graph.nodes.length).toBe(2);
  });
});
