import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { compilePattern } from "./pattern.ts";

describe("compilePattern", () => {
  const layer = "model.layers.11.self_attn.q_proj";

  it.each([
    ["q_proj", true],
    ["self_attn.q_proj", true],
    ["proj", false],
    ["attn.q_proj", false],
    ["model.layers.1.self_attn.q_proj", false],
    ["layers.1..self_attn.q_proj", true],
    ["layers\\.1\\.self_attn\\.q_proj", false],
    ["^layers.11.self_attn.q_proj", false],
    ["^model.layers.11.self_attn.q_proj$", true],
    ["(q|v)_proj", true],
    ["k_proj|q_proj", true],
    ["(?:k|v)_proj", false],
    [".*", true],
    ["layers\\.\\d+\\.self_attn\\.[a-q]_proj", true],
    ["layers\\.[^1]+\\.self_attn\\..*", false],
    ["(layers|11|self_attn|\\.)+q_proj", true],
    ["q_?proj", true],
    ["q_pro*j", true],
    ["", false],
  ])("says of %s whether PEFT would take it", (pattern, expected) => {
    // PEFT: re.match(rf"(.*\.)?({key})$", path)
    expect(new RegExp(`^(?:(.*\\.)?(${pattern})$)`).test(layer)).toBe(expected);
    expect(compilePattern(pattern)(layer)).toBe(expected);
  });

  it("agrees with RegExp on random patterns and paths", () => {
    const atom = fc.constantFrom(
      "a",
      "b",
      "1",
      "\\.",
      ".",
      "\\d",
      "[ab]",
      "[^a]",
      "[a-c1]",
      "^",
      "$",
    );
    const { pattern } = fc.letrec<{ pattern: string; part: string }>((tie) => ({
      part: fc.oneof(
        { maxDepth: 4 },
        atom,
        fc.tuple(tie("pattern"), fc.constantFrom("", "*", "+", "?")).map(([p, q]) => `(${p})${q}`),
        fc.tuple(atom, fc.constantFrom("*", "+", "?", "*?")).map(([a, q]) =>
          // RegExp takes no quantifier after an anchor.
          a === "^" || a === "$" ? a : a + q,
        ),
      ),
      pattern: fc.oneof(
        { maxDepth: 3 },
        fc.array(tie("part"), { maxLength: 4 }).map((parts) => parts.join("")),
        fc.tuple(tie("pattern"), tie("pattern")).map(([a, b]) => `${a}|${b}`),
      ),
    }));
    const path = fc
      .array(fc.constantFrom("a", "b", "1", "."), { maxLength: 7 })
      .map((parts) => parts.join(""));
    const seen = { yes: 0, no: 0 };
    fc.assert(
      fc.property(pattern, path, (text, name) => {
        const expected = new RegExp(`^(?:(.*\\.)?(${text})$)`).test(name);
        seen[expected ? "yes" : "no"]++;
        expect(compilePattern(text)(name)).toBe(expected);
      }),
      { seed: 7, numRuns: 3000 },
    );
    expect(Math.min(seen.yes, seen.no)).toBeGreaterThan(200);
  });

  it("takes no longer for a pattern that would go back and forth", () => {
    const start = performance.now();
    expect(compilePattern("(a+)+(a*)*(a|aa)+b")("a".repeat(200))).toBe(false);
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it.each([
    ["a{2}", '"{" at 1 is not supported'],
    ["(?=a)", '"?" at 1 is not supported'],
    ["*a", '"*" at 0 is not supported'],
    ["(a", "ends too early"],
    ["a)", '")" at 1 is not supported'],
    ["[a", "ends too early"],
    ["a\\b", '"b" at 2 is not supported'],
    ["\\", "ends too early"],
  ])("refuses %s", (pattern, what) => {
    expect(() => compilePattern(pattern, "rankPattern")).toThrow(
      `rankPattern ${JSON.stringify(pattern)}: ${what} — write names, ".", classes, groups, "|", "*", "+" and "?".`,
    );
  });

  it("refuses a pattern without end", () => {
    expect(() => compilePattern("a".repeat(513))).toThrow(
      "has 513 characters, at most 512 are read.",
    );
  });
});
