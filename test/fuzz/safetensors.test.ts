import { describe, expect, it } from "vitest";
import { SafetensorsFile, type TensorEntry } from "../../src/io/safetensors.ts";
import { readModel } from "./model.ts";
import { bases } from "./mutate.ts";
import { fuzz } from "./safetensors.ts";

describe("the reader of safetensors, against a second reading of the format", () => {
  it("answers 3,000 mutated files as the model does", async () => {
    const report = await fuzz(3000, 2);
    expect(report.failures).toEqual([]);
    expect(report.cases).toBe(3000);
    // Both answers, and every kind of refusal but the rarest, were met.
    expect(report.read).toBeGreaterThan(300);
    expect(Object.keys(report.refused).sort()).toEqual([
      "HeaderTooLarge",
      "HeaderTooSmall",
      "InvalidHeader",
      "InvalidHeaderDeserialization",
      "InvalidHeaderLength",
      "InvalidHeaderStart",
      "InvalidOffset",
      "MetadataIncompleteBuffer",
      "MisalignedSlice",
      "TensorInvalidInfo",
      "ValidationOverflow",
    ]);
    expect(report.slowestMs).toBeLessThan(2000);
  });

  it("starts from files that are valid", () => {
    expect(bases.map((file) => readModel(file).tensors.size)).toEqual([0, 1, 5, 4, 8, 5, 24]);
  });

  /** Our reader with its entries changed after the checks. */
  const readerWith =
    (change: (entry: TensorEntry) => TensorEntry): typeof SafetensorsFile.open =>
    async (files, path) => {
      const file = await SafetensorsFile.open(files, path);
      const entries = new Map([...file.entries].map(([name, entry]) => [name, change(entry)]));
      return {
        metadata: file.metadata,
        entries,
        read: (name: string) => file.read(name),
        readBytes: (name: string) => file.readBytes(name),
        close: () => file.close(),
      } as unknown as SafetensorsFile;
    };

  it("finds a reader that gives a wrong shape", async () => {
    const open = readerWith((entry) => ({ ...entry, shape: [...entry.shape].reverse() }));
    const { failures } = await fuzz(200, 2, open);
    expect(failures.length).toBeGreaterThan(0);
    expect(failures[0]).toMatch(/^case \d+: Error: tensor ".*" has shape /);
  });

  it("finds a reader that takes what it must refuse, or fails in another way", async () => {
    const taking: typeof SafetensorsFile.open = async () =>
      ({ metadata: {}, entries: new Map(), close: async () => {} }) as unknown as SafetensorsFile;
    const { failures } = await fuzz(50, 2, taking);
    expect(failures.some((text) => /a broken file was read \(/.test(text))).toBe(true);
    const failing: typeof SafetensorsFile.open = async () => {
      throw new RangeError("Invalid typed array length");
    };
    expect((await fuzz(1, 2, failing)).failures).toEqual([
      "case 0: RangeError: Invalid typed array length",
    ]);
  });
});
