import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import parity from "../../test/parity/safetensors.json" with { type: "json" };
import { FormatError, PlasticityError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import type { Dtype } from "../tensor/dtype.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { openCheckpoint } from "./checkpoint.ts";
import {
  encodeSafetensors,
  parseSafetensorsHeader,
  SafetensorsFile,
  writeSafetensors,
} from "./safetensors.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-safetensors-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();
let count = 0;
const newPath = (): string => join(root, `${count++}.safetensors`);

function fileOf(header: string | Uint8Array, dataBytes = 0, declared?: bigint): Uint8Array {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, declared ?? BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

async function open(bytes: Uint8Array): Promise<SafetensorsFile> {
  const path = newPath();
  writeFileSync(path, bytes);
  return SafetensorsFile.open(files, path);
}

async function refusal(bytes: Uint8Array): Promise<FormatError> {
  const file = await open(bytes).catch((error: unknown) => error);
  expect(file).toBeInstanceOf(FormatError);
  return file as FormatError;
}

/** `"a":{...}` for headers written by hand. */
const entry = (name: string, dtype: string, shape: string, offsets: string): string =>
  `"${name}":{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${offsets}]}`;

function toTensor(dtype: Dtype, shape: number[], values: readonly (number | string | boolean)[]) {
  if (dtype === "int64") {
    return new Tensor(
      "int64",
      shape,
      BigInt64Array.from(values, (v) => BigInt(v as string)),
    );
  }
  return Tensor.from(values.map(Number), shape, dtype);
}

describe("files written by the reference library", () => {
  for (const { title, metadata, tensors, base64 } of parity.files) {
    const expected = tensors.map(
      ({ name, dtype, shape, values }) => [name, toTensor(dtype as Dtype, shape, values)] as const,
    );
    const bytes = new Uint8Array(Buffer.from(base64, "base64"));

    it(`reads ${title}${metadata ? ", with metadata" : ""}`, async () => {
      const file = await open(bytes);
      expect({ ...file.metadata }).toEqual(metadata ?? {});
      expect(new Set(file.entries.keys())).toEqual(new Set(expected.map(([name]) => name)));
      for (const [name, tensor] of expected) {
        const read = await file.read(name);
        expect(read.dtype, name).toBe(tensor.dtype);
        expect(read.shape, name).toEqual(tensor.shape);
        // NaN payloads are bits that a number does not show: compare numbers where they are plain.
        expect(Array.from(read.numbers()), name).toEqual(Array.from(tensor.numbers()));
        if (read.dtype === "int64") expect(read.data).toEqual(tensor.data);
      }
      await file.close();
    });

    it(`writes ${title}${metadata ? ", with metadata" : ""} to the same bytes`, async () => {
      expect(Buffer.from(encodeSafetensors(expected, metadata ?? {})).toString("base64")).toBe(
        base64,
      );
      const path = newPath();
      await writeSafetensors(files, path, expected.toReversed(), metadata ?? {});
      expect(Buffer.from(await files.readBytes(path)).toString("base64")).toBe(base64);
    });
  }

  it("gives types that no Tensor holds as bytes alone", async () => {
    const file = await open(new Uint8Array(Buffer.from(parity.bytesOnly.base64, "base64")));
    for (const [name, dtype, shape] of parity.bytesOnly.tensors as [
      keyof typeof parity.bytesOnly.hex,
      string,
      number[],
    ][]) {
      expect(file.entries.get(name)).toMatchObject({ dtype, shape });
      const bytes = await file.readBytes(name);
      expect(Buffer.from(bytes).toString("hex")).toBe(parity.bytesOnly.hex[name]);
      await expect(file.read(name)).rejects.toMatchObject({
        code: "unsupported",
        message: `${file.path}: tensor "${name}" has dtype ${dtype}, which no Tensor holds — read its bytes with readBytes.`,
      });
    }
    await file.close();
  });
});

describe("opening", () => {
  it("refuses each broken rule under the reference's name, with the values", async () => {
    const two = (offsets: string): string =>
      `{${entry("a", "F32", "1", "0,4")},${entry("b", "F32", "1", offsets)}}`;
    const cases: [kind: string, sentence: string, file: Uint8Array][] = [
      [
        "HeaderTooSmall",
        "holds 7 bytes, a safetensors file begins with 8 bytes of header length.",
        new Uint8Array(7),
      ],
      [
        "HeaderTooLarge",
        "a header of 100000001 bytes is too large, at most 100000000 are read — is this a safetensors file?",
        fileOf("{}", 0, 100_000_001n),
      ],
      [
        "HeaderTooLarge",
        "a header of 18446744073709552000 bytes is too large, at most 100000000 are read — is this a safetensors file?",
        fileOf("{}", 0, 2n ** 64n - 1n),
      ],
      [
        "InvalidHeaderLength",
        "a header of 3 bytes does not fit a file of 10 — the file is cut short.",
        fileOf("{}", 0, 3n),
      ],
      ["InvalidHeaderStart", 'the header must begin with "{", got an empty header.', fileOf("")],
      ["InvalidHeaderStart", 'the header must begin with "{", got byte 0x20.', fileOf(" {}")],
      ["InvalidHeaderStart", 'the header must begin with "{", got byte 0x5b.', fileOf("[]")],
      [
        "InvalidHeaderDeserialization",
        'the header must end in "}" and spaces, got byte 0xa.',
        fileOf("{}  \n"),
      ],
      [
        "InvalidHeader",
        "byte 2 (0xff) is not UTF-8",
        fileOf(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)),
      ],
      ["InvalidHeaderDeserialization", "invalid JSON at byte 1: a key in quotes", fileOf("{a}")],
      [
        "InvalidHeaderDeserialization",
        'invalid JSON at byte 54: key "a" stands twice in one object.',
        fileOf(`{${entry("a", "F32", "1", "0,4")},${entry("a", "F32", "1", "4,8")}}`, 8),
      ],
      [
        "InvalidHeaderDeserialization",
        'invalid JSON at byte 25: key "k" stands twice in one object.',
        fileOf('{"__metadata__":{"k":"", "k":""}}'),
      ],
      [
        "InvalidHeaderDeserialization",
        '__metadata__ must map to texts alone, "k" maps to 1.',
        fileOf('{"__metadata__":{"k":1}}'),
      ],
      [
        "InvalidHeaderDeserialization",
        "__metadata__ must be an object of texts, got null.",
        fileOf('{"__metadata__":null}'),
      ],
      [
        "InvalidHeaderDeserialization",
        'tensor "a" must be described by an object, got "1.0".',
        fileOf('{"a":1.0}'),
      ],
      [
        "InvalidHeaderDeserialization",
        'tensor "a" has the unknown dtype "F31" — known are BOOL, F4, ',
        fileOf(`{${entry("a", "F31", "1", "0,4")}}`, 4),
      ],
      [
        "InvalidHeaderDeserialization",
        'tensor "a" has the unknown dtype "toString"',
        fileOf(`{${entry("a", "toString", "1", "0,4")}}`, 4),
      ],
      ...["1.0", "1e0", "-1", "-0", '"1"', "null", "[1]", "true"].map(
        (dim): [string, string, Uint8Array] => [
          "InvalidHeaderDeserialization",
          'tensor "a" must have a shape of whole numbers from 0, got [',
          fileOf(`{${entry("a", "F32", dim, "0,4")}}`, 4),
        ],
      ),
      [
        "InvalidHeaderDeserialization",
        'tensor "a" must have two whole data_offsets, got [0,4,4].',
        fileOf(`{${entry("a", "F32", "1", "0,4,4")}}`, 4),
      ],
      [
        "InvalidHeaderDeserialization",
        'tensor "a" must have two whole data_offsets, got nothing.',
        fileOf('{"a":{"dtype":"F32","shape":[1]}}', 4),
      ],
      [
        "InvalidOffset",
        'tensor "a" lies at data_offsets [4, 8], its data must begin at 0 — tensors must follow each other without holes or overlaps.',
        fileOf(`{${entry("a", "F32", "1", "4,8")}}`, 8),
      ],
      ["InvalidOffset", 'tensor "b" lies at data_offsets [2, 6]', fileOf(two("2,6"), 8)],
      ["InvalidOffset", 'tensor "b" lies at data_offsets [5, 9]', fileOf(two("5,9"), 9)],
      ["InvalidOffset", 'tensor "b" lies at data_offsets [4, 2]', fileOf(two("4,2"), 8)],
      ["InvalidOffset", 'tensor "b" lies at data_offsets [0, 4]', fileOf(two("0,4"), 4)],
      [
        "TensorInvalidInfo",
        'tensor "a" of shape [3] and dtype F32 takes 12 bytes, its data_offsets span 8.',
        fileOf(`{${entry("a", "F32", "3", "0,8")}}`, 8),
      ],
      [
        "MisalignedSlice",
        'tensor "a" of shape [3] and dtype F4 takes 12 bits, which are not whole bytes.',
        fileOf(`{${entry("a", "F4", "3", "0,2")}}`, 2),
      ],
      // 2^32 × 2^32 elements are 2^64, which wraps to 0 in 64 bits.
      [
        "ValidationOverflow",
        'tensor "a" of shape [4294967296,4294967296] and dtype F32 has more bits than can be counted.',
        fileOf(`{${entry("a", "F32", "4294967296,4294967296", "0,0")}}`),
      ],
      [
        "ValidationOverflow",
        'tensor "a" of shape [0,18446744073709552000] and dtype F32',
        fileOf(`{${entry("a", "F32", "0,18446744073709551616", "0,0")}}`),
      ],
      [
        "MetadataIncompleteBuffer",
        "the tensors end at byte 69, the file at 70 — it is cut short, or carries bytes that no tensor owns.",
        fileOf(`{${entry("a", "F32", "1", "0,4")}}   `, 5),
      ],
      [
        "MetadataIncompleteBuffer",
        "the tensors end at byte 66, the file at 65",
        fileOf(`{${entry("a", "F32", "1", "0,4")}}`, 3),
      ],
    ];
    for (const [kind, sentence, file] of cases) {
      const error = await refusal(file);
      expect(error.message, kind).toContain(sentence);
      expect(error.details["kind"], error.message).toBe(kind);
      expect(error.message.startsWith(String(error.details["path"]))).toBe(true);
    }
  });

  it("allows spaces at the end, empty and rank-0 tensors, sub-byte types in whole bytes, any order", async () => {
    const header = `{${entry("late", "F4", "2,3", "4,7")},"__metadata__":{},${entry("none", "F64", "0,7", "4,4")},${entry("scalar", "F32", "", "0,4")}}   `;
    const file = await open(fileOf(header, 7));
    expect([...file.entries.keys()]).toEqual(["scalar", "none", "late"]);
    expect(await file.read("scalar")).toMatchObject({ shape: [] });
    expect(await file.read("none")).toMatchObject({ shape: [0, 7], dtype: "float64" });
    expect((await file.readBytes("late")).length).toBe(3);
    await file.close();
  });

  it("reads the header alone, whatever the file's size", () => {
    // A terabyte that exists nowhere: nothing but the header is looked at.
    const header = new TextEncoder().encode(
      `{${entry("a", "U8", "1099511627776", "0,1099511627776")}}`,
    );
    const { entries } = parseSafetensorsHeader(header, 8 + header.length + 2 ** 40, "big");
    expect(entries.get("a")!.bytes).toBe(2 ** 40);
  });
});

describe("reading tensors", () => {
  it("names a tensor that is not there", async () => {
    const file = await open(fileOf("{}"));
    await expect(file.read("w")).rejects.toMatchObject({
      message: `${file.path}: has no tensor "w".`,
      code: "missing",
      details: { kind: "TensorNotFound" },
    });
    await expect(file.read("__proto__")).rejects.toThrow('has no tensor "__proto__".');
    await file.close();
  });

  it("refuses BOOL bytes other than 0 and 1", async () => {
    const bytes = fileOf(`{${entry("mask", "BOOL", "3", "0,3")}}`, 3);
    bytes[bytes.length - 1] = 2;
    const file = await open(bytes);
    await expect(file.read("mask")).rejects.toMatchObject({
      message: `${file.path}: tensor "mask" of dtype BOOL holds 2 at element 2, only 0 and 1 are allowed.`,
      details: { kind: "InvalidBool", offset: bytes.length - 1 },
    });
    await file.close();
  });

  it("fills a place of exactly the tensor's size", async () => {
    const file = await open(encodeSafetensors([["w", Tensor.from([1, 2])]]));
    const into = new Uint8Array(8);
    await file.readInto("w", into);
    expect([...new Float32Array(into.buffer)]).toEqual([1, 2]);
    await expect(file.readInto("w", new Uint8Array(7))).rejects.toThrow(
      `${file.path}: tensor "w" has 8 bytes, the place for it 7.`,
    );
    await file.close();
  });
});

describe("writing", () => {
  it("begins the data at a multiple of 8 and leaves out empty metadata", () => {
    const bytes = encodeSafetensors([["x", Tensor.from([1])]], {});
    expect(bytes[0]! % 8).toBe(0);
    expect(Buffer.from(bytes).toString("latin1")).not.toContain("__metadata__");
  });

  it("writes a part of a larger buffer as that part", async () => {
    const data = Float32Array.of(1, 2, 3, 4).subarray(1, 3);
    const file = await open(encodeSafetensors([["x", new Tensor("float32", [2], data)]]));
    expect([...((await file.read("x")).numbers() as Float32Array)]).toEqual([2, 3]);
    await file.close();
  });

  it("refuses names that a reader would refuse", () => {
    const one = Tensor.from([1]);
    const cases: [() => unknown, string][] = [
      [
        () =>
          encodeSafetensors([
            ["a", one],
            ["a", one],
          ]),
        'tensor name "a" stands twice — rename it.',
      ],
      [
        () => encodeSafetensors([["__metadata__", one]]),
        'tensor name "__metadata__" is kept for metadata — rename it.',
      ],
      [
        () => encodeSafetensors([["\ud800", one]]),
        'tensor name "\\ud800" has half of a surrogate pair — it has no UTF-8 form.',
      ],
      [
        () => encodeSafetensors([], { a: 1 as unknown as string }),
        'metadata must be texts, "a" is 1 — write it as text.',
      ],
    ];
    for (const [call, sentence] of cases) expect(call).toThrow(`safetensors: ${sentence}`);
    expect(() => encodeSafetensors([["\\ud800", one]])).not.toThrow();
  });

  it("can replace the file that it is reading from", async () => {
    const path = newPath();
    await writeSafetensors(files, path, [["w", Tensor.from([1, 2, 3])]]);
    const file = await SafetensorsFile.open(files, path);
    await writeSafetensors(files, path, [["w", Tensor.from([9])]]);
    expect((await file.read("w")).size).toBe(3);
    await file.close();
    expect(readdirSync(root).filter((name) => name.includes(".tmp-"))).toEqual([]);
  });

  it("gives back names, shapes and bits of anything it wrote", async () => {
    const tensor = fc
      .tuple(
        fc.constantFrom<Dtype>(
          "float32",
          "float16",
          "bfloat16",
          "int32",
          "uint8",
          "int64",
          "float64",
        ),
        fc.array(fc.nat({ max: 3 }), { maxLength: 3 }),
        fc.nat(),
      )
      .map(([dtype, shape, seed]) => {
        const rng = new Rng(seed);
        const size = shape.reduce((a, b) => a * b, 1);
        return Tensor.from(
          Array.from({ length: size }, () => rng.integer(100)),
          shape,
          dtype,
        );
      });
    const table = fc.dictionary(fc.string({ unit: "binary" }), tensor, { maxKeys: 6 });
    const texts = fc.dictionary(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }));
    await fc.assert(
      fc.asyncProperty(table, texts, async (tensors, metadata) => {
        const file = await open(encodeSafetensors(Object.entries(tensors), metadata));
        expect(Object.entries(file.metadata)).toEqual(Object.entries(metadata));
        expect(file.entries.size).toBe(Object.keys(tensors).length);
        for (const [name, tensor] of Object.entries(tensors)) {
          const read = await file.read(name);
          expect([read.dtype, read.shape, read.data]).toEqual([
            tensor.dtype,
            tensor.shape,
            tensor.data,
          ]);
        }
        await file.close();
      }),
      { seed: 3, numRuns: 100 },
    );
  });
});

