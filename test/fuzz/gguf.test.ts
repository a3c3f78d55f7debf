import { describe, expect, it } from "vitest";
import { GgufFile } from "../../src/io/gguf-read.ts";
import { fuzzGguf, ggufBases } from "./gguf.ts";
import { readGgufModel } from "./gguf-model.ts";

describe("the reader of GGUF, against a second reading of the format", () => {
  it("answers 2,000 mutated files as the model does", async () => {
    const report = await fuzzGguf(2000, 2);
    expect(report.failures).toEqual([]);
    expect(report.read).toBeGreaterThan(200);
    expect(report.refused["FormatError"]).toBeGreaterThan(500);
  });

  it("starts from files that are valid", () => {
    expect(ggufBases.map(({ bytes }) => readGgufModel(bytes).tensors.size)).toEqual([0, 1, 5, 4]);
  });

  it("finds a reader that gives a wrong place, takes what it must refuse, or fails otherwise", async () => {
    const moved: typeof GgufFile.open = async (files, path) => {
      const file = await GgufFile.open(files, path);
      const tensors = new Map(
        [...file.tensors].map(([name, tensor]) => [
          name,
          { ...tensor, offset: tensor.offset + 32 },
        ]),
      );
      return Object.assign(Object.create(file), { tensors }) as GgufFile;
    };
    expect((await fuzzGguf(200, 2, moved)).failures.some((text) => / lies at /.test(text))).toBe(
      true,
    );
    const taking = (async () => ({
      metadata: new Map(),
      tensors: new Map(),
    })) as unknown as typeof GgufFile.open;
    const { failures } = await fuzzGguf(50, 2, taking);
    expect(failures.some((text) => /a broken file was read \(/.test(text))).toBe(true);
    const failing: typeof GgufFile.open = async () => {
      throw new RangeError("Invalid typed array length");
    };
    expect((await fuzzGguf(1, 2, failing)).failures).toEqual([
      "case 0: RangeError: Invalid typed array length",
    ]);
  });
});
