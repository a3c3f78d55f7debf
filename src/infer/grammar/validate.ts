/** Whether a value is as a JSON Schema says: a walk over both, apart from what writes such values. */
import { isJsonObject, type JsonObject, type JsonValue } from "../../io/json.ts";
import { formatPatterns } from "./formats.ts";
import { type CharacterDfa, compilePattern, matches } from "./regex.ts";

const maxDepth = 200;

function typeOf(value: JsonValue): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

/** Whether two values are equal; the order of keys says nothing. */
function same(a: JsonValue, b: JsonValue): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const [left, right] = [Object.entries(a), b as JsonObject];
  return (
    left.length === Object.keys(b).length &&
    left.every(([key, value]) => Object.hasOwn(right, key) && same(value, right[key]!))
  );
}

/** Patterns that were compiled last. */
const compiled: Map<string, CharacterDfa | undefined> = new Map();

function fitsPattern(text: string, pattern: string): boolean {
  if (!compiled.has(pattern)) {
    if (compiled.size >= 64) compiled.delete(compiled.keys().next().value!);
    compiled.set(pattern, compilePattern(pattern, "json schema"));
  }
  const automaton = compiled.get(pattern);
  return automaton !== undefined && matches(automaton, text);
}

/** Whether x is a multiple, as decimals are written: 0.3 is one of 0.1. */
function isMultiple(x: number, step: number): boolean {
  const quotient = x / step;
  return Math.abs(quotient - Math.round(quotient)) <= 1e-9 * Math.max(1, Math.abs(quotient));
}

class Walk {
  readonly #root: JsonValue;

  constructor(root: JsonValue) {
    this.#root = root;
  }

  fits(value: JsonValue, schema: JsonValue, depth: number): boolean {
    if (depth > maxDepth) return false;
    if (!isJsonObject(schema)) return schema !== false;
    const all = (name: string): readonly JsonValue[] | undefined =>
      schema[name] as readonly JsonValue[] | undefined;
    const next = (inner: JsonValue): boolean => this.fits(value, inner, depth + 1);
    if (typeof schema["$ref"] === "string" && !next(this.#target(schema["$ref"]))) return false;
    if (all("allOf")?.every(next) === false) return false;
    if (all("anyOf")?.some(next) === false) return false;
    // As the automaton reads it: several may fit.
    if (all("oneOf")?.some(next) === false) return false;
    if (schema["not"] !== undefined && next(schema["not"])) return false;
    if (schema["const"] !== undefined && !same(schema["const"], value)) return false;
    if (all("enum")?.some((choice) => same(choice, value)) === false) return false;
    if (!this.#fitsType(value, schema)) return false;
    if (typeof value === "number") return this.#fitsNumber(value, schema);
    if (typeof value === "string") return this.#fitsString(value, schema);
    if (Array.isArray(value)) return this.#fitsArray(value as readonly JsonValue[], schema, depth);
    return !isJsonObject(value) || this.#fitsObject(value, schema, depth);
  }

  #target(reference: string): JsonValue {
    let at: JsonValue = this.#root;
    const parts = decodeURIComponent(reference.slice(1)).split("/").slice(1);
    for (const part of parts) {
      const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
      if (typeof at !== "object" || at === null || !Object.hasOwn(at, key)) return false;
      at = (at as Readonly<Record<string, JsonValue>>)[key]!;
    }
    return at;
  }

  #fitsType(value: JsonValue, { type, nullable }: JsonObject): boolean {
    if (type === undefined) return true;
    if (nullable === true && value === null) return true;
    const wanted = Array.isArray(type) ? (type as readonly JsonValue[]) : [type];
    const isInteger = typeof value === "number" && Number.isInteger(value);
    return wanted.includes(typeOf(value)) || (isInteger && wanted.includes("integer"));
  }

  #fitsNumber(value: number, schema: JsonObject): boolean {
    const number = (name: string, otherwise: number): number =>
      typeof schema[name] === "number" ? schema[name] : otherwise;
    return (
      value >= number("minimum", -Infinity) &&
      value <= number("maximum", Infinity) &&
      value > number("exclusiveMinimum", -Infinity) &&
      value < number("exclusiveMaximum", Infinity) &&
      (schema["multipleOf"] === undefined || isMultiple(value, number("multipleOf", 1)))
    );
  }

  #fitsString(value: string, schema: JsonObject): boolean {
    const {
      minLength = 0,
      maxLength = Infinity,
      pattern,
      format,
    } = schema as {
      minLength?: number;
      maxLength?: number;
      pattern?: string;
      format?: string;
    };
    const size = [...value].length;
    if (size < minLength || size > maxLength) return false;
    if (pattern !== undefined && !fitsPattern(value, pattern)) return false;
    const known = format === undefined ? undefined : formatPatterns.get(format);
    return known === undefined || fitsPattern(value, known);
  }

  #fitsArray(value: readonly JsonValue[], schema: JsonObject, depth: number): boolean {
    const { minItems = 0, maxItems = Infinity } = schema as {
      minItems?: number;
      maxItems?: number;
    };
    if (value.length < minItems || value.length > maxItems) return false;
    if (schema["uniqueItems"] === true) {
      const isRepeated = value.some((item, i) =>
        value.slice(0, i).some((other) => same(item, other)),
      );
      if (isRepeated) return false;
    }
    const isOld = Array.isArray(schema["items"]);
    const first = (schema[isOld ? "items" : "prefixItems"] ?? []) as readonly JsonValue[];
    const rest = schema[isOld ? "additionalItems" : "items"] ?? true;
    return value.every((item, i) => this.fits(item, first[i] ?? rest, depth + 1));
  }

  #fitsObject(value: JsonObject, schema: JsonObject, depth: number): boolean {
    const { minProperties = 0, maxProperties = Infinity } = schema as {
      minProperties?: number;
      maxProperties?: number;
    };
    const names = Object.keys(value);
    if (names.length < minProperties || names.length > maxProperties) return false;
    const required = (schema["required"] ?? []) as readonly string[];
    if (required.some((name) => !Object.hasOwn(value, name))) return false;
    const properties = (schema["properties"] ?? {}) as JsonObject;
    const rest = schema["additionalProperties"] ?? true;
    return Object.entries(value).every(([name, inner]) =>
      this.fits(inner, Object.hasOwn(properties, name) ? properties[name]! : rest, depth + 1),
    );
  }
}

/**
 * Whether a value is as a schema says. Understood are the keywords that a constraint holds to, `not` and
 * `uniqueItems`; others say nothing. `oneOf` takes what fits one or more.
 * @param root what $ref points into; default the schema
 * @throws OptionError for a pattern that is not understood.
 */
export function fitsSchema(value: JsonValue, schema: JsonValue, root: JsonValue = schema): boolean {
  return new Walk(root).fits(value, schema, 0);
}
