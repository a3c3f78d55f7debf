/**
 * JSON Schema as it is read here: keywords with their types, $ref resolved, allOf merged. What cannot be held to
 * while a text is written is refused, or noted where that is asked for.
 */
import { OptionError } from "../../errors.ts";
import { isJsonObject, type JsonObject, type JsonValue } from "../../io/json.ts";

const maxDepth = 64;
const maxValues = 50_000;
const maxProperties = 5000;
const maxChoices = 5000;
/** UTF-16 units of enum and const values together. */
const maxChoiceText = 500_000;
const maxBranches = 500;
const maxMerges = 50_000;

/** Keywords that say nothing about which values fit. */
const annotations: ReadonlySet<string> = new Set([
  "title",
  "description",
  "default",
  "examples",
  "example",
  "deprecated",
  "readOnly",
  "writeOnly",
  "contentMediaType",
  "contentEncoding",
  "contentSchema",
  "discriminator",
  "$schema",
  "$id",
  "$comment",
  "$anchor",
  "$vocabulary",
  "$defs",
  "definitions",
]);

type Kind =
  | "size"
  | "number"
  | "text"
  | "texts"
  | "schema"
  | "schemas"
  | "table"
  | "values"
  | "flag";

/** What is held to, and what form each keyword has. */
const keywords: Readonly<Record<string, Kind | "any" | "types">> = {
  type: "types",
  enum: "values",
  const: "any",
  nullable: "flag",
  minLength: "size",
  maxLength: "size",
  pattern: "text",
  format: "text",
  minimum: "number",
  maximum: "number",
  exclusiveMinimum: "number",
  exclusiveMaximum: "number",
  multipleOf: "number",
  properties: "table",
  required: "texts",
  additionalProperties: "schema",
  unevaluatedProperties: "schema",
  minProperties: "size",
  maxProperties: "size",
  items: "any",
  prefixItems: "schemas",
  additionalItems: "schema",
  minItems: "size",
  maxItems: "size",
  anyOf: "schemas",
  oneOf: "schemas",
  allOf: "schemas",
  $ref: "text",
};

/** What no automaton here can hold to. */
const unheld: ReadonlySet<string> = new Set([
  "uniqueItems",
  "contains",
  "minContains",
  "maxContains",
  "not",
  "if",
  "then",
  "else",
  "dependentRequired",
  "dependentSchemas",
  "dependencies",
  "patternProperties",
  "propertyNames",
  "unevaluatedItems",
  "$dynamicRef",
  "$dynamicAnchor",
  "$recursiveRef",
]);

export const typeNames: readonly string[] = [
  "object",
  "array",
  "string",
  "number",
  "integer",
  "boolean",
  "null",
];

/** A schema without $ref and allOf, and the place that it has. */
export interface Flat {
  readonly place: string;
  /** Keywords that are held to; `false` where nothing fits. */
  readonly keywords: JsonObject | false;
  /** Patterns that all must be found in a string. */
  readonly patterns: readonly string[];
  /** Formats that a string must have all. */
  readonly formats: readonly string[];
}

type Open = Record<string, JsonValue>;

const quoted = (value: JsonValue): string => {
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};

