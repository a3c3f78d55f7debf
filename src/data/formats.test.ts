import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import parity from "../../test/parity/parquet.json" with { type: "json" };
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { nodeHost } from "../host/node.ts";
import { formatOf, type ReadOptions, readRecords } from "./formats.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-formats-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();

function written(name: string, contents: string | Uint8Array): string {
  const path = join(root, name);
  writeFileSync(path, contents);
  return path;
}

async function all(path: string, options?: ReadOptions, from: Files = files) {
  const found: (readonly [object, string])[] = [];
  for await (const { record, where } of readRecords(from, path, options)) {
    found.push([{ ...record }, where.slice(path.length)]);
  }
  return found;
}

/** The file in chunks of a size, as a slow disk might give it. */
function chunked(bytes: Uint8Array, size: number): Files {
  return {
    ...files,
    async *stream(): AsyncGenerator<Uint8Array> {
      for (let i = 0; i < bytes.length; i += size) yield bytes.slice(i, i + size);
    },
  };
}

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

describe("formatOf", () => {
  it("goes by the ending, in any case", () => {
    const names = ["a.jsonl", "a.ndjson", "A.JSON", "a.txt", "a.md", "a.csv", "a.tsv", "a.parquet"];
    expect(names.map(formatOf)).toEqual([
      "jsonl",
      "jsonl",
      "json",
      "text",
      "text",
      "csv",
      "tsv",
      "parquet",
    ]);
    for (const name of ["a.xlsx", "jsonl", "a.constructor"]) {
      expect(() => formatOf(name)).toThrow(OptionError);
      expect(() => formatOf(name)).toThrow(
        `${name}: the file's ending says no known format — data is .jsonl, .ndjson, .json, .txt, .md, .csv, .tsv, .parquet, or name the format.`,
      );
    }
  });
});

describe("readRecords of JSON", () => {
  const array = '\ufeff [\n {"a": "]},{", "b": [1, {"c": "\\"[é"}]},\r\n\n{"a":2} , {}\n]\n';
  const expected = [
    [{ a: "]},{", b: [1, { c: '"[é' }] }, ":2"],
    [{ a: 2 }, ":4"],
    [{}, ":4"],
  ];

  it("reads an array element by element, from chunks of every size", async () => {
    const bytes = bytesOf(array);
    for (let size = 1; size <= bytes.length; size++) {
      const found = await all("a.json", {}, chunked(bytes, size));
      expect(JSON.parse(JSON.stringify(found)), `chunks of ${size}`).toEqual(expected);
    }
  });

  it("reads lines of JSON under the name .json, and an empty array", async () => {
    const path = written("lines.json", '\n{"a":1}\n{"a":2}\n');
    expect(await all(path)).toEqual([
      [{ a: 1 }, ":2"],
      [{ a: 2 }, ":3"],
    ]);
    expect(await all(written("empty.json", "[ ]"))).toEqual([]);
    expect(await all(written("nothing.json", ""))).toEqual([]);
  });

  it.each<[string, string | Uint8Array, string]>([
    [
      "an array cut short",
      '[{"a":1},\n{"a"',
      ':2: the array has no end — is the file cut short? It must close with "]".',
    ],
    ["a broken object", '[{"a":1},\n{"a":}]', ":2: invalid JSON at byte 5: a value is needed"],
    ["a comma too many", '[{"a":1},\n]', ":2: an element of the array is missing."],
    ["two commas", '[{"a":1},,{}]', ":1: an element of the array is missing."],
    ["text after the end", '[{"a":1}]\n[]', ":2: text after the array's end."],
    ["no comma", '[{"a":1}\n{"a":2}]', ":1: invalid JSON at byte 8: text after the value"],
    ["elements that are no objects", "[1]", ":1: must be an object with named fields, got 1."],
    [
      "a text",
      '"abc"',
      ': must be an array of objects, or an object a line, got "\\"" at its start.',
    ],
    [
      "bytes that are not UTF-8",
      Uint8Array.of(0x5b, 0x0a, 0x7b, 0xff, 0x7d, 0x5d),
      ":2: byte 2 (0xff) is not UTF-8",
    ],
    [
      "an element beyond the limit",
      `[{"a":"${"x".repeat(2 ** 22)}`,
      ":1: the element is longer than 4194304 bytes — are its brackets and quotes closed?",
    ],
  ])("names file and line of %s", async (_, contents, sentence) => {
    const path = written("bad.json", contents);
    await expect(all(path)).rejects.toThrow(FormatError);
    await expect(all(path)).rejects.toThrow(`${path}${sentence}`);
  });

  it.each<[string, string, string]>([
    ["a number too large", '{"a":1e999}', "invalid JSON at byte 5: 1e999 is too large."],
    ["a key that stands twice", '{"a":1,"a":2}', 'key "a" stands twice in one object.'],
    ["deep nesting", `{"a":${"[".repeat(40)}`, "nested deeper than 32 levels."],
    ["a NUL", '{"a":"\0"}', "a control character in a string must be escaped"],
    ["a list", "[1]", "must be an object with named fields, got a list."],
  ])("refuses %s in a line", async (_, line, sentence) => {
    const path = written("bad.jsonl", `{"a":1}\n${line}\n`);
    await expect(all(path)).rejects.toThrow(`${path}:2: `);
    await expect(all(path)).rejects.toThrow(sentence);
  });

  it("keeps __proto__ as a key like any other", async () => {
    const path = written("proto.jsonl", '{"__proto__":{"x":1}}\n');
    for await (const { record } of readRecords(files, path)) {
      expect(Object.keys(record)).toEqual(["__proto__"]);
      expect(Object.getPrototypeOf(record)).toBeNull();
    }
    expect(({} as Record<string, unknown>)["x"]).toBeUndefined();
  });
});

