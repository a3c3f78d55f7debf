import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import {
  allowedTokens,
  crossing,
  cut,
  isAllowed,
  pieceVocabulary,
  schemaCase,
  textOf,
  walk,
} from "../../../test/support/grammar-cases.ts";
import { loadTokenizer } from "../../data/tokenizer.ts";
import { nodeHost } from "../../host/node.ts";
import { type JsonValue, parseJson } from "../../io/json.ts";
import { Rng } from "../../tensor/rng.ts";
import { type Grammar, jsonGrammar, schemaGrammar } from "./grammar.ts";
import type { JsonTextOptions } from "./json-rules.ts";
import { fitsSchema } from "./validate.ts";
import { Vocabulary, vocabularyOf } from "./vocabulary.ts";

const vocabularies: [string, number, () => Vocabulary][] = [
  ["the builtin model's", 200, () => builtin],
  ["one of pieces and bytes", 500, () => pieceVocabulary()],
  ["one whose tokens cross borders", 500, () => crossing],
];

let builtin: Vocabulary;
beforeAll(async () => {
  builtin = vocabularyOf(await loadTokenizer(nodeHost().files, "models/builtin"));
});

const accepts = (
  schema: JsonValue,
  texts: readonly string[],
  options?: JsonTextOptions,
): boolean[] => {
  const grammar = schemaGrammar(schema, crossing, options);
  return texts.map((text) => grammar.accepts(text));
};

/** Follows tokens, and says where one was not allowed. */
function follow(grammar: Grammar, vocabulary: Vocabulary, tokens: readonly number[]): string {
  const constraint = grammar.start();
  for (const [i, token] of tokens.entries()) {
    if (!isAllowed(constraint, token)) {
      return `${JSON.stringify(textOf(vocabulary, tokens.slice(0, i)))} is not followed by ${JSON.stringify([...vocabulary.symbolsOf(token)!])}`;
    }
    constraint.accept(token);
  }
  return constraint.isComplete() ? "complete" : "open";
}

