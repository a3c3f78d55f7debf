import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FormatError } from "../errors.ts";
import { type JsonValue, parseJson } from "./json.ts";

function refusal(source: string | Uint8Array, options = {}): FormatError {
  try {
    parseJson(source, "f.json", options);
  } catch (error) {
    expect(error).toBeInstanceOf(FormatError);
    return error as FormatError;
  }
  throw new Error(`accepted ${String(source)}`);
}

describe("parseJson", () => {
  it("agrees with JSON.parse on every valid document", () => {
    const spaces = fc.constantFrom(undefined, 1, "\t");
    fc.assert(
      fc.property(fc.jsonValue({ stringUnit: "binary", maxDepth: 6 }), spaces, (value, space) => {
        const text = JSON.stringify(value, null, space);
        const ours = parseJson(text, "f.json");
        expect(JSON.stringify(ours)).toBe(JSON.stringify(JSON.parse(text)));
        expect(parseJson(new TextEncoder().encode(text), "f.json")).toEqual(ours);
      }),
      { seed: 1, numRuns: 1000 },
    );
  });

  it("refuses whatever JSON.parse refuses", () => {
    const pieces = fc.array(
      fc.constantFrom(
        ..."{ } [ ] , : \" \\ 0 1 - + . e E true false null a \" \\u12 \\ud83d \\n \n / 'x'".split(
          " ",
        ),
      ),
      { maxLength: 10 },
    );
    fc.assert(
      fc.property(pieces, (list) => {
        const text = list.join("");
        let valid = true;
        try {
          JSON.parse(text);
        } catch {
          valid = false;
        }
        if (!valid) expect(refusal(text).code).toBe("format");
      }),
      { seed: 2, numRuns: 5000 },
    );
  });

  it("keeps __proto__ and constructor as plain entries", () => {
    const value = parseJson('{"__proto__":{"polluted":1},"constructor":2,"toString":3}', "f.json");
    expect(Object.getPrototypeOf(value)).toBeNull();
    expect(Object.keys(value as object)).toEqual(["__proto__", "constructor", "toString"]);
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
  });

  it("names a key that stands twice, and its byte", () => {
    const error = refusal('{"é":1,"a":{"b":1,"\\u0062":2}}');
    // {"é":1,"a":{"b":1, is 18 characters, of which é takes two bytes.
    expect(error.message).toBe(
      'f.json: invalid JSON at byte 19: key "b" stands twice in one object.',
    );
    expect(error.details).toEqual({ path: "f.json", offset: 19, key: "b" });
    expect(refusal('{"__proto__":1,"__proto__":2}').details["key"]).toBe("__proto__");
  });

  it("stops at the depth cap, not at the stack", () => {
    const nested = (n: number): string => "[".repeat(n) + "]".repeat(n);
    expect(() => parseJson(nested(64), "f.json")).not.toThrow();
    expect(refusal(nested(65)).message).toBe(
      "f.json: invalid JSON at byte 64: nested deeper than 64 levels.",
    );
    expect(refusal('{"a":'.repeat(100_000)).message).toContain("nested deeper than 64 levels");
    expect(refusal("[[1]]", { maxDepth: 1 }).message).toContain("nested deeper than 1 levels");
  });

  it("caps bytes and values", () => {
    expect(refusal("[1,2]", { maxBytes: 4 }).message).toBe(
      "f.json: JSON of 5 bytes is too large, at most 4 are read.",
    );
    expect(refusal("[1,2]", { maxValues: 2 }).message).toBe(
      "f.json: invalid JSON at byte 3: more than 2 values.",
    );
  });

  it("says what is wrong and where", () => {
    const cases: [string, string][] = [
      ["", "byte 0: a value is needed, got the end of the text."],
      ["[1,]", 'byte 3: a value is needed, got "]".'],
      ["{a:1}", 'byte 1: a key in quotes is needed, got "a".'],
      ['{"a" 1}', 'byte 5: ":" is needed, got "1".'],
      ["[1 2]", 'byte 3: "," or "]" is needed, got "2".'],
      ["1 x", 'byte 2: text after the value, got "x".'],
      ["01", "byte 0: a number must not begin with 0."],
      ["-", "byte 1: a digit is needed, got the end of the text."],
      ["1.e5", 'byte 2: a digit is needed, got "e".'],
      ["1e999", "byte 0: 1e999 is too large."],
      ["nul", 'byte 0: a value is needed, got "nul".'],
      ['"a', "byte 0: a string has no closing quote."],
      ['"a\nb"', 'byte 2: a control character in a string must be escaped, got "\\n".'],
      ['"\\x41"', 'byte 1: unknown escape "\\\\x".'],
      ['"\\u12g4"', 'byte 1: "\\u" needs four hexadecimal digits, got "12g4".'],
      ['"\\ud83d"', "byte 1: half of a surrogate pair is escaped alone."],
      ['"\\ud83d\\u0041"', "byte 1: half of a surrogate pair is escaped alone."],
      ['"\\ude00"', "byte 1: half of a surrogate pair is escaped alone."],
      ['"\ud83d"', "byte 1: half of a surrogate pair in a string."],
      ["\ufeff{}", 'byte 0: a value is needed, got "\ufeff".'],
    ];
    for (const [text, sentence] of cases) {
      expect(refusal(text).message).toBe(`f.json: invalid JSON at ${sentence}`);
    }
    expect(refusal(Uint8Array.of(0x22, 0xff, 0x22)).message).toBe(
      "f.json: byte 1 (0xff) is not UTF-8 — save the file as UTF-8 text.",
    );
  });

  it("gives the text of numbers to a caller who asks", () => {
    const seen: string[] = [];
    const number = (text: string): JsonValue => seen.push(text);
    parseJson("[1,1.0,-0,1e3,99999999999999999999]", "f.json", { number });
    expect(seen).toEqual(["1", "1.0", "-0", "1e3", "99999999999999999999"]);
  });

  it("takes the bare word Infinity where a caller says what it stands for", () => {
    const infinity = { it: "is" };
    expect(parseJson("[0, Infinity]", "f.json", { infinity })).toEqual([0, infinity]);
    expect(refusal("[Infinit]", { infinity }).message).toBe(
      'f.json: invalid JSON at byte 1: a value is needed, got "Infinit]".',
    );
    for (const text of ["[-Infinity]", "[NaN]"]) {
      expect(refusal(text, { infinity }).message).toContain("needed, got");
    }
    expect(refusal("[Infinity]").message).toBe(
      'f.json: invalid JSON at byte 1: a value is needed, got "I".',
    );
  });

  it("joins escaped surrogate pairs", () => {
    expect(parseJson('"\\ud83d\\ude00\\u0041\\/"', "f.json")).toBe("😀A/");
  });
});