describe("readRecords of text", () => {
  it("gives paragraphs with their first lines", async () => {
    const path = written("a.txt", "\ufeff\none\ntwo\r\n \t\n\nthree");
    expect(await all(path)).toEqual([
      [{ text: "one\ntwo" }, ":2"],
      [{ text: "three" }, ":6"],
    ]);
  });

  it("refuses binary files and endless paragraphs", async () => {
    const nul = written("nul.txt", "one\n\0two\n");
    await expect(all(nul)).rejects.toThrow(
      `${nul}:2: holds a NUL character — save the file as UTF-8 text.`,
    );
    const utf16 = written("utf16.txt", Uint8Array.of(0xff, 0xfe, 0x61, 0));
    await expect(all(utf16)).rejects.toThrow(`${utf16}:1: byte 0 (0xff) is not UTF-8`);
    const long = written("long.txt", `\n${"x".repeat(2 ** 21)}\n`.repeat(2).replace("\n\n", "\n"));
    await expect(all(long)).rejects.toThrow(
      `${long}:2: the paragraph is longer than 4194304 characters — part it by blank lines.`,
    );
  });
});

describe("readRecords of CSV", () => {
  it("reads quotes, line breaks in cells, and the lines that rows begin on", async () => {
    const csv = '\ufeffprompt,completion\r\n"a, ""b""\n\nc",d\r\n\r\ne,\r\n,"f"\n';
    const expected = [
      [{ prompt: 'a, "b"\n\nc', completion: "d" }, ":2"],
      [{ prompt: "e", completion: "" }, ":6"],
      [{ prompt: "", completion: "f" }, ":7"],
    ];
    expect(await all(written("a.csv", csv))).toEqual(expected);
    const bytes = bytesOf(csv);
    for (const size of [1, 2, 3, 7]) {
      expect(await all("a.csv", {}, chunked(bytes, size))).toEqual(expected);
    }
  });

  it("reads tabs, and mapped columns", async () => {
    const path = written("a.tsv", "question\tanswer\tid\nwhy, so\tbecause\t1\n");
    const map = { question: "prompt", answer: "completion" };
    expect(await all(path, { map })).toEqual([
      [{ prompt: "why, so", completion: "because", id: "1" }, ":2"],
    ]);
    await expect(all(path, { map: { quest: "prompt" } })).rejects.toThrow(
      `${path}:2: has no column "quest" to map to "prompt" — it has question, answer, id.`,
    );
  });

  it("lets a mapped column win over one of that name", async () => {
    const path = written("both.csv", "completion,answer\nold,new\n");
    expect(await all(path, { map: { answer: "completion" } })).toEqual([
      [{ completion: "new" }, ":2"],
    ]);
  });

  it("reads the same by the parser's form for browsers", async () => {
    const path = written("browser.csv", 'a,b\n"x ""y""\n é",z\n');
    const expected = [[{ a: 'x "y"\n é', b: "z" }, ":2"]];
    expect(await all(path)).toEqual(expected);
    const { Buffer: own } = globalThis;
    // The host reads files with Node's Buffer, so the bytes are given.
    const given = chunked(bytesOf('a,b\n"x ""y""\n é",z\n'), 5);
    try {
      Reflect.deleteProperty(globalThis, "Buffer");
      expect(await all(path, {}, given)).toEqual(expected);
    } finally {
      globalThis.Buffer = own;
    }
  });

  it("counts lines over blocks", async () => {
    const rows = Array.from({ length: 6000 }, (_, i) => `${i},"x\n${"y".repeat(60)}"`);
    const found = await all(written("many.csv", `a,b\n${rows.join("\n")}\n`));
    expect(found).toHaveLength(6000);
    expect(found[5999]).toEqual([{ a: "5999", b: `x\n${"y".repeat(60)}` }, `:${2 + 2 * 5999}`]);
  });

  it.each<[string, string | Uint8Array, string]>([
    [
      "a missing cell",
      "a,b\n1,2\n3\n",
      ":3: the row has 1 cells, the header names 2 columns (a, b).",
    ],
    ["a cell too many", "a,b\n1,2,3\n", ":2: the row has 3 cells, the header names 2"],
    [
      "a quote that is not closed",
      'a,b\n1,2\n3,"x\n4,5\n',
      ":3: a quote that opens in this row is not closed — close it, or double the quotes inside a cell.",
    ],
    [
      "a quote in a cell",
      'a,b\n1,x"y"\n',
      ":2: a quote stands inside a cell that does not begin with one — put the cell in quotes, and double the quotes inside it.",
    ],
    ["text after a quote", 'a,b\n1,"x"y\n', ":2: text follows the quote that closes a cell — put"],
    [
      "a column named twice",
      "a,a\n1,2\n",
      ':1: the header names "a" twice — the first row must name every column, each once.',
    ],
    ["a column without a name", "a,\n1,2\n", ":1: the header names a column with nothing"],
    [
      "too many columns",
      `${Array.from({ length: 4097 }, (_, i) => i).join()}\n`,
      ":1: the header has 4097 columns, at most 4096 are read.",
    ],
    [
      "bytes that are not UTF-8",
      Uint8Array.of(0x61, 0x0a, 0xe9, 0x0a),
      ":2: byte 0 (0xe9) is not UTF-8",
    ],
    ["a NUL", "a\n\0\n", ":2: holds a NUL character"],
    [
      "an endless row",
      `a\n"${`${"x".repeat(2 ** 16)}\n`.repeat(65)}`,
      ":2: the row is longer than 4194304 characters — is a quote not closed?",
    ],
  ])("names file and line of %s", async (_, contents, sentence) => {
    const path = written("bad.csv", contents);
    await expect(all(path)).rejects.toThrow(FormatError);
    await expect(all(path)).rejects.toThrow(`${path}${sentence}`);
  });
});

