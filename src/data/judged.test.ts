/** Answers that were compared or judged: from records to sets. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import parity from "../../test/parity/chat.json" with { type: "json" };
import { FormatError, OptionError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { encodePreferences, partsOf } from "./encode.ts";
import type { RawExample } from "./example.ts";
import { readExamples } from "./examples.ts";
import { prepareData } from "./prepare.ts";
import { memoryPreferences, memorySet, preferenceSet } from "./set.ts";
import { fileSet, writeExampleFile } from "./store.ts";
import { Tokenizer } from "./tokenizer.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-judged-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();
const tokenizer = new Tokenizer(
  { tokenizer: JSON.stringify(parity.tokenizers.bytes), config: '{"eos_token":"<|im_end|>"}' },
  "bytes",
);

function written(name: string, records: readonly unknown[]): string {
  const path = join(root, name);
  writeFileSync(path, records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  return path;
}

const pairs = Array.from({ length: 60 }, (_, i) => ({
  prompt: `what is ${i}`,
  chosen: `it is ${i}`,
  rejected: "x".repeat(1 + (i % 4)),
}));

describe("preferences", () => {
  it("are read by prepareData as pairs of answers, on either side of the split", async () => {
    const path = written("pairs.jsonl", pairs);
    const options = { maxLength: 40, share: 0.3 };
    const parts = (raw: RawExample) => partsOf(raw, "preference", "dpo");
    const prepared = await prepareData(files, path, tokenizer, { ...options, parts });
    const [train, heldOut] = [preferenceSet(prepared.train), preferenceSet(prepared.heldOut)];
    expect(train.count + heldOut.count).toBe(60);
    expect(heldOut.count).toBe(prepared.report.heldOut.read);
    const expected = encodePreferences(await readExamples(files, path), tokenizer, options);
    const key = (ids: Int32Array): string => [...ids].join(" ");
    const known = new Map(expected.chosen.map(({ ids }, i) => [key(ids), expected.rejected[i]!]));
    const all = Array.from({ length: train.count }, (_, i) => i);
    for (const { chosen, rejected } of await train.get(all)) {
      expect(rejected).toEqual(known.get(key(chosen.ids)));
    }
    const [one] = await train.get([1]);
    expect(train.lengths[1]).toBe(one!.chosen.ids.length + one!.rejected.ids.length);
  });

  it("leave a pair out whole when nothing of its answers is left", async () => {
    const long = { prompt: "long ".repeat(40), chosen: "b", rejected: "c" };
    const path = written("long.jsonl", [pairs[0], long, pairs[1]]);
    const parts = (raw: RawExample) => partsOf(raw, "preference", "dpo");
    const options = { maxLength: 40, share: 0, parts };
    const prepared = await prepareData(files, path, tokenizer, options);
    expect(prepared.report.train).toEqual({ read: 3, cut: 1, empty: 1 });
    expect(preferenceSet(prepared.train).count).toBe(2);
  });

  it("refuse other examples, naming what is needed", () => {
    const where = "data.jsonl:3";
    expect(() => partsOf({ kind: "text", text: "a", where }, "preference", "dpo")).toThrow(
      new FormatError(
        'data.jsonl:3: is a text, dpo needs preferences — give "prompt", "chosen" and "rejected".',
        { kind: "text" },
      ),
    );
    expect(() =>
      partsOf({ kind: "pair", prompt: "a", completion: "b", where }, "judged", "kto"),
    ).toThrow(
      'data.jsonl:3: is a pair without a label, kto needs answers that were judged — give "prompt", "completion" and "label"',
    );
    expect(() => partsOf({ kind: "text", text: "a", where }, "answered", "grpo")).toThrow(
      "data.jsonl:3: is a text, grpo needs prompts with answers",
    );
  });

  it("refuse sets that make no pairs", () => {
    const example = { ids: Int32Array.of(1, 2), mask: Uint8Array.of(0, 1) };
    expect(() => preferenceSet(memorySet([example]))).toThrow(
      new OptionError(
        "preferences: 1 answers make no pairs — give a chosen and a rejected one in turn.",
      ),
    );
    expect(() => memoryPreferences({ chosen: [example], rejected: [] })).toThrow(
      "1 chosen and 0 rejected answers",
    );
  });
});

describe("judged answers", () => {
  const records = [
    { prompt: "a", completion: "good", label: true },
    { prompt: "b", completion: "bad", label: false },
    { prompt: "c", chosen: "good", rejected: "bad" },
  ];

  it("keep their labels, and a preference gives one of each", async () => {
    const path = written("judged.jsonl", records);
    const prepared = await prepareData(files, path, tokenizer, {
      maxLength: 20,
      share: 0,
      limit: 0,
      keepsLabels: true,
      parts: (raw) => partsOf(raw, "judged", "kto"),
    });
    const found = await prepared.train.get([0, 1, 2, 3]);
    expect(found.map(({ isGood }) => isGood === true)).toEqual([true, false, true, false]);
  });

  it("are refused where nobody learns from labels", async () => {
    await expect(readExamples(files, written("refused.jsonl", records))).rejects.toThrow(
      '"label" that judges them (KTO) are not understood',
    );
  });

  it("keep their labels in a chat of lists too", async () => {
    const turn = (role: string, content: string) => [{ role, content }];
    const chat = { prompt: turn("user", "a"), completion: turn("assistant", "b"), label: true };
    const path = written("chat.jsonl", [chat]);
    const [read] = await readExamples(files, path, { keepsLabels: true });
    expect(read).toMatchObject({ kind: "chat", label: true });
  });

  it("are the same from a file of examples, with the same hash", async () => {
    const path = join(root, "judged.examples");
    const examples = [true, false, undefined].map((isGood, i) => ({
      ids: Int32Array.of(i + 1, 5, 6),
      mask: Uint8Array.of(0, 0, 1),
      ...(isGood && { isGood }),
    }));
    await writeExampleFile(files, path, examples);
    const set = await fileSet(files, path);
    expect(await set.get([0, 1, 2])).toEqual(examples);
    expect(set.dataHash).toBe(memorySet(examples).dataHash);
    expect(set.dataHash).not.toBe(
      memorySet(examples.map(({ ids, mask }) => ({ ids, mask }))).dataHash,
    );
    await set.verify();
    await set.close();
  });
});
