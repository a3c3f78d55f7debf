import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type GgufValue, writeGguf } from "./gguf.ts";
import { readGgufHeader } from "./gguf-read.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-gguf-"));
const path = join(root, "file.gguf");
afterAll(() => rmSync(root, { recursive: true, force: true }));

const metadata: readonly (readonly [string, GgufValue])[] = [
  ["general.architecture", { type: "string", value: "llama" }],
  ["a.float", { type: "float32", value: 0.5 }],
  ["a.big", { type: "uint64", value: 2 ** 40 }],
  ["a.negative", { type: "int8", value: -3 }],
  ["a.flag", { type: "bool", value: true }],
  ["tokens", { type: "string", value: ["<s>", "é", ""] }],
  ["scores", { type: "float64", value: [1.25, -2] }],
];
const tensors = [
  ["first", Tensor.from([1, 2, 3, 4, 5, 6], [2, 3])],
  ["second.weight", Tensor.from([1, -2, 0.5], [3], "float16")],
] as const;

describe("a GGUF file", () => {
  it("is written byte for byte as its specification says", async () => {
    await writeGguf(files, path, [["a.b", { type: "uint32", value: 7 }]], [tensors[0]]);
    const bytes = readFileSync(path);
    const hex = (from: number, to: number): string => bytes.subarray(from, to).toString("hex");
    expect(bytes.subarray(0, 4).toString()).toBe("GGUF");
    // Version 3, one tensor, one entry.
    expect(hex(4, 24)).toBe("03000000" + "0100000000000000" + "0100000000000000");
    // Key of 3 bytes, type 4 (uint32), 7.
    expect(hex(24, 43)).toBe("0300000000000000" + "612e62" + "04000000" + "07000000");
    // Name of 5 bytes, 2 dimensions, the last one first, type 0 (F32), offset 0.
    expect(hex(43, 88)).toBe(
      "0500000000000000" +
        "6669727374" +
        "02000000" +
        "0300000000000000" +
        "0200000000000000" +
        "00000000" +
        "0000000000000000",
    );
    // Data at the next multiple of 32, filled up to one.
    expect(bytes.length).toBe(96 + 32);
    expect(bytes.readFloatLE(96)).toBe(1);
    expect(bytes.readFloatLE(96 + 20)).toBe(6);
  });

  it("gives back what was written", async () => {
    await writeGguf(files, path, metadata, tensors);
    const header = await readGgufHeader(files, path);
    expect([...header.metadata]).toEqual(metadata);
    const bytes = readFileSync(path);
    expect(
      [...header.tensors.values()].map(({ name, type, shape, bytes: size }) => [
        name,
        type,
        shape,
        size,
      ]),
    ).toEqual([
      ["first", "F32", [2, 3], 24],
      ["second.weight", "F16", [3], 6],
    ]);
    expect(bytes.readUInt16LE(header.tensors.get("second.weight")!.offset)).toBe(0x3c00);
  });

  it.each([
    [[["Bad Key", { type: "bool", value: true }]], [], 'gguf: "Bad Key" is no key'],
    [[], [["x".repeat(64), tensors[0][1]]], "names are unique and of 63 bytes at most"],
    [[], [["x", Tensor.from([1], [1], "int64")]], 'gguf: tensor "x" is int64.'],
  ] as const)("refuses to write %j", async (entries, given, sentence) => {
    await expect(writeGguf(files, path, entries as never, given as never)).rejects.toThrow(
      sentence,
    );
  });
});

describe("reading a GGUF header", async () => {
  await writeGguf(files, path, metadata, tensors);
  const good = readFileSync(path);
  const broken = join(root, "broken.gguf");
  const read = (change: (bytes: Buffer) => Buffer): ReturnType<typeof readGgufHeader> => {
    writeFileSync(broken, change(Buffer.from(good)));
    return readGgufHeader(files, broken);
  };

  it("refuses counts and lengths that the file cannot hold, before making room for them", async () => {
    const at = (offset: number): ReturnType<typeof read> =>
      read((bytes) => {
        bytes.writeBigUInt64LE(0xffff_ffff_ffff_fff0n, offset);
        return bytes;
      });
    await expect(at(8)).rejects.toThrow("byte 8: the number of tensors is 18446744073709551600");
    await expect(at(16)).rejects.toThrow("byte 16: the number of metadata entries is");
    await expect(at(24)).rejects.toThrow("byte 24: the length of a key is");
  });

  it("refuses what is no GGUF file, other versions, and files cut short", async () => {
    await expect(read(() => Buffer.from("hello, world"))).rejects.toThrow(
      'does not begin with "GGUF" — is this a GGUF file?',
    );
    await expect(
      read((bytes) => {
        bytes.writeUInt32LE(9, 4);
        return bytes;
      }),
    ).rejects.toThrow("has GGUF version 9, versions 2 and 3 are read — convert it anew.");
    await expect(read((bytes) => bytes.subarray(0, 60))).rejects.toThrow("the file is cut short.");
    await expect(read((bytes) => bytes.subarray(0, bytes.length - 40))).rejects.toThrow(
      /tensor "second.weight" of shape \[3\] and type F16 ends at byte \d+, the file at \d+/,
    );
  });

  it("either reads a file with any byte changed or refuses it in a sentence", async () => {
    const rng = new Rng(4);
    for (let i = 0; i < 400; i++) {
      const where = rng.integer(good.length - 64);
      const to = rng.integer(256);
      try {
        await read((bytes) => {
          bytes[where] = to;
          return bytes;
        });
      } catch (error) {
        expect((error as { code?: string }).code).toBe("format");
      }
    }
  });
});
