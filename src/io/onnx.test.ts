import { describe, expect, test } from "vitest";
import { encodeOnnx, type OnnxGraph } from "./onnx.ts";

/** A field of a protobuf message: varints as numbers, the rest as bytes. */
type Field = readonly [field: number, value: number | Uint8Array];

/** Reads the fields of a message, by the encoding's definition. */
function decode(bytes: Uint8Array): Field[] {
  const fields: Field[] = [];
  let at = 0;
  const varint = (): number => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++]!;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, value));
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const wire = key & 7;
    if (wire === 0) fields.push([key >> 3, varint()]);
    else {
      const length = wire === 2 ? varint() : 4;
      fields.push([key >> 3, bytes.slice(at, at + length)]);
      at += length;
    }
  }
  return fields;
}

const all = (fields: readonly Field[], field: number): (number | Uint8Array)[] =>
  fields.filter(([id]) => id === field).map(([, value]) => value);
const inside = (fields: readonly Field[], field: number): Field[] =>
  decode(all(fields, field)[0] as Uint8Array);
const texts = (fields: readonly Field[], field: number): string[] =>
  all(fields, field).map((value) => new TextDecoder().decode(value as Uint8Array));

const graph: OnnxGraph = {
  name: "g",
  nodes: [
    {
      op: "Op",
      domain: "d",
      inputs: ["a", "", "b"],
      outputs: ["y"],
      attributes: {
        i: { int: -2 },
        f: { float: 0.5 },
        s: { string: "é" },
        l: { ints: [1, -1, 300] },
        t: { tensor: { name: "t", type: "uint4", dims: [3], data: Uint8Array.of(0x21, 3) } },
        g: { graph: { name: "inner", nodes: [], initializers: [], inputs: [], outputs: [] } },
      },
    },
  ],
  initializers: [{ name: "b", type: "int64", dims: [], data: new Uint8Array(8) }],
  inputs: [{ name: "a", type: "float32", shape: ["rows", 200] }],
  outputs: [{ name: "y", type: "bool", shape: [] }],
};

describe("encodeOnnx", () => {
  const model = decode(encodeOnnx(graph, { "": 21, d: 1 }));
  const body = inside(model, 7);
  const node = inside(body, 1);
  const attributes = new Map(
    all(node, 5).map((bytes) => {
      const fields = decode(bytes as Uint8Array);
      return [texts(fields, 1)[0], fields] as const;
    }),
  );

  test("writes a small model to the byte", () => {
    const empty = { name: "e", nodes: [], initializers: [], inputs: [], outputs: [] };
    // ir_version 10; producer; graph { name "e" }; opset_import { domain "", version 21 }.
    expect([...encodeOnnx(empty, { "": 21 })]).toEqual([
      ...[0x08, 10],
      ...[0x12, 10, ...new TextEncoder().encode("plasticity")],
      ...[0x3a, 3, 0x12, 1, 0x65],
      ...[0x42, 4, 0x0a, 0, 0x10, 21],
    ]);
  });

  test("names the version of every set of operators", () => {
    const sets = all(model, 8).map((bytes) => decode(bytes as Uint8Array));
    expect(sets.map((set) => [texts(set, 1)[0], all(set, 2)[0]])).toEqual([
      ["", 21],
      ["d", 1],
    ]);
  });

  test("keeps inputs that are left out in their place", () => {
    expect(texts(node, 1)).toEqual(["a", "", "b"]);
    expect(texts(node, 2)).toEqual(["y"]);
    expect([texts(node, 4), texts(node, 7)]).toEqual([["Op"], ["d"]]);
  });

  test("writes each kind of attribute with its type", () => {
    const type = (name: string): unknown => all(attributes.get(name)!, 20)[0];
    expect(["f", "i", "s", "t", "g", "l"].map(type)).toEqual([1, 2, 3, 4, 5, 7]);
    expect(all(attributes.get("i")!, 3)).toEqual([-2]);
    expect(all(attributes.get("f")!, 2)).toEqual([Uint8Array.of(0, 0, 0, 0x3f)]);
    expect(texts(attributes.get("s")!, 4)).toEqual(["é"]);
    // 1, -1 as ten bytes of two's complement, 300 as 0xac 0x02.
    const list = [1, ...new Array<number>(9).fill(255), 1, 0xac, 2];
    expect([...(all(attributes.get("l")!, 8)[0] as Uint8Array)]).toEqual(list);
    const tensor = inside(attributes.get("t")!, 5);
    expect([all(tensor, 2), all(tensor, 9)]).toEqual([[21], [Uint8Array.of(0x21, 3)]]);
    expect(texts(inside(attributes.get("g")!, 6), 2)).toEqual(["inner"]);
  });

  test("writes sizes as numbers or names, and none for a scalar", () => {
    const input = inside(inside(inside(body, 11), 2), 1);
    const sizes = all(inside(input, 2), 1).map((bytes) => decode(bytes as Uint8Array));
    expect(all(input, 1)).toEqual([1]);
    expect([texts(sizes[0]!, 2), all(sizes[1]!, 1)]).toEqual([["rows"], [200]]);
    const output = inside(inside(inside(body, 12), 2), 1);
    expect([all(output, 1), all(output, 2)]).toEqual([[9], [new Uint8Array(0)]]);
    const stored = inside(body, 5);
    expect([all(stored, 1), all(stored, 2), texts(stored, 8)]).toEqual([[], [7], ["b"]]);
  });
});
