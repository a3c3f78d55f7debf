import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { wordPieceConfig, wordPieceJson } from "../../test/support/tiny-encoder.ts";
import { nodeHost } from "../host/node.ts";
import { encodeLabelled, encodeTagged, taskSet } from "./task-examples.ts";
import {
  labelSet,
  readTask,
  tagNames,
  taskFields,
  toLabelledText,
  toSentenceGroup,
  toSourceTarget,
  toTaggedWords,
} from "./tasks.ts";
import { frameText, textFrame } from "./text-frame.ts";
import { Tokenizer } from "./tokenizer.ts";

const { files } = nodeHost();
const tokenizer = new Tokenizer({ tokenizer: wordPieceJson(), config: wordPieceConfig }, "tiny");
const frame = textFrame(tokenizer);
const [cls, sep] = [2, 3];
const idOf = (word: string): number => tokenizer.tokenToId(word)!;

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-tasks-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function fileOf(name: string, text: string): Promise<string> {
  const path = join(scratch, name);
  await writeFile(path, text);
  return path;
}

describe("frames", () => {
  test("stand around a text and between two, by the template", () => {
    expect(frame).toEqual({
      before: [cls],
      after: [sep],
      between: [sep],
      afterPair: [sep],
      types: { between: 0, second: 1, after: 1 },
    });
    const pair = frameText(frame, [10, 11], [12], 16);
    expect([...pair.ids]).toEqual([cls, 10, 11, sep, 12, sep]);
    expect([...pair.types!]).toEqual([0, 0, 0, 0, 1, 1]);
    expect(pair).toMatchObject({ start: 1, kept: 2, isCut: false });
  });

  test("cut the longer of two texts first, then both", () => {
    const cut = (a: number, b: number, most: number): number[] => {
      const made = frameText(frame, new Array(a).fill(10), new Array(b).fill(12), most);
      return [made.kept, made.ids.filter((id) => id === 12).length, made.ids.length];
    };
    expect(cut(10, 2, 9)).toEqual([4, 2, 9]);
    expect(cut(2, 10, 9)).toEqual([2, 4, 9]);
    expect(cut(10, 10, 10)).toEqual([4, 3, 10]);
    expect(() => cut(1, 1, 4)).toThrow("maxLength 4 leaves no room for a text beside 3 tokens");
  });

  test("follow RoBERTa's and a tokenizer that puts nothing around", () => {
    const change = (post: object | null): Tokenizer => {
      const json = { ...JSON.parse(wordPieceJson()), post_processor: post };
      return new Tokenizer({ tokenizer: JSON.stringify(json), config: wordPieceConfig }, "tiny");
    };
    const roberta = change({ type: "RobertaProcessing", sep: ["[SEP]", 3], cls: ["[CLS]", 2] });
    expect(textFrame(roberta)).toMatchObject({ between: [sep, sep], afterPair: [sep] });
    expect(textFrame(change(null))).toMatchObject({ before: [], after: [], between: [] });
    const wrong = { type: "TemplateProcessing", single: [{ Sequence: { id: "A", type_id: 0 } }] };
    const broken = change({
      ...wrong,
      pair: [{ Sequence: { id: "B", type_id: 0 } }],
      special_tokens: {},
    });
    expect(() => textFrame(broken)).toThrow("post_processor.pair must hold A once, then B once.");
  });
});

