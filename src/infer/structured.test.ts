import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultBackend } from "../backend/ort/default.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { parseJson } from "../io/json.ts";
import { loadModel } from "../models/folder.ts";
import { constrain, type TokenConstraint } from "./constraint.ts";
import { Decoder } from "./decoder.ts";
import { jsonGrammar, schemaGrammar } from "./grammar/grammar.ts";
import { fitsSchema } from "./grammar/validate.ts";
import { type Vocabulary, vocabularyOf } from "./grammar/vocabulary.ts";
import { generateTexts } from "./text.ts";

const schema = {
  type: "object",
  properties: {
    name: { type: "string", minLength: 1, maxLength: 12 },
    age: { type: "integer", minimum: 0, maximum: 120 },
    mood: { enum: ["calm", "merry", null] },
    born: { type: "string", format: "date" },
    tags: { type: "array", items: { type: "string", pattern: "^[a-z]{1,6}$" }, maxItems: 3 },
    next: { anyOf: [{ type: "null" }, { $ref: "#/$defs/place" }] },
  },
  required: ["name", "age", "mood", "born", "tags", "next"],
  additionalProperties: false,
  $defs: {
    place: {
      type: "object",
      properties: { x: { type: "number", minimum: -1, maximum: 1 } },
      required: ["x"],
    },
  },
};

describe("texts of a model held to a grammar", () => {
  let decoder: Decoder;
  let tokenizer: Tokenizer;
  let vocabulary: Vocabulary;
  beforeAll(async () => {
    const { files } = nodeHost();
    const { model, params } = await loadModel(files, "models/builtin");
    tokenizer = await loadTokenizer(files, "models/builtin");
    vocabulary = vocabularyOf(tokenizer);
    decoder = new Decoder(model, params, await defaultBackend());
  });
  afterAll(() => decoder.release());

  it("fit the schema for fifty seeds at temperature 1.5", async () => {
    const grammar = schemaGrammar(schema, vocabulary);
    const rows = Array.from({ length: 50 }, () => "Here is the record:\n");
    const made = await generateTexts(decoder, tokenizer, rows, {
      temperature: 1.5,
      seed: 3,
      maxNewTokens: 160,
      constraints: rows.map(() => grammar.start()),
    });
    const ends = made.map(({ finishReason }) => finishReason);
    expect(ends).toEqual(rows.map(() => "stop"));
    for (const { text } of made) {
      const value = parseJson(text, "text");
      expect([text, fitsSchema(value, schema)]).toEqual([text, true]);
    }
    expect(new Set(made.map(({ text }) => text)).size).toBeGreaterThan(45);
  });

  it("end by their length where it comes first, and rows without a grammar are free", async () => {
    const grammar = jsonGrammar(vocabulary);
    const [held, free] = await generateTexts(decoder, tokenizer, ["A", "A"], {
      maxNewTokens: 6,
      constraints: [grammar.start(), undefined],
    });
    expect(held!.finishReason).toBe("length");
    expect(held!.text).toMatch(/^\{/);
    const [alone] = await generateTexts(decoder, tokenizer, ["A"], { maxNewTokens: 6 });
    expect(free!.text).toBe(alone!.text);
    await expect(generateTexts(decoder, tokenizer, ["A"], { constraints: [] })).rejects.toThrow(
      "generate: constraints must be one for each of 1 prompts, got 0.",
    );
  });
});

describe("logits under a constraint", () => {
  const fixed = (bits: readonly number[] | undefined, isComplete: boolean): TokenConstraint => ({
    allowed: () => bits,
    accept: () => {},
    isComplete: () => isComplete,
    isFinished: false,
  });
  const logits = Float32Array.of(1, 2, 3, 4);

  it("are those of allowed tokens, and of stop tokens where the text may end", () => {
    const stop = new Set([3]);
    expect([...constrain(logits, fixed([0, 2], false), stop)]).toEqual([
      1,
      -Infinity,
      3,
      -Infinity,
    ]);
    expect([...constrain(logits, fixed([0, 3], false), stop)]).toEqual([
      1,
      -Infinity,
      -Infinity,
      -Infinity,
    ]);
    expect([...constrain(logits, fixed([], true), stop)]).toEqual([
      -Infinity,
      -Infinity,
      -Infinity,
      4,
    ]);
    expect([...constrain(logits, fixed(undefined, false), stop)]).toEqual([1, 2, 3, -Infinity]);
    expect([...logits]).toEqual([1, 2, 3, 4]);
  });

  it("are refused where nothing may come", () => {
    expect(() => constrain(logits, fixed([], false), new Set([3]))).toThrow(
      "constraint: no token may come next",
    );
  });

  it("leave tokens beyond the vocabulary out", () => {
    const constraint: TokenConstraint = {
      ...fixed(undefined, false),
      allowed: () => Uint32Array.of(0b101),
    };
    const padded = new Float32Array(40).fill(1);
    const open = constrain(padded, constraint, new Set());
    expect([...open.entries()].filter(([, logit]) => logit > -Infinity).map(([id]) => id)).toEqual([
      0, 2,
    ]);
  });
});
