import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { FormatError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import type { Example } from "./example.ts";
import { memorySet } from "./set.ts";
import { fileSet, SetCollector, writeExampleFile } from "./store.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-store-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();

const rng = new Rng(9);
/** Lengths around the sizes of a mask's words, and one larger than a block. */
const lengths = [
  0,
  1,
  31,
  32,
  33,
  64,
  300_000,
  ...Array.from({ length: 200 }, () => rng.integer(90)),
];
const examples: Example[] = lengths.map((length) => ({
  ids: Int32Array.from({ length }, () => rng.integer(2 ** 22)),
  mask: Uint8Array.from({ length }, (_, i) => (i > 0 ? rng.integer(2) : 0)),
}));

/** Bit for bit; `toEqual` takes seconds on arrays of this length. */
function areSame(a: readonly Example[], b: readonly Example[]): boolean {
  const isEqual = (x: Int32Array | Uint8Array, y: Int32Array | Uint8Array): boolean =>
    x.constructor === y.constructor &&
    Buffer.from(x.buffer, x.byteOffset, x.byteLength).equals(
      Buffer.from(y.buffer, y.byteOffset, y.byteLength),
    );
  return (
    a.length === b.length &&
    a.every(({ ids, mask }, i) => isEqual(ids, b[i]!.ids) && isEqual(mask, b[i]!.mask))
  );
}

describe("a file of examples", () => {
  it("is bit for bit the set in memory", async () => {
    const path = join(root, "a.examples");
    await writeExampleFile(files, path, examples);
    const [memory, file] = [memorySet(examples), await fileSet(files, path)];
    for (const key of ["count", "lengths", "tokens", "lossTokens", "dataHash"] as const) {
      expect(file[key], key).toEqual(memory[key]);
    }
    const order = [...rng.permutation(lengths.length)];
    expect(areSame(await file.get(order), await memory.get(order))).toBe(true);
    await file.verify();
    await expect(file.get([lengths.length])).rejects.toThrow(
      `examples: index ${lengths.length} is outside the set of ${lengths.length}.`,
    );
    await file.close();
    await expect(file.get([1])).rejects.toThrow("is closed");
    expect(memory.lossTokens).toBe(
      examples.reduce((sum, { mask }) => sum + mask.reduce((a, b) => a + b, 0), 0),
    );
  });

  it("may hold nothing", async () => {
    const path = join(root, "none.examples");
    await writeExampleFile(files, path, []);
    const file = await fileSet(files, path);
    expect([file.count, file.tokens]).toEqual([0, 0]);
    await file.close();
  });

  it("has another hash for any other data", () => {
    const base = examples.slice(2, 6);
    const changed = (change: (example: Example) => void): string => {
      const copy = base.map(({ ids, mask }) => ({ ids: ids.slice(), mask: mask.slice() }));
      change(copy[1]!);
      return memorySet(copy).dataHash;
    };
    const hashes = [
      memorySet(base).dataHash,
      memorySet(base.toReversed()).dataHash,
      memorySet(base.slice(1)).dataHash,
      changed(({ ids }) => (ids[3]! ^= 1)),
      changed(({ mask }) => (mask[3]! ^= 1)),
    ];
    expect(new Set(hashes).size).toBe(5);
    expect(hashes.every((hash) => /^[0-9a-f]{16}$/.test(hash))).toBe(true);
    expect(changed(() => {})).toBe(hashes[0]);
  });

  it("leaves no file when writing fails", async () => {
    const folder = join(root, "failed");
    await files.makeDirectory(folder);
    async function* failing(): AsyncGenerator<Example> {
      yield examples[2]!;
      throw new FormatError("d.jsonl:2: broken.");
    }
    await expect(writeExampleFile(files, join(folder, "x"), failing())).rejects.toThrow("broken");
    const packed = [{ ...examples[2]!, segments: new Int32Array(31) }];
    await expect(writeExampleFile(files, join(folder, "x"), packed)).rejects.toThrow(
      "examples: packed rows are not stored — store examples, then pack.",
    );
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each<[string, (bytes: Buffer) => Buffer, string]>([
    ["cut short", (bytes) => bytes.subarray(0, -4), "is no file of examples, or is cut short"],
    ["too short", (bytes) => bytes.subarray(0, 50), "has 50 bytes, too few"],
    [
      "with a piece missing",
      (bytes) => Buffer.concat([bytes.subarray(0, 100), bytes.subarray(104)]),
      "names 4 examples and an index at",
    ],
    [
      "with a damaged index",
      (bytes) => flipped(bytes, bytes.length - 80 - 4),
      "its index is damaged",
    ],
    ["with a damaged count", (bytes) => flipped(bytes, bytes.length - 80 + 6), "names 4"],
  ])("is refused %s", async (_, change, sentence) => {
    const path = join(root, "bad.examples");
    await writeExampleFile(files, path, examples.slice(1, 5));
    writeFileSync(path, change(readFileSync(path)));
    await expect(fileSet(files, path)).rejects.toThrow(FormatError);
    await expect(fileSet(files, path)).rejects.toThrow(sentence);
  });

  it("finds damage in its records", async () => {
    const path = join(root, "damaged.examples");
    await writeExampleFile(files, path, examples.slice(1, 5));
    writeFileSync(path, flipped(readFileSync(path), 20));
    const file = await fileSet(files, path);
    await expect(file.verify()).rejects.toThrow(/its examples hash to .+ the file is damaged/);
    await file.close();
    writeFileSync(path, flipped(readFileSync(path), 12 + 3, 0x7f));
    const other = await fileSet(files, path);
    await expect(other.get([0])).rejects.toThrow(/example 0 holds the id \d+, ids end at \d+/);
    await other.close();
  });
});

function flipped(bytes: Buffer, at: number, bits = 1): Buffer {
  const copy = Buffer.from(bytes);
  copy[at]! ^= bits;
  return copy;
}

describe("SetCollector", () => {
  it("goes to a file beyond the limit, with the same data", async () => {
    const path = join(root, "spilled.examples");
    const gather = async (memoryLimit: number) => {
      const collector = new SetCollector(files, { memoryLimit, spillPath: path });
      for (const example of examples) await collector.add(example);
      return collector.finish();
    };
    const memory = await gather(2 ** 28);
    expect(existsSync(path)).toBe(false);
    const file = await gather(1000);
    expect(existsSync(path)).toBe(true);
    expect(file.dataHash).toBe(memory.dataHash);
    expect(areSame(await file.get([6, 3]), await memory.get([6, 3]))).toBe(true);
    expect(areSame(await file.get([3, 6]), await memory.get([6, 3]))).toBe(false);
    await file.close();
  });
});
