/** Vocabularies, random JSON Schemas with values that fit them, and random walks through constraints. */
import { Tokenizer } from "../../src/data/tokenizer.ts";
import type { TokenConstraint } from "../../src/infer/constraint.ts";
import { Vocabulary, vocabularyOf } from "../../src/infer/grammar/vocabulary.ts";
import type { JsonObject, JsonValue } from "../../src/io/json.ts";
import type { Rng } from "../../src/tensor/rng.ts";

const encoder = new TextEncoder();

/** All bytes, and tokens that cross borders of JSON, of characters and of escapes. */
export const crossing: Vocabulary = new Vocabulary([
  ...Array.from({ length: 256 }, (_, byte) => [byte]),
  ...[
    '"},{"',
    '":',
    '": ',
    '","',
    '", "',
    '"],"',
    '"}',
    "}}",
    "]]",
    "[[",
    '[{"',
    '{"a":',
    '{"a": 1',
    '"a',
    'a"',
    "ab",
    "abc",
    "\\u00",
    "\\u",
    'a\\"b',
    '\\\\"',
    "12",
    "123",
    "0.",
    ".5",
    "5,",
    "1}",
    "1]",
    "e1",
    "true",
    "true,",
    "null}",
    "false]",
    "  ",
    "\n  ",
    "ä",
    "漢字",
    "😀",
    "b,",
    "-1",
    "2024-",
    "-01",
    "T1",
    "{}",
    "[]",
    "[],",
    ', "',
  ].map((text) => encoder.encode(text)),
  // Halves of characters, and one that ends a character and a string.
  encoder.encode("漢").slice(0, 2),
  encoder.encode('漢"').slice(2),
  encoder.encode("😀").slice(1),
  // Two tokens with the same bytes.
  encoder.encode("ab"),
]);

/** A tokenizer as SentencePiece models have: a mark for spaces, bytes for what has no piece. */
export function pieceTokenizer(): Tokenizer {
  const vocab: Record<string, number> = { "<unk>": 0, "<s>": 1, "</s>": 2 };
  const add = (piece: string): void => {
    vocab[piece] ??= Object.keys(vocab).length;
  };
  for (let byte = 0; byte < 256; byte++) {
    add(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  }
  for (let code = 0x21; code < 0x7f; code++) add(String.fromCharCode(code));
  for (const piece of [
    "\u2581",
    "\u2581\u2581",
    "\u2581a",
    '\u2581"',
    '":',
    '":\u2581',
    '"},{"',
    "é",
  ])
    add(piece);
  return new Tokenizer(
    {
      tokenizer: JSON.stringify({
        added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({
          id,
          content,
          special: true,
        })),
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: {
          type: "Sequence",
          decoders: [
            { type: "Replace", pattern: { String: "\u2581" }, content: " " },
            { type: "ByteFallback" },
            { type: "Fuse" },
            { type: "Strip", content: " ", start: 1, stop: 0 },
          ],
        },
        model: { type: "BPE", vocab, merges: [], byte_fallback: true, unk_token: "<unk>" },
      }),
      config: JSON.stringify({ eos_token: "</s>", bos_token: "<s>" }),
    },
    "pieces",
  );
}

export function pieceVocabulary(): Vocabulary {
  return vocabularyOf(pieceTokenizer());
}

/** A whole number from 0 below `limit`. */
export const below = (rng: Rng, limit: number): number =>
  Math.min(limit - 1, Math.floor(rng.uniform() * limit));

export function pick<T>(rng: Rng, items: readonly T[]): T {
  return items[below(rng, items.length)]!;
}

export function isAllowed(constraint: TokenConstraint, token: number): boolean {
  const mask = constraint.allowed() as Uint32Array;
  return ((mask[token >>> 5]! >>> (token & 31)) & 1) === 1;
}

export function allowedTokens(constraint: TokenConstraint): number[] {
  const mask = constraint.allowed() as Uint32Array;
  const found: number[] = [];
  mask.forEach((word, i) => {
    for (let bit = 0; bit < 32; bit++) if (((word >>> bit) & 1) === 1) found.push(i * 32 + bit);
  });
  return found;
}

export function textOf(vocabulary: Vocabulary, tokens: readonly number[]): string {
  const bytes = tokens.flatMap((token) => [...vocabulary.symbolsOf(token)!]);
  return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
}

