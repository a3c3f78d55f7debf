/**
 * Reads ONNX models: the messages of onnx.proto3 that `onnx.ts` writes; fields beyond are passed
 * over. Every length is checked against the bytes that are there, and nesting has a cap.
 */
import { FormatError } from "../errors.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import type { Dim } from "../tensor/shape.ts";
import {
  type OnnxAttribute,
  type OnnxGraph,
  type OnnxNode,
  type OnnxTensor,
  type OnnxValue,
  onnxTypes,
} from "./onnx.ts";

export interface OnnxModel {
  readonly irVersion: number;
  readonly producer: string;
  readonly opsets: Readonly<Record<string, number>>;
  readonly graph: OnnxGraph;
}

/** A field of a message: its number, and what it holds. */
interface Field {
  readonly field: number;
  /** Varints and fixed 64-bit numbers, as signed numbers. */
  readonly int: number;
  readonly float: number;
  readonly blob: Uint8Array;
}

const nothing = new Uint8Array(0);
/** Bodies of loops within loops. */
const maxDepth = 16;

const typeNames: ReadonlyMap<number, string> = new Map([
  ...Object.entries(onnxTypes).map(([name, id]) => [id, name] as const),
  [4, "uint16"],
  [5, "int16"],
  [8, "string"],
  [12, "uint32"],
  [13, "uint64"],
  [22, "int4"],
]);

function typeName(id: number): OnnxTensor["type"] {
  return (typeNames.get(id) ?? `type ${id}`) as OnnxTensor["type"];
}

class Reader {
  readonly path: string;
  readonly bytes: Uint8Array;
  /** Where these bytes begin in the file, for errors. */
  readonly start: number;
  #at = 0;

  constructor(path: string, bytes: Uint8Array, start: number) {
    this.path = path;
    this.bytes = bytes;
    this.start = start;
  }

  wrong(what: string): FormatError {
    const offset = this.start + this.#at;
    return new FormatError(`${this.path}: byte ${offset}: ${what} — is this an ONNX model?`, {
      path: this.path,
      offset,
    });
  }

  get isDone(): boolean {
    return this.#at >= this.bytes.length;
  }

  /** Up to 64 bits, two's complement; beyond 2^53 the last bits are lost. */
  varint(): number {
    let low = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = this.bytes[this.#at++];
      if (byte === undefined) throw this.wrong("a number is cut short");
      low |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, low));
    }
    throw this.wrong("a number has more than ten bytes");
  }

  take(size: number): Uint8Array {
    if (size < 0 || this.#at + size > this.bytes.length) {
      throw this.wrong(`${size} bytes are announced, ${this.bytes.length - this.#at} are left`);
    }
    const taken = this.bytes.subarray(this.#at, this.#at + size);
    this.#at += size;
    return taken;
  }

  *fields(): IterableIterator<Field> {
    while (!this.isDone) {
      const tag = this.varint();
      const field = Math.floor(tag / 8);
      if (field < 1) throw this.wrong(`field number ${field} is not allowed`);
      const base = { field, int: 0, float: 0, blob: nothing };
      const kind = tag % 8;
      if (kind === 0) yield { ...base, int: this.varint() };
      else if (kind === 2) yield { ...base, blob: this.take(this.varint()) };
      else if (kind === 5) {
        const four = this.take(4);
        yield { ...base, float: new DataView(four.buffer, four.byteOffset).getFloat32(0, true) };
      } else if (kind === 1) {
        this.take(8);
        yield base;
      } else throw this.wrong(`wire type ${kind} is not known`);
    }
  }

  inner(blob: Uint8Array): Reader {
    return new Reader(this.path, blob, this.start + blob.byteOffset - this.bytes.byteOffset);
  }

  text(blob: Uint8Array): string {
    return decodeUtf8(blob, this.path, { path: this.path });
  }

  /** A repeated number: packed, or one field each. */
  numbers({ blob, int }: Field, into: number[]): void {
    if (blob === nothing) {
      into.push(int);
      return;
    }
    const packed = this.inner(blob);
    while (!packed.isDone) into.push(packed.varint());
  }
}

function readTensor(r: Reader): OnnxTensor {
  const dims: number[] = [];
  let [type, name, data] = [0, "", nothing as Uint8Array];
  const external: Record<string, string> = {};
  for (const field of r.fields()) {
    if (field.field === 1) r.numbers(field, dims);
    else if (field.field === 2) type = field.int;
    else if (field.field === 8) name = r.text(field.blob);
    else if (field.field === 9) data = field.blob;
    else if (field.field === 13) {
      let [key, value] = ["", ""];
      for (const part of r.inner(field.blob).fields()) {
        if (part.field === 1) key = r.text(part.blob);
        if (part.field === 2) value = r.text(part.blob);
      }
      external[key] = value;
    }
  }
  if (dims.some((dim) => dim < 0 || !Number.isSafeInteger(dim))) {
    throw r.wrong(`tensor "${name}" has the shape [${dims.join(", ")}]`);
  }
  const tensor = { name, type: typeName(type), dims, data };
  if (external["location"] === undefined) return tensor;
  return {
    ...tensor,
    external: {
      location: external["location"],
      offset: Number(external["offset"] ?? 0),
      length: Number(external["length"] ?? 0),
    },
  };
}