describe("a grammar of a JSON Schema", () => {
  it.each(vocabularies)("writes only what fits, over %s vocabulary", (_, runs, vocabularyHere) => {
    const vocabulary = vocabularyHere();
    let whole = 0;
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 30 }), (seed) => {
        const rng = new Rng(seed);
        const { schema } = schemaCase(rng);
        const grammar = schemaGrammar(schema, vocabulary, { maxStringLength: 20, maxDepth: 4 });
        const tokens = walk(grammar.start(), vocabulary, rng);
        if (!tokens) return;
        whole++;
        const text = textOf(vocabulary, tokens);
        const value = parseJson(text, "text");
        if (!fitsSchema(value, schema))
          throw new Error(`${text} does not fit ${JSON.stringify(schema)}`);
        expect(grammar.accepts(text)).toBe(true);
      }),
      { seed: 7, numRuns: runs },
    );
    expect(whole).toBeGreaterThan(runs * 0.8);
  });

  it.each(vocabularies)(
    "takes every fitting value token by token, over %s vocabulary",
    (_, runs, vocabularyHere) => {
      const vocabulary = vocabularyHere();
      fc.assert(
        fc.property(fc.integer({ min: 0, max: 2 ** 30 }), (seed) => {
          const rng = new Rng(seed);
          const { schema, value } = schemaCase(rng);
          expect(fitsSchema(value, schema)).toBe(true);
          for (const whitespace of ["none", "single"] as const) {
            const grammar = schemaGrammar(schema, vocabulary, { whitespace });
            const bytes = new TextEncoder().encode(JSON.stringify(value));
            expect(follow(grammar, vocabulary, cut(bytes, vocabulary, rng))).toBe("complete");
          }
        }),
        { seed: 3, numRuns: runs },
      );
    },
  );

  it("allows exactly the tokens that some text goes on with", () => {
    const schema = {
      type: "array",
      items: { type: "object", properties: { a: { type: "integer" } }, required: ["a"] },
    };
    const constraint = schemaGrammar(schema, crossing, { whitespace: "none" }).start();
    const texts = (): string[] =>
      allowedTokens(constraint)
        .map((token) => textOf(crossing, [token]))
        .sort();
    expect(texts()).toEqual(["[", "[]", '[{"']);
    for (const text of ["[", '{"a":']) {
      constraint.accept(
        allowedTokens(constraint).find((token) => textOf(crossing, [token]) === text)!,
      );
    }
    expect(texts()).toEqual([..."-0123456789", "-1", "1}", "12", "123"].sort());
  });

  it("goes on the same after it was cloned, and neither moves the other", () => {
    const grammar = schemaGrammar({ type: "string", maxLength: 5 }, crossing);
    const constraint = grammar.start();
    constraint.accept(0x22);
    const other = constraint.clone!();
    constraint.accept(0x22);
    expect([constraint.isFinished, other.isFinished]).toEqual([true, false]);
    expect(isAllowed(other, 0x61)).toBe(true);
    expect(() => constraint.accept(0x61)).toThrow("constraint: token 97 may not come here");
  });

  it("holds to recursion, to its depth, and ends where only that is left", () => {
    const schema = {
      $ref: "#/$defs/node",
      $defs: {
        node: {
          type: "object",
          properties: {
            value: { type: "boolean" },
            next: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] },
          },
          required: ["value", "next"],
        },
      },
    };
    const nested = (depth: number): string =>
      depth === 0 ? "null" : `{"value":true,"next":${nested(depth - 1)}}`;
    expect(accepts(schema, [nested(1), nested(30), nested(0), '{"value":true}'])).toEqual([
      true,
      true,
      false,
      false,
    ]);
    // An array inside each other may be as deep as the limit; deeper ones are not begun.
    const list = {
      $ref: "#/$defs/list",
      $defs: { list: { type: "array", items: { $ref: "#/$defs/list" } } },
    };
    const arrays = (depth: number): string => "[".repeat(depth) + "]".repeat(depth);
    expect(accepts(list, [arrays(4), arrays(5), arrays(6)], { maxDepth: 4 })).toEqual([
      true,
      true,
      false,
    ]);
    const rng = new Rng(1);
    for (let i = 0; i < 50; i++) {
      const grammar = schemaGrammar(list, crossing, { maxDepth: 3 });
      const tokens = walk(grammar.start(), crossing, rng);
      if (tokens) expect(fitsSchema(parseJson(textOf(crossing, tokens), "text"), list)).toBe(true);
    }
  });

  it("keeps white space within its policy", () => {
    const schema = {
      type: "object",
      properties: { a: { type: "array", items: { type: "integer" } }, b: { type: "null" } },
      required: ["a"],
    };
    const [tight, spaced, wide] = [
      '{"a":[1,2],"b":null}',
      '{"a": [1, 2], "b": null}',
      '{\n  "a" : [ 1 ,2 ]\n}',
    ];
    expect(accepts(schema, [tight, spaced, wide], { whitespace: "none" })).toEqual([
      true,
      false,
      false,
    ]);
    expect(accepts(schema, [tight, spaced, wide])).toEqual([true, true, false]);
    expect(accepts(schema, [tight, spaced, wide], { whitespace: "flexible" })).toEqual([
      true,
      true,
      true,
    ]);
    const blank = `{${" ".repeat(9)}"a":[]}`;
    expect(accepts(schema, [blank], { whitespace: "flexible", maxWhitespace: 8 })).toEqual([false]);
  });

  it("keeps properties in order, and others after them without repeats", () => {
    const schema = {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
      required: ["b"],
      additionalProperties: { type: "string" },
    };
    expect(
      accepts(schema, [
        '{"b":1}',
        '{"a":1,"b":1}',
        '{"b":1,"a":1}',
        '{"b":1,"a":"x"}',
        '{"b":1,"c":"x"}',
        '{"b":1,"c":"x","c":"y"}',
        '{"b":1,"c":"x","cc":"y"}',
        '{"a":1}',
      ]),
    ).toEqual([true, true, false, false, true, false, true, false]);
  });

  it("never allows a token that would repeat a key", () => {
    const grammar = jsonGrammar(crossing);
    const constraint = grammar.start();
    const say = (text: string): void => {
      for (const byte of new TextEncoder().encode(text)) constraint.accept(byte);
    };
    say('{"a":1,');
    const named = (text: string): boolean =>
      allowedTokens(constraint).some(
        (token) => String.fromCharCode(...crossing.symbolsOf(token)!) === text,
      );
    expect([named('"a'), named('"')]).toEqual([true, true]);
    say('"a');
    expect([named('"'), named('":'), named("b"), named('a"')]).toEqual([false, false, true, true]);
    say('b":{');
    expect(named('"a')).toBe(true);
    say('"a');
    expect(named('":')).toBe(true);
  });

  it("writes any JSON object, and nothing else", () => {
    const grammar = jsonGrammar(crossing);
    for (const text of ["{}", '{"a":[1,-2.5e+10,"x\\n",null,{"b":{}}],"":true}']) {
      expect(grammar.accepts(text)).toBe(true);
    }
    for (const text of ["[]", "1", '{"a":}', '{"a":01}', "{a:1}", '{"a":1', '{"a":"\t"}']) {
      expect(grammar.accepts(text)).toBe(false);
    }
    const rng = new Rng(5);
    let whole = 0;
    for (let i = 0; i < 100; i++) {
      const tokens = walk(
        jsonGrammar(crossing, { maxDepth: 3, maxStringLength: 6 }).start(),
        crossing,
        rng,
      );
      if (!tokens) continue;
      whole++;
      parseJson(textOf(crossing, tokens), "text");
    }
    expect(whole).toBeGreaterThan(50);
  });
});