/** Bytes that end things soon are taken more often, so that walks come to an end. */
const closing = new Set(['"', "}", "]", '"}'].map((text) => text));

/**
 * Any of the allowed tokens, again and again.
 * @returns tokens, or `undefined` when the walk is longer than `most`
 * @throws Error where nothing is allowed and the text is not complete.
 */
export function walk(
  constraint: TokenConstraint,
  vocabulary: Vocabulary,
  rng: Rng,
  most = 400,
): number[] | undefined {
  const made: number[] = [];
  while (!constraint.isFinished) {
    if (made.length >= most) return undefined;
    const allowed = allowedTokens(constraint);
    if (constraint.isComplete() && (allowed.length === 0 || rng.uniform() < 0.5)) return made;
    if (allowed.length === 0) {
      throw new Error(`nothing may follow ${JSON.stringify(textOf(vocabulary, made))}`);
    }
    const ends = allowed.filter((token) =>
      closing.has(String.fromCharCode(...vocabulary.symbolsOf(token)!)),
    );
    const token = ends.length > 0 && rng.uniform() < 0.3 ? pick(rng, ends) : pick(rng, allowed);
    constraint.accept(token);
    made.push(token);
  }
  return made;
}

/** Cuts bytes into tokens at random; any way is one that a model might take. */
export function cut(bytes: Uint8Array, vocabulary: Vocabulary, rng: Rng): number[] {
  const { symbols, end, first, tokens, level } = vocabulary;
  const made: number[] = [];
  for (let at = 0; at < bytes.length; ) {
    const found: (readonly [token: number, length: number])[] = [];
    for (let node = 1, depth = 0; node < symbols.length; ) {
      if (level[node]! <= depth) break;
      if (symbols[node] !== bytes[at + depth]) {
        node = end[node]!;
        continue;
      }
      depth++;
      for (let i = first[node]!; i < first[node + 1]!; i++) found.push([tokens[i]!, depth]);
      if (end[node]! === node + 1) break;
      node++;
    }
    const [token, length] = pick(rng, found);
    made.push(token);
    at += length;
  }
  return made;
}

export interface Case {
  readonly schema: JsonObject;
  readonly value: JsonValue;
}

const characters = [...'abcXYZ019 _-"\\/\n\t\u0001äé漢😀,:{}[]'];
const names = ["a", "b", "name", "äö", 'q"t', "x y", "_1", "long_property_name", "", "漢"];

function text(rng: Rng, length: number): string {
  return Array.from({ length }, () => pick(rng, characters)).join("");
}

function numberCase(rng: Rng): Case {
  const isInteger = rng.uniform() < 0.5;
  const scale = pick(rng, [1, 10, 1000, 1e6]);
  const draw = (): number => {
    const x = (rng.uniform() - 0.5) * 2 * scale;
    return isInteger ? Math.round(x) : Number(x.toFixed(pick(rng, [0, 1, 2, 4]))) + 0;
  };
  const value = draw() + 0;
  const schema: Record<string, JsonValue> = { type: isInteger ? "integer" : "number" };
  const other = draw();
  if (rng.uniform() < 0.5) {
    if (other < value && rng.uniform() < 0.5) schema["exclusiveMinimum"] = other;
    else schema["minimum"] = Math.min(value, other);
  }
  const third = draw();
  if (rng.uniform() < 0.5) {
    if (third > value && rng.uniform() < 0.5) schema["exclusiveMaximum"] = third;
    else schema["maximum"] = Math.max(value, third);
  }
  if (rng.uniform() < 0.2 && isInteger) {
    const step = 1 + below(rng, 7);
    return {
      schema: { ...schema, multipleOf: step, minimum: -1e9, maximum: 1e9 },
      value: value * step + 0,
    };
  }
  return { schema, value: Object.is(value, -0) ? 0 : value };
}

const patterns: readonly (readonly [pattern: string, (rng: Rng) => string])[] = [
  [
    "^[a-z]+$",
    (rng) => Array.from({ length: 1 + below(rng, 5) }, () => pick(rng, [..."abz"])).join(""),
  ],
  ["^(foo|ba+r)?$", (rng) => pick(rng, ["", "foo", "bar", "baaar"])],
  ["\\d{2,3}", (rng) => `x${100 + below(rng, 900)}y`],
  ["^\\w+@\\w+\\.com$", (rng) => `${pick(rng, ["a", "b_1"])}@${pick(rng, ["x", "yy"])}.com`],
  ['^[^"a]*$', (rng) => pick(rng, ["", "b\n", "\\", "漢😀"])],
  ["^(ab)*$", (rng) => "ab".repeat(below(rng, 4))],
];