describe("mutated files", () => {
  it("either are refused as a format error or read in full", async () => {
    const seeds = parity.files.map(({ base64 }) => new Uint8Array(Buffer.from(base64, "base64")));
    const rng = new Rng(20_260_101);
    const structural = new TextEncoder().encode('{}[]",:0123456789-.eE\\u "dtypeshapedata_offsets');
    let accepted = 0;
    for (let round = 0; round < 4000; round++) {
      let bytes = seeds[rng.integer(seeds.length)]!.slice();
      const headerEnd = 8 + bytes[0]! + 256 * bytes[1]!;
      for (let edits = 1 + rng.integer(3); edits > 0; edits--) {
        // Mostly the header, at times the length or the data.
        const at = rng.integer(rng.integer(4) === 0 ? bytes.length : headerEnd);
        const value = rng.integer(2)
          ? structural[rng.integer(structural.length)]!
          : rng.integer(256);
        const what = rng.integer(5);
        if (what < 2) bytes[at] = value;
        else if (what === 2) bytes = bytes.slice(0, at);
        else if (what === 3) {
          bytes = Uint8Array.from([...bytes.slice(0, at), value, ...bytes.slice(at)]);
        } else {
          const from = rng.integer(headerEnd);
          bytes.copyWithin(at, from, from + rng.integer(16));
        }
        if (bytes.length === 0) break;
      }
      // The file in memory: what is tested is the reader, not the disk.
      const opened = await SafetensorsFile.open(
        {
          ...files,
          open: async (path) => ({
            path,
            bytes: bytes.length,
            async read(into, offset) {
              if (offset + into.length > bytes.length) throw new Error("read past the end");
              into.set(bytes.subarray(offset, offset + into.length));
            },
            close: async () => undefined,
          }),
        },
        "m",
      ).catch((error: unknown) => error);
      if (!(opened instanceof SafetensorsFile)) {
        expect(opened).toBeInstanceOf(FormatError);
        expect((opened as FormatError).details["kind"]).toEqual(expect.any(String));
        continue;
      }
      accepted++;
      let covered = 0;
      for (const { name, offset, bytes: size } of opened.entries.values()) {
        expect(await opened.readBytes(name)).toEqual(bytes.slice(offset, offset + size));
        covered += size;
        const tensor = await opened.read(name).catch((error: unknown) => error);
        if (!(tensor instanceof Tensor)) expect(tensor).toBeInstanceOf(PlasticityError);
      }
      expect(8 + bytes[0]! + 256 * bytes[1]! + covered).toBe(bytes.length);
    }
    // Changed names and data must still be readable, or the test shows nothing.
    expect(accepted).toBeGreaterThan(50);
  });
});

