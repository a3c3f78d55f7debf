import { describe, expect, it } from "vitest";
import { spec, trace } from "../backend/compile.ts";
import { scan } from "./control.ts";
import { add, exp, mul } from "./elementwise.ts";
import { layerNorm, softmax } from "./fused.ts";
import { Graph, type Value } from "./graph.ts";
import { sum } from "./reduce.ts";
import { verify } from "./verify.ts";

const specs = [spec([2, 3]), spec([3])] as const;

describe("verify", () => {
  it("passes what the operators build", () => {
    const { program } = trace((x: Value, w: Value) => {
      const rows = softmax(layerNorm(x, w, w));
      return scan((c: Value, row: Value) => [add(c, mul(row, w)), sum(row)], w, rows);
    }, specs);
    expect(() => verify(program.graph)).not.toThrow();
  });

  it("names the node whose outputs are not what its operator gives", () => {
    const graph = new Graph();
    const x = graph.input("x", specs[0]);
    graph.add("exp", [x], {}, [{ shape: [3, 2], dtype: "float32" }]);
    expect(() => verify(graph)).toThrow(
      "verify: node 1 (exp) gives float32 (3, 2), but its operator float32 (2, 3).",
    );
    const other = new Graph();
    other.add("isNan", [other.input("x", specs[1])], {}, [specs[1]]);
    expect(() => verify(other)).toThrow(
      "verify: node 1 (isNan) gives float32 (3,), but its operator bool (3,).",
    );
  });

  it("names the node that uses a value of another graph", () => {
    const foreign = new Graph().input("y", specs[1]);
    const graph = new Graph();
    graph.add("exp", [foreign], {}, [specs[1]]);
    expect(() => verify(graph)).toThrow(
      "verify: node 0 (exp) uses a value that is not before it in its graph.",
    );
    expect(() => exp(foreign)).not.toThrow();
  });
});
