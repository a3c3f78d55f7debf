import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "./bpe.ts";
import { drawWindows, readDocuments, tokenizeFile, type WindowOptions } from "./stream.ts";
import { Tokenizer } from "./tokenizer.ts";

/** A file of these bytes that comes in chunks of a size. */
function chunked(contents: string | Uint8Array, size: number): Files {
  const bytes = typeof contents === "string" ? new TextEncoder().encode(contents) : contents;
  return {
    ...nodeHost().files,
    async *stream(): AsyncGenerator<Uint8Array> {
      for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
    },
  };
}

async function documents(files: Files, separator?: string): Promise<string[]> {
  const found: string[] = [];
  for await (const document of readDocuments(files, "text.txt", separator)) found.push(document);
  return found;
}

const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
const json = toTokenizerJson(bpe);
const tokenizer = new Tokenizer(
  { tokenizer: json, config: toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }) },
  "tiny",
);

describe("readDocuments", () => {
  const text = "\ufeffOne é.\n<|endoftext|>\n\n<|endoftext|>Two 漢字\nand 𝄞.\n<|endoftext|>\nThree";

  it("finds the same documents wherever chunks end, inside characters and separators too", async () => {
    const length = new TextEncoder().encode(text).length;
    for (let size = 1; size <= length; size++) {
      expect(await documents(chunked(text, size)), `chunks of ${size}`).toEqual([
        "One é.",
        "Two 漢字\nand 𝄞.",
        "Three",
      ]);
    }
  });

  it("takes another separator", async () => {
    expect(await documents(chunked("a\n---\nb<|endoftext|>c", 3), "---")).toEqual([
      "a",
      "b<|endoftext|>c",
    ]);
  });

  it("says where a file is not UTF-8", async () => {
    const bad = Uint8Array.from([0x61, 0x62, 0x63, 0x64, 0xff, 0x65]);
    await expect(documents(chunked(bad, 4))).rejects.toMatchObject({
      code: "format",
      message: "text.txt: not UTF-8, in the 2 bytes from 4 — save the file as UTF-8 text.",
    });
    const cut = Uint8Array.from([0x61, 0xc3]);
    await expect(documents(chunked(cut, 4))).rejects.toMatchObject({
      code: "format",
      message: "text.txt: not UTF-8, it ends inside a character — save the file as UTF-8 text.",
    });
  });
});

describe("tokenizeFile", () => {
  it("ends each document with the end-of-text token and counts the bytes of the text", async () => {
    const progress: number[] = [];
    const files = chunked("ab\n<|endoftext|>\né<|endoftext|>", 5);
    const { tokens, bytes } = await tokenizeFile(files, "text.txt", tokenizer, (done) =>
      progress.push(done),
    );
    expect([...tokens]).toEqual([...tokenizer.encode("ab"), 0, ...tokenizer.encode("é"), 0]);
    expect([bytes, progress]).toEqual([4, [2, 4]]);
  });

  it("refuses a tokenizer without an end-of-text token", async () => {
    const bare = new Tokenizer({ tokenizer: json, config: undefined }, "tiny");
    await expect(tokenizeFile(chunked("a", 1), "text.txt", bare)).rejects.toThrow(
      new OptionError("text.txt: the tokenizer names no end-of-text token."),
    );
  });
});

describe("drawWindows", () => {
  // Every token differs from all others, so that a token names its place.
  const tokens = Int32Array.from({ length: 500 }, (_, i) => i);
  const options: WindowOptions = { batchSize: 3, seqLen: 96, vocabSize: 500 };
  const draw = (seed: number, step: number, more: Partial<WindowOptions> = {}) =>
    drawWindows(tokens, { ...options, ...more }, new Rng(seed).fold(step));

  it("depends on seed and step alone", () => {
    const first = draw(1, 5, { repeats: 0.5 });
    draw(1, 6, { repeats: 0.5 });
    expect(draw(1, 5, { repeats: 0.5 })).toEqual(first);
    expect(draw(1, 6, { repeats: 0.5 })).not.toEqual(first);
    expect(draw(2, 5, { repeats: 0.5 })).not.toEqual(first);
  });

  it("does not move the stream it is given", () => {
    const rng = new Rng(4);
    const before = rng.state;
    drawWindows(tokens, options, rng);
    expect(rng.state).toEqual(before);
  });

  it("gives passages of the text, and as targets the tokens that follow", () => {
    const starts = new Set<number>();
    for (let step = 0; step < 40; step++) {
      const { ids, targets } = draw(1, step);
      for (let b = 0; b < 3; b++) {
        const start = ids[b * 96]!;
        starts.add(start);
        const row = (values: Int32Array) => [...values.subarray(b * 96, (b + 1) * 96)];
        const run = Array.from({ length: 97 }, (_, t) => start + t);
        expect(row(ids)).toEqual(run.slice(0, -1));
        expect(row(targets)).toEqual(run.slice(1));
      }
    }
    expect(starts.size).toBeGreaterThan(80);
  });

  it("reaches the first and the last window of a text", () => {
    const starts = new Set<number>();
    for (let step = 0; step < 20; step++) starts.add(draw(1, step, { seqLen: 497 }).ids[0]!);
    expect([...starts].sort()).toEqual([0, 1, 2]);
  });

  /** Rows in which three tokens in a row return. */
  function repeating(ids: Int32Array, targets: Int32Array): boolean[] {
    return [0, 1, 2].map((b) => {
      const row = [ids[b * 96]!, ...targets.subarray(b * 96, (b + 1) * 96)];
      const threes = row.slice(2).map((_, i) => row.slice(i, i + 3).join());
      return new Set(threes).size < threes.length;
    });
  }

  it("makes every window of passages that return when repeats is 1, and none when it is 0", () => {
    for (let step = 0; step < 20; step++) {
      const all = draw(1, step, { repeats: 1 });
      expect(repeating(all.ids, all.targets)).toEqual([true, true, true]);
      for (let b = 0; b < 3; b++) {
        const row = (values: Int32Array) => [...values.subarray(b * 96, (b + 1) * 96)];
        expect(row(all.ids).slice(1)).toEqual(row(all.targets).slice(0, -1));
      }
      const none = draw(1, step, { repeats: 0 });
      expect(repeating(none.ids, none.targets)).toEqual([false, false, false]);
    }
  });

  it("repeats in about the share that is asked", () => {
    let count = 0;
    for (let step = 0; step < 100; step++) {
      const { ids, targets } = draw(1, step, { repeats: 0.25 });
      count += repeating(ids, targets).filter(Boolean).length;
    }
    // 300 draws of 0.25: 75, deviation 7.5.
    expect(Math.abs(count - 75)).toBeLessThan(23);
  });

  it("refuses a text shorter than a window", () => {
    expect(draw(1, 0, { seqLen: 499 }).ids[0]).toBe(0);
    expect(() => draw(1, 0, { seqLen: 500 })).toThrow(
      new OptionError(
        "pretrain: the text has 500 tokens, a window needs 501 — give more text or a shorter seqLen.",
      ),
    );
  });
});
