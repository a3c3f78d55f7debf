/**
 * safetensors files, strictly: one header of names, types, shapes and offsets, then the numbers.
 *
 *   u64 little-endian N, N bytes of JSON, data
 *
 * Follows the checks of the reference (huggingface/safetensors, `tensor.rs`) and its names for what
 * they find (`details.kind`), and adds three: a name may not stand twice, a header ends in spaces
 * alone, and the bytes of BOOL are 0 or 1. Sizes count up to 2^53 - 1 where the reference has 2^64.
 */
import { FormatError, MissingError, ShapeError, UnsupportedError } from "../errors.ts";
import type { Files, OpenFile } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import { viewOn } from "../tensor/dtype.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "./json.ts";
import {
  bitsOf,
  dtypeOrder,
  maxHeaderBytes,
  metadataKey,
  type SafetensorsDtype,
  show,
  tensorDtype,
} from "./safetensors-types.ts";

export type { SafetensorsDtype } from "./safetensors-types.ts";
export {
  createSafetensors,
  encodeSafetensors,
  type SafetensorsWriter,
  type TensorPlan,
  writeSafetensors,
} from "./safetensors-write.ts";

/** What the reference's errors are called, and `InvalidBool`, which is ours. */
export type SafetensorsErrorKind =
  | "HeaderTooLarge"
  | "HeaderTooSmall"
  | "InvalidHeaderLength"
  | "InvalidHeader"
  | "InvalidHeaderStart"
  | "InvalidHeaderDeserialization"
  | "InvalidOffset"
  | "TensorInvalidInfo"
  | "MetadataIncompleteBuffer"
  | "ValidationOverflow"
  | "MisalignedSlice"
  | "TensorNotFound"
  | "InvalidBool";

export interface TensorEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** First byte of the numbers, from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface SafetensorsHeader {
  readonly metadata: Readonly<Record<string, string>>;
  /** By name, in the order of the data. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
}

function fault(
  kind: SafetensorsErrorKind,
  path: string,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
): FormatError {
  return new FormatError(`${path}: ${what}`, { kind, path, ...details });
}

/** A number that is not written as a plain whole number: 1.5, and also 1.0, 1e3 and -0. */
class OddNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
  toJSON(): string {
    return this.text;
  }
}

function wholeNumber(text: string): JsonValue {
  return /^(?:0|[1-9]\d*)$/.test(text) ? Number(text) : (new OddNumber(text) as never);
}

/** Whole numbers, of which some may be too large to count with. */
function isWholeList(value: JsonValue | undefined): value is readonly number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}

interface RawEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

function readEntry(name: string, value: JsonValue | undefined, path: string): RawEntry {
  const wrong = (what: string): FormatError =>
    fault("InvalidHeaderDeserialization", path, `tensor ${show(name)} ${what}`, { name });
  if (!isJsonObject(value) || value instanceof OddNumber) {
    throw wrong(`must be described by an object, got ${show(value)}.`);
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(bitsOf, dtype)) {
    throw wrong(`has the unknown dtype ${show(dtype)} — known are ${dtypeOrder.join(", ")}.`);
  }
  if (!isWholeList(shape)) {
    throw wrong(`must have a shape of whole numbers from 0, got ${show(shape)}.`);
  }
  if (!isWholeList(offsets) || offsets.length !== 2) {
    throw wrong(`must have two whole data_offsets, got ${show(offsets)}.`);
  }
  return { name, dtype: dtype as SafetensorsDtype, shape, start: offsets[0]!, end: offsets[1]! };
}