describe("readRecords of Parquet, beside pyarrow", () => {
  type Name = keyof typeof parity.files;
  const parquet = (name: Name): Uint8Array =>
    Uint8Array.from(Buffer.from(parity.files[name].base64, "base64"));
  const names = Object.keys(parity.files) as Name[];

  it.each(names)("reads %s", async (name) => {
    const path = written(`${name}.parquet`, parquet(name));
    const { rows } = parity.files[name];
    const found = await all(path);
    expect(JSON.parse(JSON.stringify(found))).toEqual(
      rows.map((row, i) => [row, `: row ${i + 1}`]),
    );
  });

  it("reads only columns that are of use", async () => {
    const path = written("some.parquet", parquet("snappy"));
    const options = { fields: ["prompt", "text"], map: { question: "prompt" } };
    const found = await all(path, options);
    expect(found[11]).toEqual([{ prompt: "What is 11 + 11?" }, ": row 12"]);
    await expect(all(path, { fields: ["prompt", "text"] })).rejects.toThrow(
      `${path}: has the columns question, answer, id, score, of which none is understood — name them with --map column=field.`,
    );
  });

  it.each<[string, (bytes: Uint8Array) => Uint8Array, RegExp]>([
    [
      "cut short",
      (bytes) => bytes.slice(0, -20),
      /: does not end with "PAR1", as a Parquet file does — is it whole, and is it one\?$/,
    ],
    ["empty", () => new Uint8Array(0), /: does not end with "PAR1"/],
    [
      "cut in the middle",
      (bytes) => Uint8Array.from([...bytes.slice(0, 300), ...bytes.slice(-700)]),
      /\.parquet: (row group 0 \(rows 1 to 5\)|footer|bytes \d+ to \d+|.*)/,
    ],
    [
      "with a footer longer than the file",
      (bytes) => {
        const wrong = bytes.slice();
        new DataView(wrong.buffer).setUint32(wrong.length - 8, 2 ** 26, true);
        return wrong;
      },
      /: its footer says 67108864 bytes, the file has \d+ \(at most 134217728 are read\)\.$/,
    ],
    [
      "with damaged pages",
      (bytes) => {
        const wrong = bytes.slice();
        wrong.fill(0xff, 4, 60);
        return wrong;
      },
      /: row group 0 \(rows 1 to 5\): cannot be decoded as Parquet, .+ — is the file whole\?$/,
    ],
  ])("refuses a file %s", async (_, change, sentence) => {
    const path = written("bad.parquet", change(parquet("snappy")));
    await expect(all(path)).rejects.toThrow(FormatError);
    await expect(all(path)).rejects.toThrow(sentence);
  });

  it("never fails but with a sentence, whichever byte is damaged", async () => {
    const whole = parquet("zstd");
    for (let i = 0; i < whole.length; i += 7) {
      const wrong = whole.slice();
      wrong[i]! ^= 0x5a;
      const path = written("fuzz.parquet", wrong);
      try {
        await all(path);
      } catch (error) {
        expect(["format", "unsupported"], String(error)).toContain((error as FormatError).code);
      }
    }
  }, 30_000);

  it("names a codec that it does not know", async () => {
    // In the footer's Thrift the codec is a one-byte field: LZO is 3, written as zigzag 6.
    const bytes = parquet("snappy");
    const path = written("lzo.parquet", withCodec(bytes));
    await expect(all(path)).rejects.toMatchObject({
      code: "unsupported",
      message: expect.stringContaining(
        'row group 0 (rows 1 to 5): column "question" is packed with LZO — write it with SNAPPY, GZIP, BROTLI, ZSTD, LZ4, LZ4_RAW or none.',
      ),
    });
  });
});

/** The file with every column's codec, SNAPPY (1, zigzag 2), changed to LZO (3, zigzag 6). */
function withCodec(bytes: Uint8Array): Uint8Array {
  const result = bytes.slice();
  const size = new DataView(bytes.buffer).getUint32(bytes.length - 8, true);
  // A column's path ("question", one text in a list: 0x18 and its length) and then field 4, an i32.
  for (let i = bytes.length - 8 - size; i < bytes.length - 10; i++) {
    if (
      bytes[i] === 0x15 &&
      bytes[i + 1] === 0x02 &&
      /[a-z]/.test(String.fromCharCode(bytes[i - 1]!))
    ) {
      result[i + 1] = 0x06;
    }
  }
  return result;
}
