import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { promptText, type RawExample } from "./example.ts";
import { splitBound, splitByHash, splitHash } from "./split.ts";

const pair = (prompt: string, completion = "c"): RawExample => ({
  kind: "pair",
  prompt,
  completion,
});
const many = Array.from({ length: 4000 }, (_, i) => pair(`What is ${i} plus ${i}?`));

describe("splitHash", () => {
  it("is FNV-1a, as published", () => {
    // Test vectors of the authors: "" 0x811c9dc5, "a" 0xe40c292c, "foobar" 0xbf9cf968.
    expect(splitHash("") * 2 ** 32).toBe(0x811c9dc5);
    expect(splitHash("a") * 2 ** 32).toBe(0xe40c292c);
    expect(splitHash("foobar") * 2 ** 32).toBe(0xbf9cf968);
  });
});

describe("splitByHash", () => {
  it("holds out about the share, and every example is on one side", () => {
    const { train, heldOut } = splitByHash(many);
    expect(train.length + heldOut.length).toBe(many.length);
    // 4000 draws of 0.1: 400 with a standard deviation of 19.
    expect(Math.abs(heldOut.length - 400)).toBeLessThan(76);
    expect(splitByHash(many, { share: 0 }).heldOut).toEqual([]);
    expect(splitByHash(many, { share: 1 }).train).toEqual([]);
  });

  it("does not depend on the order, and keeps it", () => {
    const { heldOut } = splitByHash(many, { share: 0.2, limit: 150 });
    const reversed = splitByHash(many.toReversed(), { share: 0.2, limit: 150 });
    expect(reversed.heldOut).toEqual(heldOut.toReversed());
    expect(heldOut).toHaveLength(150);
  });

  it("keeps examples of one prompt on one side", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom("a", "b", "c", "dd"), fc.string()), { maxLength: 30 }),
        fc.option(fc.nat(20), { nil: undefined }),
        (items, limit) => {
          const examples = items.map(([prompt, completion]) => pair(prompt, completion));
          const options = { share: 0.7, ...(limit !== undefined && { limit }) };
          const { train, heldOut } = splitByHash(examples, options);
          const held = new Set(heldOut.map(promptText));
          expect(train.some((example) => held.has(promptText(example)))).toBe(false);
          expect(heldOut.length).toBeLessThanOrEqual(limit ?? items.length);
        },
      ),
      { seed: 7, numRuns: 200 },
    );
  });

  it("goes by what is asked, whatever the layout", () => {
    const user = { role: "user", content: "q" };
    const answers = ["a", "b"].map((content) => ({ role: "assistant", content }));
    const texts = [
      pair("q"),
      { kind: "chat", messages: [user, answers[0]!] },
      { kind: "chat", messages: [user, answers[1]!, user] },
      { kind: "preference", prompt: "q", chosen: "a", rejected: "b" },
      { kind: "preference", prompt: [user], chosen: [answers[0]!], rejected: [answers[1]!] },
      { kind: "text", text: "q" },
      { kind: "chat", messages: [user] },
    ] as RawExample[];
    expect(texts.map(promptText)).toEqual(new Array(7).fill("q"));
    // A chat that the assistant opens is told by all of it.
    expect(promptText({ kind: "chat", messages: [answers[0]!, user] })).toBe("a\nq");
  });

  it("refuses shares and limits outside their range", () => {
    expect(() => splitBound([], { share: 1.5 })).toThrow(
      "split: share must be from 0 to 1, got 1.5.",
    );
    expect(() => splitBound([], { share: Number.NaN })).toThrow("got NaN.");
    expect(() => splitBound([], { limit: -1 })).toThrow(
      "split: limit must be a whole number from 0, got -1.",
    );
  });
});