/** A key as a part of a JSON pointer, in the form that URIs have. */
export function pointerPart(key: string | number): string {
  return `/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

export class SchemaReader {
  readonly root: JsonValue;
  /** Places of keywords that are not held to. */
  readonly unchecked: string[] = [];
  readonly #where: string;
  readonly #isLenient: boolean;
  readonly #checked: Set<string> = new Set();
  #merges = 0;

  /**
   * @param where begins errors
   * @param isLenient note what cannot be held to instead of refusing it
   * @throws OptionError when the schema is too large or too deep, or uses what is not understood.
   */
  constructor(root: JsonValue, where: string, isLenient: boolean) {
    this.root = root;
    this.#where = where;
    this.#isLenient = isLenient;
    this.#checkSize();
    this.#check(root, "#");
  }

  error(place: string, what: string): OptionError {
    return new OptionError(`${this.#where}: the schema at ${place} ${what}`);
  }

  #checkSize(): void {
    let values = 0;
    let properties = 0;
    const visit = (value: JsonValue, depth: number, place: string): void => {
      if (++values > maxValues)
        throw this.error("#", `has more than ${maxValues} values — make it smaller.`);
      if (depth > maxDepth) {
        throw this.error(
          place,
          `is more than ${maxDepth} levels deep — use $ref for what repeats.`,
        );
      }
      if (typeof value !== "object" || value === null) return;
      for (const [key, inner] of Object.entries(value) as [string, JsonValue][]) {
        if (key === "properties" && isJsonObject(inner)) properties += Object.keys(inner).length;
        visit(inner, depth + 1, place + pointerPart(key));
      }
    };
    visit(this.root, 0, "#");
    if (properties > maxProperties) {
      throw this.error("#", `has ${properties} properties, at most ${maxProperties} are taken.`);
    }
  }

  /** Keywords and their forms, everywhere in the schema. */
  #check(schema: JsonValue, place: string): void {
    if (typeof schema === "boolean") return;
    if (!isJsonObject(schema)) {
      throw this.error(place, `must be an object, true or false, got ${quoted(schema)}.`);
    }
    for (const [name, value] of Object.entries(schema)) {
      const own = place + pointerPart(name);
      if (name === "$defs" || name === "definitions") {
        if (!isJsonObject(value)) throw this.error(own, "must be a table of schemas.");
        for (const [key, inner] of Object.entries(value))
          this.#check(inner, own + pointerPart(key));
        continue;
      }
      if (annotations.has(name)) continue;
      if (unheld.has(name)) {
        if (name === "uniqueItems" && value === false) continue;
        this.#note(place, name);
        continue;
      }
      const kind = Object.hasOwn(keywords, name) ? keywords[name] : undefined;
      if (kind === undefined) {
        throw this.error(place, `has "${name}", which is not understood — leave it out.`);
      }
      this.#checkForm(name, kind, value, own);
    }
    this.#checkValues(schema, place);
  }

  #note(place: string, name: string): void {
    this.unheld(place, name, "");
  }

  /**
   * Notes a keyword that cannot be held to.
   * @throws OptionError where that is not asked for.
   */
  unheld(place: string, name: string, what: string): void {
    if (!this.#isLenient) {
      throw this.error(
        place,
        `has "${name}"${what === "" ? "" : ` ${what}`}, which cannot be held to while the text is written — leave it out, or check it afterwards and set lenient.`,
      );
    }
    this.unchecked.push(place + pointerPart(name));
  }

  #checkForm(name: string, kind: Kind | "any" | "types", value: JsonValue, place: string): void {
    const must = (what: string): OptionError =>
      this.error(place, `must be ${what}, got ${quoted(value)}.`);
    switch (kind) {
      case "size":
        if (!(typeof value === "number" && Number.isInteger(value) && value >= 0)) {
          throw must("a whole number from 0");
        }
        return;
      case "number":
        if (typeof value !== "number" || !Number.isFinite(value)) throw must("a number");
        if (name === "multipleOf" && !(value > 0)) throw must("above 0");
        return;
      case "text":
        if (typeof value !== "string") throw must("a text");
        return;
      case "flag":
        if (typeof value !== "boolean") throw must("true or false");
        return;
      case "texts":
        if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
          throw must("a list of texts");
        }
        return;
      case "values":
        if (!Array.isArray(value) || value.length === 0) throw must("a list of values");
        return;
      case "types": {
        const types = Array.isArray(value) ? (value as readonly JsonValue[]) : [value];
        const isKnown = types.every((type) => typeof type === "string" && typeNames.includes(type));
        if (types.length === 0 || !isKnown) throw must(`one or some of ${typeNames.join(", ")}`);
        return;
      }
      case "schema":
        this.#check(value, place);
        return;
      case "schemas":
        if (!Array.isArray(value) || value.length === 0 || value.length > maxBranches) {
          throw must(`a list of 1 to ${maxBranches} schemas`);
        }
        (value as readonly JsonValue[]).forEach((inner, i) => {
          this.#check(inner, place + pointerPart(i));
        });
        return;
      case "table":
        if (!isJsonObject(value)) throw must("a table of schemas");
        for (const [key, inner] of Object.entries(value)) {
          this.#check(inner, place + pointerPart(key));
        }
        return;
      case "any":
        if (name !== "items") return;
        if (Array.isArray(value)) this.#checkForm(name, "schemas", value, place);
        else this.#check(value, place);
    }
  }

  #checkValues(schema: JsonObject, place: string): void {
    const { enum: choices } = schema as { enum?: readonly JsonValue[] };
    if (choices && choices.length > maxChoices) {
      throw this.error(
        `${place}/enum`,
        `lists ${choices.length} values, at most ${maxChoices} are taken.`,
      );
    }
    const text = JSON.stringify([choices ?? null, schema["const"] ?? null]).length;
    if (text > maxChoiceText) {
      throw this.error(
        place,
        `lists values of ${text} characters, at most ${maxChoiceText} are taken.`,
      );
    }
  }

  /**
   * What a $ref points to, and the place of that.
   * @throws OptionError when it points out of the schema, or at nothing.
   */
  resolve(
    reference: string,
    place: string,
  ): { readonly schema: JsonValue; readonly place: string } {
    const wrong = (what: string): OptionError =>
      this.error(place, `has the $ref ${JSON.stringify(reference)}, ${what}`);
    if (!reference.startsWith("#")) {
      throw wrong("which points out of the schema — put what it names under $defs.");
    }
    let pointer: string;
    try {
      pointer = decodeURIComponent(reference.slice(1));
    } catch {
      throw wrong("which is no JSON pointer.");
    }
    if (pointer === "") return { schema: this.root, place: "#" };
    let at: JsonValue = this.root;
    for (const part of pointer.split("/").slice(1)) {
      const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
      const inner: JsonValue | undefined =
        typeof at === "object" && at !== null && Object.hasOwn(at, key)
          ? (at as Readonly<Record<string, JsonValue>>)[key]
          : undefined;
      if (!pointer.startsWith("/") || inner === undefined) throw wrong("which points at nothing.");
      at = inner;
    }
    // What stands where no schema is expected was not read as one.
    if (!this.#checked.has(pointer)) this.#check(at, `#${pointer}`);
    this.#checked.add(pointer);
    return { schema: at, place: `#${pointer}` };
  }

  /** Where a schema only points elsewhere: there, so that a rule can be shared; else nothing. */
  target(schema: JsonValue): string | undefined {
    if (!isJsonObject(schema) || typeof schema["$ref"] !== "string") return undefined;
    const others = Object.keys(schema).filter((name) => name !== "$ref" && !annotations.has(name));
    return others.length === 0 ? schema["$ref"] : undefined;
  }

  /** A schema without $ref and allOf. */
  flatten(schema: JsonValue, place: string): Flat {
    const into: Merged = { keywords: {}, patterns: [], formats: [], closed: [], isNever: false };
    this.#merge(schema, place, into, new Set());
    const { keywords: own, patterns, formats, closed, isNever } = into;
    const properties = own["properties"];
    if (closed.length > 1 && isJsonObject(properties)) {
      own["properties"] = withLimits(properties, closed);
    }
    return { place, keywords: isNever ? false : own, patterns, formats };
  }

  #merge(schema: JsonValue, place: string, into: Merged, path: ReadonlySet<string>): void {
    if (++this.#merges > maxMerges) {
      throw this.error(
        place,
        `takes more than ${maxMerges} merges of $ref and allOf — make it simpler.`,
      );
    }
    if (schema === false) into.isNever = true;
    if (typeof schema === "boolean") return;
    const own = schema as JsonObject;
    into.closed.push({
      properties: (own["properties"] ?? {}) as JsonObject,
      additional: own["additionalProperties"],
    });
    for (const [name, value] of Object.entries(own)) {
      if (annotations.has(name) || unheld.has(name)) continue;
      if (name === "$ref") {
        const found = this.resolve(value as string, place);
        if (path.has(found.place)) {
          throw this.error(
            place,
            `has a $ref that comes back to itself through allOf or its neighbours.`,
          );
        }
        this.#merge(found.schema, found.place, into, new Set([...path, found.place]));
      } else if (name === "allOf") {
        (value as readonly JsonValue[]).forEach((part, i) => {
          this.#merge(part, `${place}/allOf/${i}`, into, path);
        });
      } else if (name === "pattern") into.patterns.push(value as string);
      else if (name === "format") into.formats.push(value as string);
      else if (name === "nullable") continue;
      else this.#combine(into.keywords, name, value, place);
    }
    if (own["nullable"] === true && into.keywords["type"] !== undefined) {
      into.keywords["type"] = [...listOf(into.keywords["type"]), "null"];
    }
  }

  /** What two schemas that must both fit say about one keyword. */
  #combine(into: Open, name: string, value: JsonValue, place: string): void {
    const before = into[name];
    if (before === undefined) {
      into[name] = value;
      return;
    }
    switch (name) {
      case "type":
        into[name] = commonTypes(listOf(before), listOf(value));
        return;
      case "enum":
        into[name] = (before as readonly JsonValue[]).filter((a) =>
          (value as readonly JsonValue[]).some((b) => JSON.stringify(a) === JSON.stringify(b)),
        );
        return;
      case "const":
        if (JSON.stringify(before) !== JSON.stringify(value)) into["enum"] = [];
        return;
      case "minLength":
      case "minimum":
      case "exclusiveMinimum":
      case "minProperties":
      case "minItems":
        into[name] = Math.max(before as number, value as number);
        return;
      case "maxLength":
      case "maximum":
      case "exclusiveMaximum":
      case "maxProperties":
      case "maxItems":
        into[name] = Math.min(before as number, value as number);
        return;
      case "required":
        into[name] = [...new Set([...(before as string[]), ...(value as string[])])];
        return;
      case "properties": {
        const joined: Open = Object.assign(Object.create(null), before);
        for (const [key, inner] of Object.entries(value as JsonObject)) {
          joined[key] = Object.hasOwn(joined, key) ? { allOf: [joined[key]!, inner] } : inner;
        }
        into[name] = joined;
        return;
      }
      case "additionalProperties":
      case "unevaluatedProperties":
      case "items":
      case "additionalItems":
        if (Array.isArray(before) || Array.isArray(value)) break;
        into[name] = before === false || value === false ? false : { allOf: [before, value] };
        return;
      default:
        if (JSON.stringify(before) === JSON.stringify(value)) return;
    }
    throw this.error(
      place,
      `has "${name}" more than once by allOf or $ref, which cannot be merged.`,
    );
  }
}

