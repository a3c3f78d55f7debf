import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import { formatPatterns } from "./formats.ts";
import { type CharacterDfa, compilePattern, intersect, matches } from "./regex.ts";

/** What is too large is refused, and says nothing here. */
function compiled(source: string): CharacterDfa | "nothing" | undefined {
  try {
    return compilePattern(source, "test") ?? "nothing";
  } catch (error) {
    if (error instanceof OptionError && error.message.includes("states")) return undefined;
    throw error;
  }
}

/** Patterns of the kinds that are understood, made of a few characters so that strings often match. */
const pattern: fc.Arbitrary<string> = fc
  .letrec<{ atom: string; join: string; choice: string }>((tie) => ({
    atom: fc.oneof(
      { maxDepth: 2 },
      fc.constantFrom(
        "a",
        "b",
        "0",
        ".",
        "\\d",
        "\\w",
        "\\s",
        "[ab]",
        "[^a]",
        "[a-c0-9]",
        "\\W",
        "é",
        "\\u{1F600}",
        "[\\d_-]",
        "\\.",
        "\\n",
        "(?:a{2})",
        "(?:b{1,3})",
        "(?:.{2,})",
        "(?:\\w{0,2}?)",
      ),
      tie("choice").map((inner) => `(${inner})`),
      tie("choice").map((inner) => `(?:${inner})`),
    ),
    join: fc
      .array(fc.tuple(tie("atom"), fc.constantFrom("", "", "", "*", "+", "?", "*?", "+?")), {
        minLength: 0,
        maxLength: 2,
      })
      .map((parts) => parts.map(([atom, count]) => atom + count).join("")),
    choice: fc.array(tie("join"), { minLength: 1, maxLength: 2 }).map((parts) => parts.join("|")),
  }))
  .choice.chain((inner) =>
    fc.constantFrom(
      inner,
      `^${inner}`,
      `${inner}$`,
      `^(${inner})$`,
      `^(?:${inner})$`,
      `^a|${inner}$`,
      `(^|b)${inner}`,
    ),
  );

const subject = fc.string({
  unit: fc.constantFrom("a", "b", "c", "0", "1", "_", " ", "\n", "é", "😀", "-", "."),
  maxLength: 8,
});

describe("patterns", () => {
  it("match what JavaScript's regular expressions match", () => {
    let [matched, all] = [0, 0];
    fc.assert(
      fc.property(pattern, fc.array(subject, { minLength: 5, maxLength: 5 }), (source, texts) => {
        const own = compiled(source);
        if (!own) return;
        const expression = new RegExp(source, "u");
        for (const text of texts) {
          const found = own !== "nothing" && matches(own, text);
          if (found !== expression.test(text)) {
            throw new Error(`${source} and ${JSON.stringify(text)}: ${found}`);
          }
          all++;
          if (found) matched++;
        }
      }),
      { seed: 11, numRuns: 1200 },
    );
    expect(all).toBeGreaterThan(5000);
    expect(matched).toBeGreaterThan(all * 0.2);
    expect(matched).toBeLessThan(all * 0.9);
  });

  it("meet where both match", () => {
    fc.assert(
      fc.property(pattern, pattern, subject, (a, b, text) => {
        const [left, right] = [compiled(a), compiled(b)];
        if (!left || !right || (typeof left === "object" && left.size > 40)) return;
        const isEmpty = left === "nothing" || right === "nothing";
        const both = isEmpty ? undefined : intersect(left, right, "test");
        expect(both ? matches(both, text) : false).toBe(
          new RegExp(a, "u").test(text) && new RegExp(b, "u").test(text),
        );
      }),
      { seed: 4, numRuns: 300 },
    );
  });

  it("take linear time where backtracking takes for ever", () => {
    const own = compilePattern("^(a+)+$", "test")!;
    expect(matches(own, `${"a".repeat(10_000)}b`)).toBe(false);
  });

  it.each([
    ["(a)\\1", "refers back to a group"],
    ["(?=a)b", "looks ahead or behind"],
    ["(?<!a)b", "looks ahead or behind"],
    ["\\bword", "has a border of words"],
    ["\\p{L}", "has a property of characters"],
    ["(a", 'has "(" without ")"'],
    ["a)", 'has ")" without "("'],
    ["[a", 'has "[" without "]"'],
    ["[b-a]", "has a range whose ends are not two characters in order"],
    ["a{3,2}", "repeats from 3 to 2 times"],
    ["a{2000}", "repeats 2000 times, at most 1000"],
    ["a**", "repeats a repetition"],
    ["*a", 'has "*" where nothing is repeated'],
    ["\\", "ends in a backslash"],
    ["\\ud800", "names no character"],
    [`${"(".repeat(60)}a${")".repeat(60)}`, "nests more than 50 groups"],
    ["((a{100}){100}){100}", "needs more than 20000 states"],
    ["(a|b)*a(a|b){15}", "needs more than 2000 states"],
    ["a".repeat(1001), "has 1001 characters, at most 1000"],
  ])("refuse %s", (source, sentence) => {
    expect(() => compilePattern(source, "the schema at #/a")).toThrow(sentence);
    expect(() => compilePattern(source, "the schema at #/a")).toThrow(
      "the schema at #/a: the pattern",
    );
  });

  it.each([
    [
      "date",
      ["2024-02-29", "2000-02-29", "2023-12-31"],
      ["2023-02-29", "1900-02-29", "2023-13-01", "2023-04-31", "23-01-01"],
    ],
    ["time", ["00:00:00Z", "23:59:59.123+05:30"], ["24:00:00Z", "12:00:00", "12:60:00Z"]],
    ["date-time", ["2024-01-01T00:00:00Z"], ["2024-01-01 00:00:00Z", "2024-01-01"]],
    ["duration", ["P1Y2M3DT4H5M6S", "PT1H", "P2W"], ["P", "P1S", "1Y", "PT"]],
    ["uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]],
    ["ipv4", ["0.0.0.0", "255.255.255.255"], ["256.1.1.1", "1.2.3", "01.2.3.4"]],
    [
      "ipv6",
      ["::", "::1", "2001:db8::1", "1:2:3:4:5:6:7:8"],
      ["1:2:3", ":::", "1:2:3:4:5:6:7:8:9", "1::2::3"],
    ],
    ["hostname", ["example.org", "a-b.c"], ["-a.b", "a..b", ""]],
    ["email", ["a.b+c@example.org"], ["a@", "@b", "a b@c.d"]],
    ["uri", ["https://example.org/a?b=c#d", "mailto:a@b.c"], ["example.org", "http://a b"]],
  ])("know the format %s", (name, right, wrong) => {
    const own = compilePattern(formatPatterns.get(name)!, name)!;
    expect(right.filter((text) => !matches(own, text))).toEqual([]);
    expect(wrong.filter((text) => matches(own, text))).toEqual([]);
  });
});