/** Bytes of a tensor, counted without passing 2^53 - 1. */
function countBytes(entry: RawEntry, path: string): number {
  const { name, dtype, shape } = entry;
  let size = 1;
  for (const dim of [...shape, bitsOf[dtype]]) {
    size *= dim;
    if (!Number.isSafeInteger(size) || !Number.isSafeInteger(dim)) {
      throw fault(
        "ValidationOverflow",
        path,
        `tensor ${show(name)} of shape ${show(shape)} and dtype ${dtype} has more bits than can be counted.`,
        { name },
      );
    }
  }
  if (size % 8 !== 0) {
    throw fault(
      "MisalignedSlice",
      path,
      `tensor ${show(name)} of shape ${show(shape)} and dtype ${dtype} takes ${size} bits, which are not whole bytes.`,
      { name },
    );
  }
  return size / 8;
}

function readMetadata(value: JsonValue | undefined, path: string): Record<string, string> {
  const metadata = Object.create(null) as Record<string, string>;
  if (value === undefined) return metadata;
  const wrong = (what: string): FormatError =>
    fault("InvalidHeaderDeserialization", path, `${metadataKey} ${what}`);
  if (!isJsonObject(value) || value instanceof OddNumber) {
    throw wrong(`must be an object of texts, got ${show(value)}.`);
  }
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") {
      throw wrong(`must map to texts alone, ${show(key)} maps to ${show(text)}.`);
    }
    metadata[key] = text;
  }
  return metadata;
}

/**
 * Checks a header whole; afterwards every entry lies within the file and none overlaps another.
 * @param header the JSON alone, without the eight bytes of its length.
 * @throws FormatError with `details.kind`.
 */
export function parseSafetensorsHeader(
  header: Uint8Array,
  fileBytes: number,
  path: string,
): SafetensorsHeader {
  if (header.length > maxHeaderBytes) throw headerTooLarge(header.length, path);
  if (header[0] !== 0x7b) {
    const got = header.length === 0 ? "an empty header" : `byte 0x${header[0]!.toString(16)}`;
    throw fault("InvalidHeaderStart", path, `the header must begin with "{", got ${got}.`);
  }
  let end = header.length;
  while (header[end - 1] === 0x20) end--;
  if (header[end - 1] !== 0x7d) {
    throw fault(
      "InvalidHeaderDeserialization",
      path,
      `the header must end in "}" and spaces, got byte 0x${header[end - 1]!.toString(16)}.`,
    );
  }
  const text = decodeUtf8(header.subarray(0, end), `${path} (header)`, {
    kind: "InvalidHeader",
    path,
  });
  // The text begins with "{", so whatever parses is an object.
  const root = parseJson(text, `${path} (header)`, {
    maxDepth: 8,
    maxBytes: maxHeaderBytes,
    number: wholeNumber,
    details: { kind: "InvalidHeaderDeserialization", path },
  }) as JsonObject;

  const metadata = readMetadata(root[metadataKey], path);
  const raw = Object.keys(root)
    .filter((name) => name !== metadataKey)
    .map((name) => readEntry(name, root[name], path))
    .sort((a, b) => a.start - b.start || a.end - b.end);

  const dataStart = 8 + header.length;
  const entries = new Map<string, TensorEntry>();
  let next = 0;
  for (const entry of raw) {
    const { name, dtype, shape, start, end: stop } = entry;
    if (start !== next || stop < start) {
      throw fault(
        "InvalidOffset",
        path,
        `tensor ${show(name)} lies at data_offsets [${start}, ${stop}], its data must begin at ${next} — tensors must follow each other without holes or overlaps.`,
        { name, offset: dataStart + start },
      );
    }
    const bytes = countBytes(entry, path);
    if (stop - start !== bytes) {
      throw fault(
        "TensorInvalidInfo",
        path,
        `tensor ${show(name)} of shape ${show(shape)} and dtype ${dtype} takes ${bytes} bytes, its data_offsets span ${stop - start}.`,
        { name, offset: dataStart + start },
      );
    }
    entries.set(name, { name, dtype, shape, offset: dataStart + start, bytes });
    next = stop;
  }
  if (dataStart + next !== fileBytes) {
    throw fault(
      "MetadataIncompleteBuffer",
      path,
      `the tensors end at byte ${dataStart + next}, the file at ${fileBytes} — it is cut short, or carries bytes that no tensor owns.`,
      { offset: dataStart + next },
    );
  }
  return { metadata, entries };
}

