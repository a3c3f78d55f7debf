import { describe, expect, it } from "vitest";
import { loadTokenizer } from "../data/tokenizer.ts";
import { OptionError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import { findStop, TextStream } from "./text-stream.ts";

/** One token per byte of UTF-8, as a tokenizer of bytes decodes them. */
const bytes = {
  decode: (ids: ArrayLike<number>): string => new TextDecoder().decode(Uint8Array.from(ids)),
};
/** A tokenizer in which a token is a word with a space before it, lost at the start of a text. */
const words = ["ab", "c", "de"];
const wordPieces = {
  decode: (ids: ArrayLike<number>): string =>
    Array.from(ids, (id) => ` ${words[id]}`)
      .join("")
      .slice(1),
};

/** The pieces for each token, then what the end gives. */
function pieces(text: string, stop: readonly string[] = []): string[] {
  const stream = new TextStream(bytes, { stop });
  const given = Array.from(new TextEncoder().encode(text), (byte) => stream.push(byte));
  given.push(stream.end());
  expect(stream.text).toBe(given.join(""));
  return given;
}

describe("TextStream", () => {
  it("holds a character back until its last byte", () => {
    expect(pieces("aé€😀b")).toEqual(["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]);
  });

  it("gives what stays broken at the end as U+FFFD, and in the middle once it is certain", () => {
    const stream = new TextStream(bytes);
    const given = [0x61, 0xff, 0x62, 0xe2, 0x82].map((byte) => stream.push(byte));
    expect(given).toEqual(["a", "", "\ufffdb", "", ""]);
    expect(stream.end()).toBe("\ufffd");
  });

  it("holds back what may begin a stop string, and gives it when it does not", () => {
    expect(pieces("x<b></b", ["<b>y", "</"])).toEqual(["x", "", "", "", "<b>", "", "", ""]);
    expect(pieces("x<b><b>y", ["<b>y"])).toEqual(["x", "", "", "", "<b>", "", "", "", ""]);
    expect(pieces("ab#", ["##"])).toEqual(["a", "b", "", "#"]);
  });

  it("ends at the stop string that is complete first and gives nothing more", () => {
    const stream = new TextStream(bytes, { stop: ["bcd", "c"] });
    expect([..."abcde"].map((letter) => stream.push(letter.charCodeAt(0)))).toEqual([
      "a",
      "",
      "b",
      "",
      "",
    ]);
    expect([stream.stop, stream.end(), stream.text]).toEqual(["c", "", "ab"]);
  });

  it("finds a stop string that begins and ends inside tokens", () => {
    const stream = new TextStream(wordPieces, { stop: ["b c d"] });
    expect([0, 1, 2].map((token) => stream.push(token))).toEqual(["a", "", ""]);
    expect(stream.stop).toBe("b c d");
  });

  it("writes the first token as it stands after its context", () => {
    expect(new TextStream(wordPieces).push(1)).toBe("c");
    const stream = new TextStream(wordPieces, { context: [0, 0] });
    expect([1, 2, 0].map((token) => stream.push(token))).toEqual([" c", " de", " ab"]);
  });

  it("gives the text of all tokens, up to the stop, wherever a real tokenizer cuts", async () => {
    const folder = new URL("../../models/builtin", import.meta.url).pathname;
    const tokenizer = await loadTokenizer(nodeHost().files, folder);
    const rng = new Rng(2);
    for (let round = 0; round < 40; round++) {
      // Random tokens: mostly broken characters, and all kinds of borders.
      const tokens = Array.from({ length: 40 }, () => rng.integer(tokenizer.vocabSize));
      const whole = tokenizer.decode(tokens, { skipSpecial: true });
      const plain = new TextStream(tokenizer);
      const joined = tokens.map((token) => plain.push(token)).join("") + plain.end();
      expect(joined).toBe(whole);
      const at = rng.integer(whole.length - 4);
      const stop = whole.slice(at, at + 1 + rng.integer(4));
      const stream = new TextStream(tokenizer, { stop: [stop] });
      for (const token of tokens) stream.push(token);
      stream.end();
      expect(stream.text).toBe(whole.slice(0, whole.indexOf(stop)));
    }
  });

  it.each<[readonly string[], string]>([
    [["a", ""], "stop: a string must have 1 to 4096 characters, got 0."],
    [["a".repeat(5000)], "stop: a string must have 1 to 4096 characters, got 5000."],
    [new Array<string>(65).fill("a"), "stop: at most 64 strings, got 65."],
  ])("refuses stop strings outside their range", (stop, sentence) => {
    expect(() => new TextStream(bytes, { stop })).toThrow(new OptionError(sentence));
  });
});

describe("findStop", () => {
  it("takes the first to end, and the longest of those", () => {
    expect(findStop("abcd", ["bcd", "c"])).toEqual({ at: 2, stop: "c" });
    expect(findStop("abcd", ["c", "bc", "abc"])).toEqual({ at: 0, stop: "abc" });
    expect(findStop("abcd", ["x"])).toBeUndefined();
  });
});
