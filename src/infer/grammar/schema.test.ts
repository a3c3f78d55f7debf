import { describe, expect, it } from "vitest";
import { crossing } from "../../../test/support/grammar-cases.ts";
import type { JsonValue } from "../../io/json.ts";
import { schemaGrammar } from "./grammar.ts";
import type { JsonTextOptions } from "./json-rules.ts";
import { fitsSchema } from "./validate.ts";

const taken = (
  schema: JsonValue,
  values: readonly JsonValue[],
  options?: JsonTextOptions,
): boolean[] => {
  const grammar = schemaGrammar(schema, crossing, options);
  return values.map((value) => grammar.accepts(JSON.stringify(value)));
};

const refusal = (schema: JsonValue, options?: JsonTextOptions): string => {
  try {
    schemaGrammar(schema, crossing, options);
  } catch (error) {
    return (error as Error).message;
  }
  return "taken";
};

describe("keywords of JSON Schema", () => {
  it.each<[string, JsonValue, JsonValue[], JsonValue[]]>([
    ["true", true, [1, "a", null, [], {}], []],
    ["nothing", {}, [1, "a", null, [[1]], { a: { b: [] } }], []],
    ["a list of types", { type: ["string", "null"] }, ["a", null], [1]],
    ["nullable", { type: "integer", nullable: true }, [1, null], ["a"]],
    ["integers beside numbers", { type: ["integer", "number"] }, [1, 1.5], ["1"]],
    ["const", { const: { a: [1, "x"] } }, [{ a: [1, "x"] }], [{ a: [1] }]],
    [
      "enum held to the rest",
      { enum: ["a", "bb", 1, null], type: "string", maxLength: 1 },
      ["a"],
      ["bb", 1, null],
    ],
    ["enum and const", { enum: [1, 2], const: 2 }, [2], [1]],
    ["types by keywords", { minLength: 2 }, ["ab"], ["a", 1]],
    ["objects without properties", { type: "object" }, [{}, { a: 1, b: [] }], [[]]],
    ["closed objects", { type: "object", additionalProperties: false }, [{}], [{ a: 1 }]],
    [
      "properties alone",
      { properties: { a: { type: "null" } } },
      [{}, { a: null }],
      [{ a: 1 }, { b: 1 }],
    ],
    [
      "properties and any others",
      { properties: { a: { type: "null" } }, additionalProperties: true },
      [{ b: 1 }, { a: null, b: 1 }],
      [{ a: 1 }],
    ],
    [
      "required that no property names",
      { type: "object", required: ["x"], properties: {} },
      [{ x: 1 }],
      [{}],
    ],
    [
      "an optional property that nothing fits",
      { properties: { a: false, b: true } },
      [{ b: 1 }, {}],
      [{ a: 1 }],
    ],
    [
      "counts of entries",
      {
        type: "object",
        additionalProperties: { type: "integer" },
        minProperties: 1,
        maxProperties: 2,
      },
      [{ a: 1 }, { a: 1, b: 2 }],
      [{}, { a: 1, b: 2, c: 3 }],
    ],
    [
      "tuples",
      { type: "array", prefixItems: [{ type: "integer" }, { type: "string" }], items: false },
      [[], [1], [1, "a"]],
      [["a"], [1, "a", 1]],
    ],
    [
      "tuples with more",
      { prefixItems: [{ type: "integer" }], items: { type: "null" }, minItems: 2 },
      [
        [1, null],
        [1, null, null],
      ],
      [[1], [1, 1]],
    ],
    [
      "tuples of old drafts",
      { items: [{ type: "integer" }], additionalItems: false, type: "array" },
      [[1]],
      [[1, 1]],
    ],
    [
      "counts of items",
      { type: "array", items: { type: "null" }, minItems: 2, maxItems: 3 },
      [
        [null, null],
        [null, null, null],
      ],
      [[null], [null, null, null, null]],
    ],
    ["no items", { type: "array", maxItems: 0 }, [[]], [[1]]],
    ["oneOf as anyOf", { oneOf: [{ type: "integer" }, { type: "string" }] }, [1, "a"], [null]],
    [
      "anyOf with neighbours",
      { type: "string", anyOf: [{ maxLength: 1 }, { pattern: "^b" }] },
      ["a", "bcd"],
      ["abc", 1],
    ],
    [
      "anyOf of what is required",
      {
        type: "object",
        properties: { a: true, b: true },
        anyOf: [{ required: ["a"] }, { required: ["b"] }],
      },
      [{ a: 1 }, { b: 1 }, { a: 1, b: 2 }],
      [{}],
    ],
    ["a branch that nothing fits", { anyOf: [false, { type: "null" }] }, [null], [1]],
    [
      "allOf",
      {
        allOf: [
          { properties: { a: { type: "integer" } }, required: ["a"] },
          { properties: { a: { minimum: 3 }, b: true } },
        ],
      },
      [{ a: 3 }, { a: 4, b: 1 }],
      [{ a: 2 }, {}],
    ],
    [
      "allOf with a closed part",
      {
        allOf: [
          { properties: { a: true }, additionalProperties: false },
          { properties: { b: true } },
        ],
      },
      [{ a: 1 }, {}],
      [{ b: 1 }],
    ],
    [
      "two patterns",
      { allOf: [{ pattern: "a" }, { pattern: "b" }], type: "string" },
      ["ab", "b-a"],
      ["a", "b"],
    ],
    [
      "$ref with neighbours",
      { $ref: "#/$defs/n", maximum: 5, $defs: { n: { type: "integer", minimum: 3 } } },
      [3, 5],
      [2, 6],
    ],
    [
      "$ref under definitions, with escapes",
      { $ref: "#/definitions/a~1b%20c", definitions: { "a/b c": { type: "null" } } },
      [null],
      [1],
    ],
    [
      "chains of $ref",
      { $ref: "#/$defs/a", $defs: { a: { $ref: "#/$defs/b" }, b: { type: "null" } } },
      [null],
      [1],
    ],
    [
      "recursion at the root",
      { type: "object", properties: { c: { type: "array", items: { $ref: "#" } } } },
      [{ c: [{ c: [] }, {}] }],
      [{ c: [1] }],
    ],
    [
      "lengths in characters",
      { type: "string", minLength: 2, maxLength: 2 },
      ["😀é", 'a"'],
      ["😀", "abc"],
    ],
    [
      "lengths with a pattern of even ones",
      { type: "string", pattern: "^(ab)*$", minLength: 3, maxLength: 5 },
      ["abab"],
      ["ab", "ababab"],
    ],
    [
      "a pattern over escapes",
      { type: "string", pattern: '^["\\\\\\n]+$' },
      ['"', "\\\n"],
      ["n", ""],
    ],
    [
      "open bounds",
      { type: "number", exclusiveMinimum: 0, exclusiveMaximum: 1 },
      [0.5, 0.001],
      [0, 1],
    ],
    [
      "annotations",
      { title: "t", description: "d", default: 3, examples: [1], $comment: "c", type: "integer" },
      [1],
      ["a"],
    ],
  ])("hold for %s", (_, schema, right, wrong) => {
    expect(taken(schema, right)).toEqual(right.map(() => true));
    expect(taken(schema, wrong)).toEqual(wrong.map(() => false));
  });

  it("leave strings an end where the schema names none", () => {
    const text = "x".repeat(11);
    expect(taken({ type: "string" }, [text, text.slice(1)], { maxStringLength: 10 })).toEqual([
      false,
      true,
    ]);
    expect(taken({ type: "string", minLength: 11 }, [text], { maxStringLength: 10 })).toEqual([
      true,
    ]);
  });

  it("take every spelling of a character, save halves of pairs", () => {
    const grammar = schemaGrammar({ type: "string", maxLength: 1 }, crossing);
    for (const text of ['"\\u0041"', '"\\u00E9"', '"\\/"', '"\\ud83d\\ude00"', '"é"', '"😀"']) {
      expect([text, grammar.accepts(text)]).toEqual([text, true]);
    }
    for (const text of ['"\\ud83d"', '"\\ude00"', '"\\ud83dx"', '"\\x"', '"\n"', '"ab"']) {
      expect([text, grammar.accepts(text)]).toEqual([text, false]);
    }
  });
});

