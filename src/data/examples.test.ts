import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { FormatError, OptionError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "./bpe.ts";
import {
  applyTemplate,
  defaultTemplate,
  encodeExamples,
  epochBatches,
  readExamples,
} from "./examples.ts";
import { layoutHelp } from "./layouts.ts";
import { Tokenizer } from "./tokenizer.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-examples-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();

function written(name: string, contents: string | Uint8Array): string {
  const path = join(root, name);
  writeFileSync(path, contents);
  return path;
}

describe("readExamples", () => {
  const pairs = ['{"prompt":"a","completion":"é"}', '{"text":"b\\nc"}'];
  const expected = [
    { kind: "pair", prompt: "a", completion: "é" },
    { kind: "text", text: "b\nc" },
  ];
  /** Examples without their places, of which each has one. */
  const read = async (path: string, from = files): Promise<object[]> => {
    const examples = await readExamples(from, path);
    return examples.map(({ where, ...rest }) => {
      expect(where).toMatch(/:\d+$/);
      return rest;
    });
  };

  it.each([
    ["lines that end with a newline", pairs.join("\n") + "\n"],
    ["a last line without a newline", pairs.join("\n")],
    ["lines that end with carriage return and newline", pairs.join("\r\n") + "\r\n"],
    ["a byte order mark", `\ufeff${pairs.join("\n")}\n`],
    ["blank lines anywhere", `\n \r\n${pairs.join("\n\n\t\n")}\n\n`],
  ])("reads .jsonl with %s", async (_, contents) => {
    expect(await read(written("good.jsonl", contents))).toEqual(expected);
  });

  it("reads the same from chunks of every size, also inside characters", async () => {
    const bytes = new TextEncoder().encode(`\ufeff${pairs.join("\r\n")}\r\n`);
    for (let size = 1; size <= bytes.length; size++) {
      const chunked = {
        ...files,
        async *stream(): AsyncGenerator<Uint8Array> {
          for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
        },
      };
      expect(await read("chunks.jsonl", chunked), `chunks of ${size}`).toEqual(expected);
    }
  });

  it("takes prompt and completion before text, and leaves further keys alone", async () => {
    const path = written("keys.jsonl", '{"id":7,"text":"t","completion":"c","prompt":"p"}');
    expect(await read(path)).toEqual([{ kind: "pair", prompt: "p", completion: "c" }]);
  });

  it.each([
    ["\n", ""],
    ["\r\n", "\ufeff"],
  ])("reads .txt as paragraphs apart by blank lines (newline %j)", async (newline, before) => {
    const lines = ["", "one", "two", "", " \t", "three", "", ""];
    const path = written("text.txt", before + lines.join(newline));
    expect(await read(path)).toEqual([
      { kind: "text", text: "one\ntwo" },
      { kind: "text", text: "three" },
    ]);
  });

  it.each<[string, string | Uint8Array, string]>([
    [
      "JSON that breaks off",
      '{"text":"a"}\n\n{"text":"b"\n',
      '3: invalid JSON at byte 11: "," or "}" is needed, got the end of the text.',
    ],
    [
      "a line that is no object",
      '{"text":"a"}\n["b"]\n',
      "2: must be an object with named fields, got a list.",
    ],
    [
      "other keys",
      '{"prompt":"a","answer":"b"}\n',
      `1: the fields prompt, answer make no layout that is understood — use ${layoutHelp}, or name your columns with --map column=field.`,
    ],
    [
      "no keys",
      "{}",
      `1: the fields none make no layout that is understood — use ${layoutHelp}, or name your columns with --map column=field.`,
    ],
    [
      "a prompt that is a number",
      '{"prompt":1,"completion":"b"}',
      '1: "prompt" must be a text, got 1.',
    ],
    [
      "bytes that are not UTF-8",
      Uint8Array.from([...new TextEncoder().encode('{"text":"a"}\n{"'), 0xff, 0x22]),
      "2: byte 2 (0xff) is not UTF-8 — save the file as UTF-8 text.",
    ],
    [
      "a last character cut short",
      Uint8Array.from([...new TextEncoder().encode('{"text":"a"}\n{"'), 0xc3]),
      "2: byte 2 (0xc3) is not UTF-8 — save the file as UTF-8 text.",
    ],
    [
      "a line beyond the limit, ended or not",
      `{"text":"a"}\n{"text":"${"x".repeat(2 ** 22)}"}\n`,
      "2: the line is longer than 4194304 bytes — is it a file of lines?",
    ],
  ])("names file and line of %s", async (_, contents, sentence) => {
    const path = written("bad.jsonl", contents);
    await expect(readExamples(files, path)).rejects.toMatchObject({
      code: "format",
      message: `${path}:${sentence}`,
    });
  });

  it("takes a line of exactly the limit", async () => {
    const text = "x".repeat(2 ** 22 - '{"text":""}'.length);
    const path = written("limit.jsonl", `{"text":"${text}"}\n`);
    expect(await read(path)).toEqual([{ kind: "text", text }]);
  });

  it.each(["empty.jsonl", "empty.txt"])("refuses %s", async (name) => {
    for (const contents of ["", "\n \n"]) {
      const path = written(name, contents);
      await expect(readExamples(files, path)).rejects.toThrow(
        new FormatError(`${path}: holds no examples.`, { path }),
      );
    }
  });

  it("refuses other endings and files that are not there", async () => {
    await expect(readExamples(files, "data.xlsx")).rejects.toThrow(OptionError);
    await expect(readExamples(files, "data.xlsx")).rejects.toThrow(
      "data.xlsx: the file's ending says no known format",
    );
    const path = join(root, "none.jsonl");
    await expect(readExamples(files, path)).rejects.toMatchObject({ code: "missing" });
  });
});

describe("readExamples with a format and a mapping", () => {
  it("reads a file of any name, and columns by other names", async () => {
    const path = written("data.xyz", "question,answer\na,b\n");
    const map = { question: "prompt", answer: "completion" };
    expect(await readExamples(files, path, { format: "csv", map })).toEqual([
      { kind: "pair", prompt: "a", completion: "b", where: `${path}:2` },
    ]);
    await expect(readExamples(files, path, { map: { question: "p" } })).rejects.toThrow(
      'map: "question=p" names no known field',
    );
  });

  it("takes several layouts in one file", async () => {
    const path = written(
      "mixed.jsonl",
      '{"text":"a"}\n{"messages":[{"role":"user","content":"b"}]}\n',
    );
    expect((await readExamples(files, path)).map(({ kind }) => kind)).toEqual(["text", "chat"]);
  });
});

describe("applyTemplate", () => {
  it("puts the prompt in as it is, once", () => {
    expect(applyTemplate(defaultTemplate, "a")).toBe("a\n");
    expect(applyTemplate("Q: {prompt} A:", "$& $1 {prompt}")).toBe("Q: $& $1 {prompt} A:");
  });

  it("refuses a template without a place for the prompt", () => {
    expect(() => applyTemplate("Q:\n", "a")).toThrow(
      new OptionError('template "Q:\\n" must contain {prompt}.'),
    );
  });
});

describe("encodeExamples", () => {
  // Ids: 0 the end, then the 256 bytes in the order of their characters ("!" is 1, so "a" is 65 and
  // "b" 66), then the one merge "ab", 257. Newline is the 11th of the moved bytes, after the 188
  // printable ones: 188 + 11 = 199.
  const bpe = trainBpe(["abab abab"], { vocabSize: 258, specialTokens: ["<|end|>"] });
  const tokenizerWith = (config: string): Tokenizer =>
    new Tokenizer({ tokenizer: toTokenizerJson(bpe), config }, "tiny");
  const tokenizer = tokenizerWith(toTokenizerConfig(bpe, { eosToken: "<|end|>" }));
  const [end, a, b, newline, ab] = [0, 65, 66, 199, 257];
  const pair = (prompt: string, completion: string) =>
    ({ kind: "pair", prompt, completion }) as const;
  const lists = (encoded: ReturnType<typeof encodeExamples>): number[][][] =>
    encoded.examples.map(({ ids, mask }) => [[...ids], [...mask]]);

  it("gives loss to the completion and the end, and to nothing of the prompt", () => {
    const encoded = encodeExamples([pair("ab", "ba")], tokenizer, { maxLength: 16 });
    expect(lists(encoded)).toEqual([
      [
        [ab, newline, b, a, end],
        [0, 0, 1, 1, 1],
      ],
    ]);
    expect([encoded.cut, encoded.empty]).toEqual([0, 0]);
  });

  it("gives loss to every token of a text but the first", () => {
    const encoded = encodeExamples([{ kind: "text", text: "aab" }], tokenizer, { maxLength: 16 });
    expect(lists(encoded)).toEqual([
      [
        [a, ab, end],
        [0, 1, 1],
      ],
    ]);
  });

  it("keeps a token border between prompt and completion", () => {
    const options = { template: "{prompt}", maxLength: 16 };
    expect(lists(encodeExamples([pair("a", "b")], tokenizer, options))).toEqual([
      [
        [a, b, end],
        [0, 1, 1],
      ],
    ]);
  });

  it("never gives loss to the first token, even where the prompt is empty", () => {
    const options = { template: "{prompt}", maxLength: 16 };
    expect(lists(encodeExamples([pair("", "ba")], tokenizer, options))).toEqual([
      [
        [b, a, end],
        [0, 1, 1],
      ],
    ]);
  });

  it("reads the end's text in data as text", () => {
    const { examples } = encodeExamples([pair("a", "<|end|>")], tokenizer, { maxLength: 16 });
    const [{ ids }] = examples as [(typeof examples)[0]];
    expect([...ids].indexOf(end)).toBe(ids.length - 1);
  });

  it("adds no end where the tokenizer has none", () => {
    const bare = tokenizerWith("{}");
    expect(lists(encodeExamples([pair("a", "b")], bare, { maxLength: 16 }))).toEqual([
      [
        [a, newline, b],
        [0, 0, 1],
      ],
    ]);
  });

  it("counts what it cuts and what it leaves out", () => {
    const raw = [
      pair("a", "b"), // 4 tokens: whole
      pair("a", "bb"), // 5: cut to a, newline, b, b
      pair("bbb", "b"), // 6: cut to the prompt alone, so left out
    ];
    const encoded = encodeExamples(raw, tokenizer, { maxLength: 4 });
    expect(lists(encoded)).toEqual([
      [
        [a, newline, b, end],
        [0, 0, 1, 1],
      ],
      [
        [a, newline, b, b],
        [0, 0, 1, 1],
      ],
    ]);
    expect([encoded.cut, encoded.empty]).toEqual([2, 1]);
  });

  it("refuses data in which nothing carries loss", () => {
    expect(() =>
      encodeExamples([pair("a", "b"), pair("b", "")], tokenizer, { maxLength: 2 }),
    ).toThrow(
      new OptionError(
        "data: no token carries loss in any of 2 examples — are the completions empty, or maxLength 2 too short?",
      ),
    );
  });
});

describe("epochBatches", () => {
  const rng = new Rng(3);
  const lengths = Array.from({ length: 61 }, () => 1 + rng.integer(40));

  it("has each example once, in batches of the size, the last of a sorted chunk smaller", () => {
    const batches = epochBatches(lengths, 4, new Rng(1));
    expect(batches.flat().toSorted((x, y) => x - y)).toEqual(lengths.map((_, i) => i));
    const sizes = batches.map((batch) => batch.length).toSorted((x, y) => x - y);
    expect(sizes).toEqual([1, ...new Array<number>(15).fill(4)]);
  });

  it("puts near lengths together, in an order that is not that of length", () => {
    // 61 examples fit one chunk of 16 batches of 4, so batches are slices of the sorted lengths.
    const spans = epochBatches(lengths, 4, new Rng(1)).map((batch) => {
      const own = batch.map((i) => lengths[i]!);
      return [Math.min(...own), Math.max(...own)] as const;
    });
    const sorted = spans.toSorted((x, y) => x[0] - y[0] || x[1] - y[1]);
    for (let i = 1; i < sorted.length; i++) {
      expect(sorted[i]![0]).toBeGreaterThanOrEqual(sorted[i - 1]![1]);
    }
    expect(spans).not.toEqual(sorted);
  });

  it("takes typed lengths, and refuses a size that is none", () => {
    expect(epochBatches(Int32Array.from(lengths), 4, new Rng(1))).toEqual(
      epochBatches(lengths, 4, new Rng(1)),
    );
    expect(() => epochBatches(lengths, 0, new Rng(1))).toThrow(
      "epochBatches: batchSize must be a whole number from 1, got 0.",
    );
  });

  it("repeats with the same seed and differs with another", () => {
    const first = epochBatches(lengths, 4, new Rng(1));
    expect(epochBatches(lengths, 4, new Rng(1))).toEqual(first);
    const other = epochBatches(lengths, 4, new Rng(2));
    expect(other).not.toEqual(first);
    const key = (batches: readonly (readonly number[])[]): string[] =>
      batches.map((batch) => batch.toSorted((x, y) => x - y).join()).sort();
    // Another order of the same batches would not be enough over epochs of equal lengths.
    const equal = new Array<number>(16).fill(5);
    expect(key(epochBatches(equal, 4, new Rng(1)))).not.toEqual(
      key(epochBatches(equal, 4, new Rng(2))),
    );
  });
});