function stringCase(rng: Rng): Case {
  const kind = rng.uniform();
  if (kind < 0.3) {
    const [pattern, make] = pick(rng, patterns);
    const value = make(rng);
    const length = [...value].length;
    const limits = rng.uniform() < 0.3 ? { minLength: below(rng, length + 1) } : {};
    const most = rng.uniform() < 0.3 ? { maxLength: length + below(rng, 3) } : {};
    return { schema: { type: "string", pattern, ...limits, ...most }, value };
  }
  if (kind < 0.45) {
    return pick(rng, [
      { schema: { type: "string", format: "date" }, value: "2024-02-29" },
      { schema: { type: "string", format: "date-time" }, value: "1999-12-31T23:59:59.5Z" },
      { schema: { type: "string", format: "time" }, value: "12:00:00+02:00" },
      { schema: { type: "string", format: "uuid" }, value: "123e4567-e89b-12d3-a456-426614174000" },
      { schema: { type: "string", format: "ipv4" }, value: "192.168.0.255" },
    ]);
  }
  const length = below(rng, 8);
  const value = text(rng, length);
  return {
    schema: {
      type: "string",
      ...(rng.uniform() < 0.4 && { minLength: below(rng, length + 1) }),
      maxLength: length + below(rng, 12),
    },
    value,
  };
}

function objectCase(rng: Rng, depth: number): Case {
  const chosen = names.filter(() => rng.uniform() < 0.3);
  const properties: Record<string, JsonValue> = {};
  const required: string[] = [];
  const value: Record<string, JsonValue> = {};
  for (const name of chosen) {
    const own = schemaCase(rng, depth - 1);
    properties[name] = own.schema;
    const isRequired = rng.uniform() < 0.5;
    if (isRequired) required.push(name);
    if (isRequired || rng.uniform() < 0.5) value[name] = own.value;
  }
  const extra = rng.uniform() < 0.3 ? schemaCase(rng, depth - 1) : undefined;
  if (extra && rng.uniform() < 0.7) value[`other ${below(rng, 10)}`] = extra.value;
  return {
    schema: {
      type: "object",
      properties,
      required,
      additionalProperties: extra ? extra.schema : false,
    },
    value,
  };
}

function arrayCase(rng: Rng, depth: number): Case {
  const item = schemaCase(rng, depth - 1);
  const count = below(rng, 4);
  return {
    schema: {
      type: "array",
      items: item.schema,
      ...(rng.uniform() < 0.4 && { minItems: below(rng, count + 1) }),
      maxItems: count + below(rng, 3),
    },
    value: Array.from({ length: count }, () => item.value),
  };
}

/** A schema, and a value that fits it. */
export function schemaCase(rng: Rng, depth = 3): Case {
  const kinds = depth > 0 ? 9 : 5;
  switch (below(rng, kinds)) {
    case 0:
      return numberCase(rng);
    case 1:
      return stringCase(rng);
    case 2:
      return { schema: { type: "boolean" }, value: rng.uniform() < 0.5 };
    case 3: {
      const choices = ["red", "green", 'a"b', 1, 12, -3.5, null, true, "äé"].filter(
        () => rng.uniform() < 0.5,
      );
      const value = pick(rng, ["red", "re", 1, null]);
      return { schema: { enum: [...new Set([...choices, value])] }, value };
    }
    case 4: {
      const own = pick(rng, [numberCase, stringCase])(rng);
      const type = own.schema["type"]!;
      const isNull = rng.uniform() < 0.5;
      return { schema: { ...own.schema, type: [type, "null"] }, value: isNull ? null : own.value };
    }
    case 5: {
      const [a, b] = [schemaCase(rng, depth - 1), schemaCase(rng, depth - 1)];
      return { schema: { anyOf: [a.schema, b.schema] }, value: pick(rng, [a, b]).value };
    }
    case 6:
      return arrayCase(rng, depth);
    default:
      return objectCase(rng, depth);
  }
}