describe("a schema that cannot be held to", () => {
  const deep = (levels: number): JsonValue =>
    levels === 0 ? {} : { properties: { a: deep(levels - 1) } };
  it.each<[string, JsonValue, string]>([
    [
      "an unknown keyword",
      { type: "object", properties: { a: { minimun: 3 } } },
      'json schema: the schema at #/properties/a has "minimun", which is not understood — leave it out.',
    ],
    [
      "uniqueItems",
      { properties: { "a/b": { uniqueItems: true } } },
      'the schema at #/properties/a~1b has "uniqueItems", which cannot be held to while the text is written',
    ],
    ["not", { not: {} }, 'has "not", which cannot be held to'],
    [
      "an unknown format",
      { type: "string", format: "colour" },
      'has "format" "colour"; held to are date, time',
    ],
    [
      "a type that is none",
      { type: "text" },
      "the schema at #/type must be one or some of object, array",
    ],
    [
      "a wrong bound",
      { maxLength: -1 },
      "the schema at #/maxLength must be a whole number from 0, got -1.",
    ],
    ["a wrong step", { multipleOf: 0 }, "the schema at #/multipleOf must be above 0, got 0."],
    [
      "no schema",
      { properties: { a: 3 } },
      "the schema at #/properties/a must be an object, true or false, got 3.",
    ],
    ["an empty enum", { enum: [] }, "the schema at #/enum must be a list of values"],
    [
      "a $ref out of it",
      { $ref: "http://a/b" },
      'has the $ref "http://a/b", which points out of the schema',
    ],
    [
      "a $ref to nothing",
      { properties: { a: { $ref: "#/$defs/x" } } },
      'the schema at #/properties/a has the $ref "#/$defs/x", which points at nothing.',
    ],
    ["a $ref to itself", { $ref: "#" }, "no value fits it"],
    [
      "a $ref to itself by anyOf",
      { anyOf: [{ $ref: "#" }, { type: "null" }] },
      "a $ref comes back to itself without anything between",
    ],
    ["a $ref to itself by allOf", { allOf: [{ $ref: "#" }] }, "comes back to itself through allOf"],
    [
      "what never ends",
      { type: "object", properties: { a: { $ref: "#" } }, required: ["a"] },
      "no value fits it, or none that ends",
    ],
    ["false", false, "no value fits it, or none that ends: the schema at # is false."],
    [
      "bounds that leave nothing",
      { type: "integer", minimum: 5, maximum: 4 },
      "the schema at # asks for a number that its bounds leave no room for.",
    ],
    [
      "lengths that leave nothing",
      { type: "string", minLength: 5, maxLength: 4 },
      "asks for a string that its lengths and patterns leave no room for.",
    ],
    [
      "an enum that leaves nothing",
      { enum: ["a"], type: "integer" },
      "lists values of which none fits the rest of it.",
    ],
    [
      "items that leave nothing",
      { type: "array", minItems: 3, maxItems: 2 },
      "asks for more items than it takes.",
    ],
    [
      "a required property that is not taken",
      { required: ["a"], additionalProperties: false },
      'requires "a", which it does not take.',
    ],
    [
      "a pattern that is none",
      { type: "string", pattern: "(?=a)" },
      "the schema at #: the pattern",
    ],
    ["anyOf beside oneOf", { anyOf: [true], oneOf: [true] }, "has anyOf and oneOf together"],
    ["depth", deep(40), "is more than 64 levels deep"],
    [
      "many properties",
      { properties: Object.fromEntries(Array.from({ length: 5001 }, (_, i) => [`p${i}`, true])) },
      "has 5001 properties, at most 5000",
    ],
    [
      "many choices",
      { enum: Array.from({ length: 5001 }, (_, i) => i) },
      "lists 5001 values, at most 5000",
    ],
    ["long choices", { enum: ["a".repeat(600_000)] }, "lists values of 6000"],
    [
      "many values",
      { examples: Array.from({ length: 60_000 }, () => 1) },
      "has more than 50000 values",
    ],
  ])("is refused for %s", (_, schema, sentence) => {
    expect(refusal(schema)).toContain(sentence);
  });

  it("is noted instead where that is asked for", () => {
    const schema = {
      type: "array",
      uniqueItems: true,
      items: { type: "string", format: "colour" },
    };
    const grammar = schemaGrammar(schema, crossing, { lenient: true });
    expect(grammar.unchecked).toEqual(["#/uniqueItems", "#/items/format"]);
    expect(grammar.accepts('["a","a"]')).toBe(true);
    expect(fitsSchema(["a", "a"], schema)).toBe(false);
  });

  it("takes bounded time and memory for hostile schemas", () => {
    const doubling: Record<string, JsonValue> = { d0: { type: "null" } };
    for (let i = 1; i < 60; i++) {
      const ref = { $ref: `#/$defs/d${i - 1}` };
      doubling[`d${i}`] = { allOf: [ref, ref] };
    }
    expect(refusal({ $ref: "#/$defs/d59", $defs: doubling })).toContain("merges of $ref and allOf");
    // Two ways at every level: 2^30 ways to read one text.
    const ways = {
      type: "object",
      properties: { a: { $ref: "#/$defs/w" } },
      additionalProperties: false,
    };
    const ambiguous = { $ref: "#/$defs/w", $defs: { w: { anyOf: [ways, ways] } } };
    const grammar = schemaGrammar(ambiguous, crossing);
    expect(grammar.accepts(`${'{"a":'.repeat(28)}{}${"}".repeat(28)}`)).toBe(true);
  });

  it.each([
    [{ whitespace: "wide" as never }, "json schema: whitespace must be none, single or flexible"],
    [{ maxWhitespace: 5000 }, "maxWhitespace must be a whole number from 1 to 1024, got 5000."],
    [{ maxStringLength: 0 }, "maxStringLength must be a whole number from 1 to 1000000, got 0."],
    [{ maxDepth: 65 }, "maxDepth must be a whole number from 1 to 64, got 65."],
  ])("is refused with the settings %o", (options, sentence) => {
    expect(refusal(true, options)).toContain(sentence);
  });
});
