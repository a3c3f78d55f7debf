/** Writes ONNX models: the few protobuf messages of onnx.proto3 that we use. */
import { FormatError } from "../errors.ts";
import type { Dtype } from "../tensor/dtype.ts";
import type { Shape } from "../tensor/shape.ts";

/** onnx.TensorProto.DataType */
export const onnxTypes: Readonly<Record<Dtype | "uint4", number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  bfloat16: 16,
  uint4: 21,
};

export interface OnnxTensor {
  readonly name: string;
  readonly type: Dtype | "uint4";
  readonly dims: readonly number[];
  readonly data: Uint8Array;
  /** Where the numbers lie when they are in a file of their own; `data` is then left out. */
  readonly external?: {
    readonly location: string;
    readonly offset: number;
    readonly length: number;
  };
}

export type OnnxAttribute =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly string: string }
  | { readonly ints: readonly number[] }
  | { readonly floats: readonly number[] }
  | { readonly tensor: OnnxTensor }
  | { readonly graph: OnnxGraph };

export interface OnnxNode {
  readonly op: string;
  readonly domain: string;
  /** An empty name leaves an optional input or output out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, OnnxAttribute>>;
}

export interface OnnxValue {
  readonly name: string;
  readonly type: Dtype | "uint4";
  readonly shape: Shape;
}

export interface OnnxGraph {
  readonly name: string;
  readonly nodes: readonly OnnxNode[];
  readonly initializers: readonly OnnxTensor[];
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
}

const utf8 = new TextEncoder();

/** A growing buffer of protobuf fields. */
class Writer {
  #bytes = new Uint8Array(256);
  #size = 0;

  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#size);
  }

  #room(size: number): void {
    if (this.#size + size <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#size + size));
    grown.set(this.bytes);
    this.#bytes = grown;
  }

  #varint(value: number): void {
    this.#room(10);
    if (value < 0) {
      // Negative int64: ten bytes of two's complement.
      let rest = BigInt.asUintN(64, BigInt(value));
      while (rest > 127n) {
        this.#bytes[this.#size++] = Number(rest & 127n) | 128;
        rest >>= 7n;
      }
      this.#bytes[this.#size++] = Number(rest);
      return;
    }
    let rest = value;
    while (rest > 127) {
      this.#bytes[this.#size++] = (rest % 128) | 128;
      rest = Math.floor(rest / 128);
    }
    this.#bytes[this.#size++] = rest;
  }

  int(field: number, value: number): void {
    this.#varint(field * 8);
    this.#varint(value);
  }

  float(field: number, value: number): void {
    this.#varint(field * 8 + 5);
    this.#room(4);
    new DataView(this.#bytes.buffer).setFloat32(this.#size, value, true);
    this.#size += 4;
  }

  blob(field: number, value: Uint8Array): void {
    this.#varint(field * 8 + 2);
    this.#varint(value.length);
    this.#room(value.length);
    this.#bytes.set(value, this.#size);
    this.#size += value.length;
  }

  text(field: number, value: string): void {
    this.blob(field, utf8.encode(value));
  }

  /** What comes before a blob of `size` bytes. */
  head(field: number, size: number): void {
    this.#varint(field * 8 + 2);
    this.#varint(size);
  }

  message(field: number, write: (inner: Writer) => void): void {
    const inner = new Writer();
    write(inner);
    this.blob(field, inner.bytes);
  }

  ints(field: number, values: readonly number[]): void {
    this.message(field, (inner) => {
      for (const value of values) inner.#varint(value);
    });
  }
}

function writeTensor(w: Writer, tensor: OnnxTensor): void {
  if (tensor.dims.length > 0) w.ints(1, tensor.dims);
  w.int(2, onnxTypes[tensor.type]);
  w.text(8, tensor.name);
  if (!tensor.external) {
    w.blob(9, tensor.data);
    return;
  }
  for (const [key, value] of Object.entries(tensor.external)) {
    w.message(13, (entry) => {
      entry.text(1, key);
      entry.text(2, String(value));
    });
  }
  w.int(14, 1);
}

function writeAttribute(w: Writer, name: string, attribute: OnnxAttribute): void {
  w.text(1, name);
  if ("float" in attribute) {
    w.float(2, attribute.float);
    w.int(20, 1);
  } else if ("int" in attribute) {
    w.int(3, attribute.int);
    w.int(20, 2);
  } else if ("string" in attribute) {
    w.text(4, attribute.string);
    w.int(20, 3);
  } else if ("tensor" in attribute) {
    w.message(5, (inner) => writeTensor(inner, attribute.tensor));
    w.int(20, 4);
  } else if ("graph" in attribute) {
    w.message(6, (inner) => writeGraph(inner, attribute.graph));
    w.int(20, 5);
  } else if ("floats" in attribute) {
    for (const value of attribute.floats) w.float(7, value);
    w.int(20, 6);
  } else {
    w.ints(8, attribute.ints);
    w.int(20, 7);
  }
}

