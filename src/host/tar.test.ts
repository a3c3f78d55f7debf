import { describe, expect, it } from "vitest";
import { type TarEntry, tar } from "../../test/support/tar.ts";
import { readTar } from "./tar.ts";

const read = (entries: readonly TarEntry[]): Record<string, string> =>
  Object.fromEntries(
    [...readTar(tar(entries), "archive")].map(({ path, bytes }) => [
      path,
      new TextDecoder().decode(bytes),
    ]),
  );

describe("a tar archive", () => {
  it("gives its files, folders left out, long names of each kind put together", () => {
    const record = "path=package/long\n";
    const size = record.length + 3;
    expect(
      read([
        { name: "package/", type: "5" },
        { name: "./package/a", text: "one" },
        { name: "b", prefix: "package/deep", text: "x".repeat(513) },
        { name: "pax", type: "x", text: `${size} ${record}` },
        { name: "short", text: "two" },
        { name: "gnu", type: "L", text: "package/longer\0" },
        { name: "short", text: "three" },
      ]),
    ).toEqual({
      "package/a": "one",
      "package/deep/b": "x".repeat(513),
      "package/long": "two",
      "package/longer": "three",
    });
  });

  it.each(["/etc/passwd", "package/../../x", "..", "C:/x", "a\\b"])(
    "refuses the path %s",
    (name) => {
      expect(() => read([{ name, text: "x" }])).toThrow("a path that is not taken");
    },
  );

  it.each(["1", "2", "3", "4", "6"])("refuses entries of type %s: links and devices", (type) => {
    expect(() => read([{ name: "package/a", type }])).toThrow(
      'archive: "package/a" is a link or a device — only files are taken.',
    );
  });

  it("refuses broken headers, entries that are cut short, and too many files", () => {
    const whole = tar([{ name: "a", text: "x".repeat(600) }]);
    const broken = whole.slice();
    broken[0]! ^= 1;
    expect(() => [...readTar(broken, "archive")]).toThrow(
      "the header at byte 0 has a wrong checksum",
    );
    expect(() => [...readTar(whole.subarray(0, 1024), "archive")]).toThrow("is cut short");
    const two = tar([{ name: "a" }, { name: "b" }]);
    expect(() => [...readTar(two, "archive", { maxFiles: 1 })]).toThrow("holds more than 1 files");
  });
});
