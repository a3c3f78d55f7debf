/** The rules of a JSON Schema: each keyword as what it makes of the text. */
import type { JsonObject, JsonValue } from "../../io/json.ts";
import { emptyFormats, formatPatterns } from "./formats.ts";
import type { JsonRules, Property } from "./json-rules.ts";
import type { Node, Rule } from "./machine.ts";
import type { NumberOptions } from "./number.ts";
import { type Flat, listOf, pointerPart, SchemaReader, typeNames } from "./schema.ts";
import { fitsSchema } from "./validate.ts";

/** What a schema says about its numbers. */
const numberKeywords: readonly (keyof NumberOptions & string)[] = [
  "minimum",
  "maximum",
  "exclusiveMinimum",
  "exclusiveMaximum",
  "multipleOf",
];

/**
 * The rule of a schema.
 * @param where begins errors; default as those of all rules do
 * @param isLenient notes in `json.unchecked` what cannot be held to; default as for all rules
 * @throws OptionError naming the place in the schema that cannot be held to.
 */
export function ruleOfSchema(
  json: JsonRules,
  schema: JsonValue,
  where: string = json.where,
  isLenient: boolean = json.isLenient,
): Rule {
  const reader = new SchemaReader(schema, where, isLenient);
  const rule = new SchemaRules(json, reader).ruleOf(schema, "#");
  const name = where === json.where ? "" : `${where} `;
  json.unchecked.push(...reader.unchecked.map((place) => name + place));
  return rule;
}

/** The rules of one schema. */
class SchemaRules {
  readonly #json: JsonRules;
  readonly #reader: SchemaReader;
  /** Of what a $ref points to, by its place. */
  readonly #targets: Map<string, Rule> = new Map();

  constructor(json: JsonRules, reader: SchemaReader) {
    this.#json = json;
    this.#reader = reader;
  }

  ruleOf(schema: JsonValue, place: string, depth = 0): Rule {
    const target = this.#reader.target(schema);
    if (target === undefined) return { start: this.#node(schema, place, depth) };
    const found = this.#reader.resolve(target, place);
    const known = this.#targets.get(found.place);
    if (known) return known;
    const rule: Rule = { start: undefined };
    this.#targets.set(found.place, rule);
    rule.start =
      this.#reader.target(found.schema) === undefined
        ? this.#node(found.schema, found.place, depth)
        : this.#json.rules.call(this.ruleOf(found.schema, found.place, depth + 1));
    return rule;
  }

  #node(schema: JsonValue, place: string, depth: number): Node {
    if (depth > 200)
      throw this.#reader.error(place, "is nested too deeply after its references are followed.");
    return this.#flat(this.#reader.flatten(schema, place), depth);
  }