function writeNode(w: Writer, node: OnnxNode): void {
  for (const input of node.inputs) w.text(1, input);
  for (const output of node.outputs) w.text(2, output);
  w.text(4, node.op);
  for (const [name, attribute] of Object.entries(node.attributes)) {
    w.message(5, (inner) => writeAttribute(inner, name, attribute));
  }
  if (node.domain !== "") w.text(7, node.domain);
}

function writeValue(w: Writer, value: OnnxValue): void {
  w.text(1, value.name);
  w.message(2, (type) =>
    type.message(1, (tensor) => {
      tensor.int(1, onnxTypes[value.type]);
      tensor.message(2, (shape) => {
        for (const dim of value.shape) {
          shape.message(1, (inner) => {
            if (typeof dim === "number") inner.int(1, dim);
            else inner.text(2, dim);
          });
        }
      });
    }),
  );
}

function writeGraph(w: Writer, graph: OnnxGraph): void {
  for (const node of graph.nodes) w.message(1, (inner) => writeNode(inner, node));
  w.text(2, graph.name);
  for (const tensor of graph.initializers) w.message(5, (inner) => writeTensor(inner, tensor));
  for (const input of graph.inputs) w.message(11, (inner) => writeValue(inner, input));
  for (const output of graph.outputs) w.message(12, (inner) => writeValue(inner, output));
}

const modelLimit = 2 ** 31 - 1;

function writeOpsets(w: Writer, opsets: Readonly<Record<string, number>>): void {
  for (const [domain, version] of Object.entries(opsets)) {
    w.message(8, (inner) => {
      inner.text(1, domain);
      inner.int(2, version);
    });
  }
}

/** onnx.proto3's IR_VERSION of 2024, the first with uint4. */
const irVersion = 10;

function checkSize(bytes: number): void {
  if (bytes <= modelLimit) return;
  throw new FormatError(
    `onnx: the model has ${bytes} bytes, its format holds ${modelLimit} — pass large weights as inputs.`,
  );
}

/**
 * The bytes of a model.
 * @throws FormatError above 2 GiB, which protobuf cannot hold.
 */
export function encodeOnnx(
  graph: OnnxGraph,
  opsets: Readonly<Record<string, number>>,
): Uint8Array<ArrayBuffer> {
  const w = new Writer();
  w.int(1, irVersion);
  w.text(2, "plasticity");
  w.message(7, (inner) => writeGraph(inner, graph));
  writeOpsets(w, opsets);
  checkSize(w.bytes.length);
  return w.bytes;
}

/** Initialisers from this many bytes on are not copied by `encodeOnnxParts`. */
const largeInitializer = 4096;

/**
 * The bytes of a model in pieces, of which large initialisers are the tensors' own memory: for
 * writing a file without a second copy of the weights.
 * @throws FormatError above 2 GiB, which protobuf cannot hold.
 */
export function encodeOnnxParts(
  graph: OnnxGraph,
  opsets: Readonly<Record<string, number>>,
): Uint8Array[] {
  const isLarge = ({ data, external }: OnnxTensor): boolean =>
    !external && data.length >= largeInitializer;
  const small = new Writer();
  writeGraph(small, {
    ...graph,
    initializers: graph.initializers.filter((tensor) => !isLarge(tensor)),
  });
  const parts: Uint8Array[] = [small.bytes];
  for (const tensor of graph.initializers.filter(isLarge)) {
    const fields = new Writer();
    fields.ints(1, tensor.dims);
    fields.int(2, onnxTypes[tensor.type]);
    fields.text(8, tensor.name);
    fields.head(9, tensor.data.length);
    const head = new Writer();
    head.head(5, fields.bytes.length + tensor.data.length);
    parts.push(head.bytes, fields.bytes, tensor.data);
  }
  const size = parts.reduce((total, part) => total + part.length, 0);
  checkSize(size + 1024);
  const first = new Writer();
  first.int(1, irVersion);
  first.text(2, "plasticity");
  first.head(7, size);
  const last = new Writer();
  writeOpsets(last, opsets);
  return [first.bytes, ...parts, last.bytes];
}