describe("records", () => {
  test("are texts with labels by name, number and list, alone or in pairs", async () => {
    const path = await fileOf(
      "labels.jsonl",
      '{"text":"a","label":"x"}\n{"premise":"p","hypothesis":"h","label":1}\n{"text":"t","label":["u","v"]}',
    );
    const found = await readTask(files, path, taskFields.labelled, toLabelledText);
    expect(found.map(({ where: _, ...rest }) => rest)).toEqual([
      { text: "a", label: "x" },
      { text: "p", pair: "h", label: 1 },
      { text: "t", label: ["u", "v"] },
    ]);
    const broken = await fileOf("broken.jsonl", '{"text":"a"}');
    await expect(readTask(files, broken, taskFields.labelled, toLabelledText)).rejects.toThrow(
      `${broken}:1: needs a "label": a name, a number or a list of names, got null.`,
    );
    await expect(
      readTask(files, path, taskFields.labelled, toLabelledText, { map: { a: "answer" } }),
    ).rejects.toThrow('map: "answer" is no field of this task — fields are text, pair,');
  });

  test("are words with tags, as lists or as CoNLL's lines", async () => {
    const lines = await fileOf("tags.txt", "Anna NNP B-PER\nsings VB O\n\nBen NNP B-PER\n");
    const found = await readTask(files, lines, taskFields.tagged, toTaggedWords);
    expect(found.map(({ words, tags }) => [words, tags])).toEqual([
      [
        ["Anna", "sings"],
        ["B-PER", "O"],
      ],
      [["Ben"], ["B-PER"]],
    ]);
    const odd = await fileOf("odd.jsonl", '{"tokens":["a","b"],"tags":["O"]}');
    await expect(readTask(files, odd, taskFields.tagged, toTaggedWords)).rejects.toThrow(
      "needs a tag for each of at most 65536 words, got 1 for 2.",
    );
    expect(tagNames([{ words: ["a"], tags: ["I-B", "O", "B-B", "B-A"], where: "" }])).toEqual([
      "O",
      "B-A",
      "B-B",
      "I-B",
    ]);
  });

  test("are sentences that belong together, and sources with targets", () => {
    const group = (record: object) => toSentenceGroup({ record: record as never, where: "f:1" });
    expect(group({ query: "q", positive: "p", negative: ["n", "m"] }).texts).toEqual([..."qpnm"]);
    expect(group({ sentence1: "a", sentence2: "b", score: 0.5 }).score).toBe(0.5);
    expect(() => group({ anchor: "a", positive: "b", score: "high" })).toThrow(
      'f:1: "score" must be a number, got "high".',
    );
    const pair = toSourceTarget({ record: { document: "d", summary: "s" }, where: "f:1" });
    expect(pair).toMatchObject({ source: "d", target: "s" });
  });
});

describe("labels", () => {
  const of = (...labels: (string | number | readonly string[])[]) =>
    labels.map((label) => ({ label, where: "f:1" }));

  test("are found in the data", () => {
    expect(labelSet(of("b", "a"))).toEqual({
      problem: "single_label_classification",
      names: ["a", "b"],
    });
    expect(labelSet(of(2, 0)).names).toEqual(["LABEL_0", "LABEL_1", "LABEL_2"]);
    expect(labelSet(of(0.5, 1)).problem).toBe("regression");
    expect(labelSet(of(["a"], ["b", "a"])).problem).toBe("multi_label_classification");
  });

  test("that do not fit are refused", () => {
    expect(() => labelSet(of("a", 1))).toThrow("must all be of one kind, got string and number.");
    expect(() => labelSet(of("c"), ["a", "b"])).toThrow('"c" is not among a, b.');
    expect(() => labelSet(of(5), ["a", "b"])).toThrow("the number 5 is beyond the 2 classes");
    const labels = labelSet(of("a", "b"));
    const raw = { text: "good", label: "c", where: "f:7" };
    expect(() => encodeLabelled(raw, labels, { tokenizer, frame, maxLength: 8 })).toThrow(
      'f:7: the label "c" is not one of a, b.',
    );
  });
});

describe("examples", () => {
  const encoding = { tokenizer, frame, maxLength: 16 };

  test("of several labels hold a 1 for each", () => {
    const labels = labelSet([{ label: ["a", "b", "c"], where: "" }]);
    const raw = { text: "good movie", label: ["c", "a"], where: "f:1" };
    const { target, ids } = encodeLabelled(raw, labels, encoding);
    expect([...(target as Float32Array)]).toEqual([1, 0, 1]);
    expect([...ids]).toEqual([cls, idOf("good"), idOf("movie"), sep]);
  });

  test("of words carry the tag on the first piece alone", () => {
    // "zu" is no word of the vocabulary: z and ##u.
    const raw = { words: ["anna", "zu", "paris"], tags: ["B-PER", "O", "B-LOC"], where: "f:1" };
    const { ids, labels, lost } = encodeTagged(raw, ["O", "B-LOC", "B-PER"], encoding);
    expect([...ids]).toEqual([cls, idOf("anna"), idOf("z"), idOf("##u"), idOf("paris"), sep]);
    expect([...labels]).toEqual([-1, 2, 0, -1, 1, -1]);
    expect(lost).toBe(0);
    expect(encodeTagged(raw, ["O", "B-LOC", "B-PER"], { ...encoding, maxLength: 4 }).lost).toBe(1);
  });

  test("of a set have a hash that sees every number", () => {
    const set = (score: number) =>
      taskSet([{ score }], (one) => ({ length: 3, loss: 1, all: [[1, 2, 3], [one.score]] }));
    expect(set(0.25).dataHash).toBe(set(0.25).dataHash);
    expect(set(0.25).dataHash).not.toBe(set(0.26).dataHash);
    expect(set(1)).toMatchObject({ count: 1, tokens: 3, lossTokens: 1 });
  });
});