  #flat(flat: Flat, depth: number): Node {
    const json = this.#json;
    const { place, keywords } = flat;
    if (keywords === false) return json.never(place, "is false");
    const branches = ["anyOf", "oneOf"].filter((name) => keywords[name] !== undefined);
    if (branches.length > 1) {
      throw this.#reader.error(
        place,
        "has anyOf and oneOf together — put one into a branch of the other.",
      );
    }
    if (branches.length === 1) return this.#branches(flat, branches[0]!, depth);
    const values = this.#values(flat);
    if (values) return json.values(values, place);
    const options = this.#typesOf(flat).map((type) => this.#ofType(type, flat, depth));
    return json.rules.choice(options);
  }

  #branches({ place, keywords, patterns, formats }: Flat, name: string, depth: number): Node {
    const { [name]: branches, ...others } = keywords as JsonObject;
    const isAlone = Object.keys(others).length + patterns.length + formats.length === 0;
    const base: JsonValue = {
      ...others,
      ...((patterns.length > 0 || formats.length > 0) && {
        allOf: [
          ...patterns.map((pattern) => ({ pattern })),
          ...formats.map((format) => ({ format })),
        ],
      }),
    };
    const options = (branches as readonly JsonValue[]).map((branch, i) => {
      const own = `${place}/${name}/${i}`;
      return isAlone
        ? this.#json.rules.call(this.ruleOf(branch, own, depth + 1))
        : this.#node({ allOf: [base, branch] }, own, depth + 1);
    });
    return this.#json.rules.choice(options);
  }

  /** The values of enum and const that fit the rest. */
  #values({ keywords, patterns, formats }: Flat): readonly JsonValue[] | undefined {
    const { enum: choices, const: single, ...rest } = keywords as JsonObject;
    if (choices === undefined && single === undefined) return undefined;
    const listed = single === undefined ? (choices as readonly JsonValue[]) : [single];
    const found = listed.filter((value) => {
      if (choices !== undefined && single !== undefined) {
        if (!fitsSchema(value, { enum: choices })) return false;
      }
      const all: JsonValue = {
        ...rest,
        allOf: [
          ...patterns.map((pattern) => ({ pattern })),
          ...formats.map((format) => ({ format })),
        ],
      };
      return fitsSchema(value, all, this.#reader.root);
    });
    return [...new Map(found.map((value) => [JSON.stringify(value), value])).values()];
  }

  /** Types that a schema names, or that its keywords are about; all where it says nothing. */
  #typesOf({ keywords, patterns, formats }: Flat): readonly string[] {
    const own = keywords as JsonObject;
    const given = own["type"];
    if (given !== undefined) {
      const types = [...new Set(listOf(given))] as string[];
      return types.includes("number") ? types.filter((type) => type !== "integer") : types;
    }
    const about = (names: readonly string[]): boolean =>
      names.some((name) => own[name] !== undefined);
    const found: string[] = [];
    if (
      about([
        "properties",
        "required",
        "additionalProperties",
        "unevaluatedProperties",
        "minProperties",
        "maxProperties",
      ])
    ) {
      found.push("object");
    }
    if (about(["items", "prefixItems", "additionalItems", "minItems", "maxItems"]))
      found.push("array");
    if (about(["minLength", "maxLength"]) || patterns.length + formats.length > 0)
      found.push("string");
    if (about(numberKeywords)) found.push("number");
    return found.length > 0 ? found : ["any"];
  }

  #ofType(type: string, flat: Flat, depth: number): Node {
    const { rules } = this.#json;
    switch (type) {
      case "any":
        return rules.call(this.#json.any());
      case "null":
        return rules.text("null");
      case "boolean":
        return rules.choice([rules.text("true"), rules.text("false")]);
      case "string":
        return this.#string(flat);
      case "number":
      case "integer": {
        const own = flat.keywords as JsonObject;
        const limits = Object.fromEntries(
          numberKeywords.flatMap((name) => (own[name] === undefined ? [] : [[name, own[name]]])),
        ) as Omit<NumberOptions, "isInteger" | "where">;
        return this.#json.number(limits, type === "number", flat.place);
      }
      case "array":
        return this.#array(flat, depth);
      case "object":
        return this.#object(flat, depth);
      default:
        throw this.#reader.error(
          flat.place,
          `has the type "${type}" — known are ${typeNames.join(", ")}.`,
        );
    }
  }

  #string({ place, keywords, patterns, formats }: Flat): Node {
    const sources = [...patterns];
    for (const format of formats) {
      const pattern = formatPatterns.get(format);
      if (pattern !== undefined) sources.push(pattern);
      else if (!emptyFormats.has(format)) {
        this.#reader.unheld(
          place,
          "format",
          `"${format}"; held to are ${[...formatPatterns.keys()].join(", ")}`,
        );
      }
    }
    const { minLength, maxLength } = keywords as { minLength?: number; maxLength?: number };
    return this.#json.string(
      {
        ...(minLength !== undefined && { minLength }),
        ...(maxLength !== undefined && { maxLength }),
      },
      place,
      sources,
    );
  }

  #array({ place, keywords }: Flat, depth: number): Node {
    const own = keywords as JsonObject;
    const { minItems = 0, maxItems = Infinity } = own as { minItems?: number; maxItems?: number };
    // Before draft 2020-12 a list under items stood for prefixItems.
    const isOld = Array.isArray(own["items"]);
    const first = (isOld ? own["items"] : own["prefixItems"]) as readonly JsonValue[] | undefined;
    const other = (isOld ? own["additionalItems"] : own["items"]) ?? true;
    const rules = (first ?? []).map((item, i) =>
      this.ruleOf(item, `${place}/${isOld ? "items" : "prefixItems"}/${i}`, depth + 1),
    );
    const rest =
      other === false
        ? undefined
        : this.ruleOf(other, `${place}/${isOld ? "additionalItems" : "items"}`, depth + 1);
    if (minItems > maxItems || (!rest && minItems > rules.length)) {
      return this.#json.never(place, "asks for more items than it takes");
    }
    if (minItems >= 2 ** 20)
      throw this.#reader.error(place, `has the minItems ${minItems}, which is too many.`);
    return this.#json.arrayOf(rules, rest, minItems, maxItems >= 2 ** 20 ? Infinity : maxItems);
  }

  #object({ place, keywords }: Flat, depth: number): Node {
    const own = keywords as JsonObject;
    const properties = (own["properties"] ?? {}) as JsonObject;
    const required = new Set((own["required"] ?? []) as readonly string[]);
    const { minProperties = 0, maxProperties = Infinity } = own as {
      minProperties?: number;
      maxProperties?: number;
    };
    const isClosed = own["unevaluatedProperties"] === false;
    const given = own["additionalProperties"] ?? own["unevaluatedProperties"];
    const names = Object.keys(properties);
    // Where properties are named and nothing is said about others, there are none.
    const additional: JsonValue = isClosed ? false : (given ?? names.length === 0);
    const extra =
      additional === false
        ? undefined
        : this.ruleOf(additional, `${place}/additionalProperties`, depth + 1);
    const listed: Property[] = names.map((name) => ({
      name,
      rule: this.ruleOf(properties[name]!, `${place}/properties${pointerPart(name)}`, depth + 1),
      isRequired: required.has(name),
    }));
    for (const name of required) {
      if (Object.hasOwn(properties, name)) continue;
      // Named by no property: what additional ones may be, and anything where nothing is said of them.
      if (given === false || isClosed)
        return this.#json.never(place, `requires "${name}", which it does not take`);
      listed.push({ name, rule: extra ?? this.#json.any(), isRequired: true });
    }
    const most = listed.length + (extra ? Infinity : 0);
    const least = listed.filter(({ isRequired }) => isRequired).length;
    if (minProperties > most || maxProperties < least || minProperties > maxProperties) {
      return this.#json.never(place, "asks for more properties than it takes");
    }
    const isCounted = minProperties > least || maxProperties < most;
    if (isCounted && listed.length > 0) {
      this.#reader.unheld(place, "minProperties and maxProperties", "with optional properties");
    }
    const isList = isCounted && listed.length === 0;
    return this.#json.objectOf(
      listed,
      extra && {
        value: extra,
        least: isList ? Math.min(minProperties, 2 ** 20 - 1) : 0,
        most: isList && maxProperties < 2 ** 20 ? maxProperties : Infinity,
      },
      place,
    );
  }
}