function headerTooLarge(bytes: number, path: string): FormatError {
  return fault(
    "HeaderTooLarge",
    path,
    `a header of ${bytes} bytes is too large, at most ${maxHeaderBytes} are read — is this a safetensors file?`,
  );
}

/** The tensors of one file, read one by one where they lie. */
export class SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly #file: OpenFile;

  private constructor(file: OpenFile, path: string, header: SafetensorsHeader) {
    this.#file = file;
    this.path = path;
    this.metadata = header.metadata;
    this.entries = header.entries;
  }

  /**
   * Reads and checks the header, and nothing else.
   * @throws MissingError when there is no such file.
   * @throws FormatError with `details.kind` when it breaks the format.
   */
  static async open(files: Files, path: string): Promise<SafetensorsFile> {
    const file = await files.open(path);
    try {
      if (file.bytes < 8) {
        throw fault(
          "HeaderTooSmall",
          path,
          `holds ${file.bytes} bytes, a safetensors file begins with 8 bytes of header length.`,
        );
      }
      const prefix = new Uint8Array(8);
      await file.read(prefix, 0);
      const view = new DataView(prefix.buffer);
      const headerBytes = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
      if (headerBytes > maxHeaderBytes) throw headerTooLarge(headerBytes, path);
      if (headerBytes > file.bytes - 8) {
        throw fault(
          "InvalidHeaderLength",
          path,
          `a header of ${headerBytes} bytes does not fit a file of ${file.bytes} — the file is cut short.`,
        );
      }
      const header = new Uint8Array(headerBytes);
      await file.read(header, 8);
      return new SafetensorsFile(file, path, parseSafetensorsHeader(header, file.bytes, path));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** @throws MissingError when the file has no such tensor. */
  #entry(name: string): TensorEntry {
    const entry = this.entries.get(name);
    if (entry) return entry;
    throw new MissingError(`${this.path}: has no tensor ${show(name)}.`, {
      kind: "TensorNotFound",
      path: this.path,
      name,
    });
  }

  /**
   * One tensor.
   * @throws UnsupportedError for types that no Tensor holds; `readBytes` reads those.
   */
  async read(name: string): Promise<Tensor> {
    const { dtype: written, shape, offset } = this.#entry(name);
    const dtype = tensorDtype.get(written);
    if (dtype === undefined) {
      throw new UnsupportedError(
        `${this.path}: tensor ${show(name)} has dtype ${written}, which no Tensor holds — read its bytes with readBytes.`,
        { path: this.path, name, dtype: written },
      );
    }
    const bytes = await this.readBytes(name);
    if (dtype === "bool") {
      const bad = bytes.findIndex((byte) => byte > 1);
      if (bad >= 0) {
        throw fault(
          "InvalidBool",
          this.path,
          `tensor ${show(name)} of dtype BOOL holds ${bytes[bad]} at element ${bad}, only 0 and 1 are allowed.`,
          { name, offset: offset + bad },
        );
      }
    }
    return new Tensor(dtype, shape, viewOn(dtype, bytes.buffer, 0, sizeOf(shape)));
  }

  /** The bytes of one tensor of any type, as the file has them (little-endian, row-major). */
  async readBytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const { bytes, offset } = this.#entry(name);
    const into = new Uint8Array(bytes);
    await this.#file.read(into, offset);
    return into;
  }

  /**
   * Reads the bytes of one tensor into a place of exactly their number.
   * @throws ShapeError when `into` is larger or smaller.
   */
  async readInto(name: string, into: Uint8Array): Promise<void> {
    const { bytes, offset } = this.#entry(name);
    if (into.length !== bytes) {
      throw new ShapeError(
        `${this.path}: tensor ${show(name)} has ${bytes} bytes, the place for it ${into.length}.`,
        { path: this.path, name },
      );
    }
    await this.#file.read(into, offset);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