function readAttribute(r: Reader, depth: number): [string, OnnxAttribute | undefined] {
  let name = "";
  let kind = 0;
  let int = 0;
  let float = 0;
  let blob: Uint8Array = nothing;
  let tensor: OnnxTensor | undefined;
  let graph: OnnxGraph | undefined;
  const ints: number[] = [];
  const floats: number[] = [];
  for (const field of r.fields()) {
    if (field.field === 1) name = r.text(field.blob);
    else if (field.field === 2) float = field.float;
    else if (field.field === 3) int = field.int;
    else if (field.field === 4) blob = field.blob;
    else if (field.field === 5) tensor = readTensor(r.inner(field.blob));
    else if (field.field === 6) graph = readGraph(r.inner(field.blob), depth + 1);
    else if (field.field === 7) {
      const { byteOffset, byteLength, buffer } = field.blob;
      const view = new DataView(buffer, byteOffset, byteLength);
      if (byteLength === 0) floats.push(field.float);
      for (let i = 0; i + 4 <= byteLength; i += 4) floats.push(view.getFloat32(i, true));
    } else if (field.field === 8) r.numbers(field, ints);
    else if (field.field === 20) kind = field.int;
  }
  const values: Readonly<Record<number, OnnxAttribute | undefined>> = {
    1: { float },
    2: { int },
    3: { string: r.text(kind === 3 ? blob : nothing) },
    4: tensor && { tensor },
    5: graph && { graph },
    6: { floats },
    7: { ints },
  };
  return [name, values[kind]];
}

function readNode(r: Reader, depth: number): OnnxNode {
  const inputs: string[] = [];
  const outputs: string[] = [];
  const attributes: Record<string, OnnxAttribute> = {};
  let [op, domain] = ["", ""];
  for (const { field, blob } of r.fields()) {
    if (field === 1) inputs.push(r.text(blob));
    else if (field === 2) outputs.push(r.text(blob));
    else if (field === 4) op = r.text(blob);
    else if (field === 5) {
      const [name, value] = readAttribute(r.inner(blob), depth);
      if (value) attributes[name] = value;
    } else if (field === 7) domain = r.text(blob);
  }
  return { op, domain, inputs, outputs, attributes };
}

function readValue(r: Reader): OnnxValue {
  let [name, type] = ["", 0];
  const shape: Dim[] = [];
  for (const outer of r.fields()) {
    if (outer.field === 1) name = r.text(outer.blob);
    if (outer.field !== 2) continue;
    for (const kind of r.inner(outer.blob).fields()) {
      if (kind.field !== 1) continue;
      for (const part of r.inner(kind.blob).fields()) {
        if (part.field === 1) type = part.int;
        if (part.field !== 2) continue;
        for (const { blob } of r.inner(part.blob).fields()) {
          let dim: Dim = "?";
          for (const size of r.inner(blob).fields()) {
            dim = size.field === 2 ? r.text(size.blob) : size.int;
          }
          shape.push(dim);
        }
      }
    }
  }
  return { name, type: typeName(type), shape };
}

function readGraph(r: Reader, depth: number): OnnxGraph {
  if (depth > maxDepth) throw r.wrong(`graphs are nested more than ${maxDepth} deep`);
  let name = "";
  const nodes: OnnxNode[] = [];
  const initializers: OnnxTensor[] = [];
  const inputs: OnnxValue[] = [];
  const outputs: OnnxValue[] = [];
  for (const { field, blob } of r.fields()) {
    if (field === 1) nodes.push(readNode(r.inner(blob), depth));
    else if (field === 2) name = r.text(blob);
    else if (field === 5) initializers.push(readTensor(r.inner(blob)));
    else if (field === 11) inputs.push(readValue(r.inner(blob)));
    else if (field === 12) outputs.push(readValue(r.inner(blob)));
  }
  return { name, nodes, initializers, inputs, outputs };
}

/**
 * Reads a model. Numbers of initialisers are views of `bytes`; those kept in fields of their type,
 * which `onnx.ts` never writes, come out empty, as do attributes of kinds that it does not know.
 * @throws FormatError for bytes that are no ONNX model, with the offset.
 */
export function decodeOnnx(bytes: Uint8Array, path: string): OnnxModel {
  const r = new Reader(path, bytes, 0);
  let irVersion = 0;
  let producer = "";
  let graph: OnnxGraph | undefined;
  const opsets: Record<string, number> = {};
  for (const { field, int, blob } of r.fields()) {
    if (field === 1) irVersion = int;
    else if (field === 2) producer = r.text(blob);
    else if (field === 7) graph = readGraph(r.inner(blob), 0);
    else if (field === 8) {
      let [domain, version] = ["", 0];
      for (const part of r.inner(blob).fields()) {
        if (part.field === 1) domain = r.text(part.blob);
        if (part.field === 2) version = part.int;
      }
      opsets[domain] = version;
    }
  }
  if (!graph) throw r.wrong("there is no graph");
  return { irVersion, producer, opsets, graph };
}