describe("openCheckpoint", () => {
  const makeFolder = async (): Promise<string> => {
    const folder = join(root, `folder${count++}`);
    await files.makeDirectory(folder);
    return folder;
  };
  const index = (weightMap: Record<string, unknown>): string =>
    JSON.stringify({ metadata: { total_size: 8 }, weight_map: weightMap });

  it("reads a single file", async () => {
    const folder = await makeFolder();
    await writeSafetensors(files, join(folder, "model.safetensors"), [["w", Tensor.from([7])]]);
    const checkpoint = await openCheckpoint(files, folder);
    expect([...checkpoint.entries.keys()]).toEqual(["w"]);
    expect((await checkpoint.read("w")).item()).toBe(7);
    await expect(checkpoint.read("v")).rejects.toThrow(`${folder}: has no tensor "v".`);
    await checkpoint.close();
  });

  it("reads shards as one", async () => {
    const folder = await makeFolder();
    await writeSafetensors(files, join(folder, "a.safetensors"), [["x", Tensor.from([1])]]);
    await writeSafetensors(files, join(folder, "b.safetensors"), [["y", Tensor.from([2])]]);
    await files.writeText(
      join(folder, "model.safetensors.index.json"),
      index({ y: "b.safetensors", x: "a.safetensors" }),
    );
    const checkpoint = await openCheckpoint(files, folder);
    expect([...checkpoint.entries.keys()].sort()).toEqual(["x", "y"]);
    expect((await checkpoint.read("x")).item() + (await checkpoint.read("y")).item()).toBe(3);
    expect(await checkpoint.readBytes("y")).toEqual(new Uint8Array(Float32Array.of(2).buffer));
    await checkpoint.close();
  });

  it("refuses an index that leaves the folder, lies or lacks files", async () => {
    const folder = await makeFolder();
    const path = join(folder, "model.safetensors.index.json");
    await expect(openCheckpoint(files, folder)).rejects.toThrow(
      `${folder}: has neither "model.safetensors" nor "model.safetensors.index.json" — name a folder with safetensors weights.`,
    );
    await writeSafetensors(files, join(folder, "a.safetensors"), [["x", Tensor.from([1])]]);
    const names = [
      "../a.safetensors",
      "/etc/passwd",
      "sub/a",
      "..",
      ".hidden",
      "",
      3,
      null,
      "a\0b",
    ];
    for (const name of names) {
      await files.writeText(path, index({ x: name }));
      await expect(openCheckpoint(files, folder), String(name)).rejects.toThrow(
        `${path}: weight_map sends "x" to ${JSON.stringify(name)} — it must be the name of a file in this folder.`,
      );
    }
    await files.writeText(path, index({ x: "a.safetensors", y: "a.safetensors" }));
    await expect(openCheckpoint(files, folder)).rejects.toThrow(
      `${path}: weight_map sends "y" to "a.safetensors", which does not hold it — the index belongs to other files.`,
    );
    await files.writeText(path, index({ x: "gone.safetensors" }));
    await expect(openCheckpoint(files, folder)).rejects.toMatchObject({ code: "missing" });
    await files.writeText(path, '{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}');
    await expect(openCheckpoint(files, folder)).rejects.toThrow('key "x" stands twice');
    await files.writeText(path, "[]");
    await expect(openCheckpoint(files, folder)).rejects.toThrow(
      `${path}: must have an object weight_map.`,
    );
  });
});