interface Merged {
  readonly keywords: Open;
  readonly patterns: string[];
  readonly formats: string[];
  /** What each part says about properties. */
  readonly closed: {
    readonly properties: JsonObject;
    readonly additional: JsonValue | undefined;
  }[];
  isNever: boolean;
}

/** A part that limits additional properties limits those that only other parts name. */
function withLimits(properties: JsonObject, parts: Merged["closed"]): JsonObject {
  const limited: Open = Object.create(null);
  for (const [name, schema] of Object.entries(properties)) {
    const limits = parts.flatMap(({ properties: own, additional }) =>
      additional === undefined || Object.hasOwn(own, name) ? [] : [additional],
    );
    if (limits.includes(false)) limited[name] = false;
    else limited[name] = limits.length === 0 ? schema : { allOf: [schema, ...limits] };
  }
  return limited;
}

export function listOf(value: JsonValue): readonly JsonValue[] {
  return Array.isArray(value) ? (value as readonly JsonValue[]) : [value];
}

function commonTypes(a: readonly JsonValue[], b: readonly JsonValue[]): readonly JsonValue[] {
  const has = (list: readonly JsonValue[], type: JsonValue): boolean =>
    list.includes(type) || (type === "integer" && list.includes("number"));
  return [...new Set([...a, ...b])].filter((type) => has(a, type) && has(b, type));
}