describe("a mask", () => {
  it("comes from the same grammar where the same schema is asked for again", () => {
    const schema = (type: string): JsonValue => ({ type });
    const first = schemaGrammar(schema("null"), crossing);
    expect(schemaGrammar(schema("null"), crossing)).toBe(first);
    expect(schemaGrammar(schema("null"), crossing, { whitespace: "none" })).not.toBe(first);
    for (let i = 0; i < 8; i++) schemaGrammar({ const: i }, crossing);
    expect(schemaGrammar(schema("null"), crossing)).not.toBe(first);
  });

  it("is quick for fifty thousand tokens", () => {
    // Words of letters, as vocabularies have, some with a space, a quotation mark or digits.
    const rng = new Rng(2);
    const letters = [..."etaoinshrdlucmfwypvbgkjqxz"];
    const pieces: Uint8Array[] = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
    const encoder = new TextEncoder();
    while (pieces.length < 50_000) {
      const length = 1 + Math.floor(rng.uniform() * 8);
      let word = "";
      for (let i = 0; i < length; i++) word += letters[Math.floor(rng.uniform() ** 2 * 26)]!;
      const kind = pieces.length % 20;
      const ends = ['"', '":', '",', '"}', '", "'];
      if (kind < 10) word = ` ${word}`;
      if (kind === 10) word += ends[pieces.length % ends.length]!;
      pieces.push(encoder.encode(word));
    }
    const vocabulary = new Vocabulary(pieces);
    const schema = {
      type: "object",
      properties: {
        name: { type: "string", maxLength: 40 },
        tags: { type: "array", items: { type: "string" } },
        age: { type: "integer", minimum: 0, maximum: 150 },
      },
      required: ["name", "tags", "age"],
    };
    const grammar = schemaGrammar(schema, vocabulary);
    const text =
      '{"name": "some longer name of a person", "tags": ["one", "two words", "three"], "age": 42}';
    const bytes = encoder.encode(text);
    const constraints = [1, 2, 3].map(() => grammar.start());
    let [time, count] = [0, 0];
    for (const constraint of constraints) {
      for (const token of cut(bytes, vocabulary, rng)) {
        const start = performance.now();
        const mask = constraint.allowed() as Uint32Array;
        time += performance.now() - start;
        count++;
        expect((mask[token >>> 5]! >>> (token & 31)) & 1).toBe(1);
        constraint.accept(token);
      }
    }
    // A tenth of this on an idle machine; the bound only says that no mask reads the whole vocabulary each time.
    expect(time / count).toBeLessThan(5);
  });
});
