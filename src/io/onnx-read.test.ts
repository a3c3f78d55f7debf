import { describe, expect, it } from "vitest";
import { spec, trace } from "../backend/compile.ts";
import { lower } from "../backend/ort/lower.ts";
import { scan } from "../ir/control.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { dot } from "../ir/linear.ts";
import { Rng } from "../tensor/rng.ts";
import { encodeOnnx, encodeOnnxParts, type OnnxGraph } from "./onnx.ts";
import { decodeOnnx } from "./onnx-read.ts";

const big = new Uint8Array(8192).map((_, i) => i % 251);
const graph: OnnxGraph = {
  name: "g",
  nodes: [
    {
      op: "Gemm",
      domain: "com.example",
      inputs: ["x", "w", ""],
      outputs: ["y"],
      attributes: {
        alpha: { float: 0.5 },
        transB: { int: 1 },
        axis: { int: -1 },
        mode: { string: "né" },
        pads: { ints: [0, -2, 3_000_000_000] },
        scales: { floats: [1.5, -2] },
        value: { tensor: { name: "v", type: "bool", dims: [1], data: Uint8Array.of(1) } },
      },
    },
  ],
  initializers: [
    { name: "w", type: "float32", dims: [2, 1024], data: big },
    { name: "s", type: "int64", dims: [], data: new Uint8Array(8) },
    {
      name: "far",
      type: "float16",
      dims: [3],
      data: new Uint8Array(0),
      external: { location: "m_data", offset: 4096, length: 6 },
    },
  ],
  inputs: [{ name: "x", type: "float32", shape: ["batch", 1024] }],
  outputs: [{ name: "y", type: "float32", shape: ["batch", 2] }],
};
const opsets = { "": 21, "com.example": 1 };

function joined(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => Array.from(part)));
}

describe("decodeOnnx", () => {
  it("gives back what was written", () => {
    const model = decodeOnnx(encodeOnnx(graph, opsets), "m");
    expect(model).toEqual({ irVersion: 10, producer: "plasticity", opsets, graph });
  });

  it("reads a model written in pieces as the same, with large constants last", () => {
    const parts = encodeOnnxParts(graph, opsets);
    // The weights are not copied.
    expect(parts).toContain(big);
    const { graph: read } = decodeOnnx(joined(parts), "m");
    const byName = (list: OnnxGraph["initializers"]): unknown =>
      [...list].sort((a, b) => (a.name < b.name ? -1 : 1));
    expect({ ...read, initializers: byName(read.initializers) }).toEqual({
      ...graph,
      initializers: byName(graph.initializers),
    });
  });

  it("reads every model that is lowered, bodies of loops too, so that it encodes to the same bytes", () => {
    const { program } = trace(
      ((x: Value, w: Value) => {
        const [last] = scan(
          (carry: Value, step: Value): [Value, Value] => [add(carry, step), mul(carry, 2)],
          dot(x, w),
          x,
        );
        return last;
      }) as never,
      [spec([4, 4]), spec([4, 4])],
    );
    const { model } = lower(program, "cpu");
    const read = decodeOnnx(model, "m");
    expect(encodeOnnx(read.graph, read.opsets)).toEqual(model);
    expect(read.graph.nodes.length).toBeGreaterThan(0);
  });

  it("refuses lengths that the file does not have, with the place", () => {
    const bytes = encodeOnnx(graph, opsets);
    expect(() => decodeOnnx(bytes.subarray(0, bytes.length - 5), "cut.onnx")).toThrow(
      /^cut\.onnx: byte \d+: \d+ bytes are announced, \d+ are left — is this an ONNX model\?$/,
    );
    expect(() => decodeOnnx(new Uint8Array(0), "empty.onnx")).toThrow(
      "empty.onnx: byte 0: there is no graph — is this an ONNX model?",
    );
  });

  it("either reads bytes that were changed or refuses them in a sentence", () => {
    const bytes = encodeOnnx({ ...graph, initializers: graph.initializers.slice(1) }, opsets);
    const rng = new Rng(3);
    for (let i = 0; i < 2000; i++) {
      const changed = bytes.slice();
      changed[rng.integer(bytes.length)] = rng.integer(256);
      try {
        decodeOnnx(changed, "m");
      } catch (error) {
        expect((error as { code?: string }).code).toBe("format");
      }
    }
  });
});
