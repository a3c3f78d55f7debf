/** JSON text as rules of a pushdown automaton over bytes: values of each type, within their limits. */
import { OptionError } from "../../errors.ts";
import type { JsonObject, JsonValue } from "../../io/json.ts";
import { type Dfa, type Lexeme, oneOf, upTo } from "./dfa.ts";
import { jsonString } from "./json-string.ts";
import { keyLexeme } from "./keys.ts";
import type { Node, Rule } from "./machine.ts";
import { jsonNumber, type NumberOptions } from "./number.ts";
import { anyString, type CharacterDfa, compilePattern, intersect } from "./regex.ts";
import { Rules } from "./rules.ts";

/** White space between the parts of JSON text. */
export type Whitespace = "none" | "single" | "flexible";

export interface JsonTextOptions {
  /**
   * `none` as `JSON.stringify` writes, `single` at most one space after `:` and `,` (the default), `flexible`
   * spaces, tabs and line breaks wherever JSON takes them, at most `maxWhitespace` in a row.
   */
  readonly whitespace?: Whitespace;
  /** Default 32, at most 1024. */
  readonly maxWhitespace?: number;
  /** Characters of a string at most where the schema does not say; default 4096, at most 1e6. */
  readonly maxStringLength?: number;
  /** Objects and arrays inside each other at most, more where the schema needs more; in [1, 64], default 32. */
  readonly maxDepth?: number;
  /** Notes keywords that cannot be held to while a text is written, instead of refusing them. Default false. */
  readonly lenient?: boolean;
}

const whole = (name: string, value: number, low: number, high: number): number => {
  if (Number.isInteger(value) && value >= low && value <= high) return value;
  throw new OptionError(
    `json schema: ${name} must be a whole number from ${low} to ${high}, got ${value}.`,
  );
};

/** Bytes of lexemes that are kept for other schemas. */
const maxKept = 2 ** 25;

/** Lexemes that many schemas have are made once. */
class Lexemes {
  #known: Map<string, Dfa | undefined> = new Map();
  #bytes = 0;

  get(key: string, make: () => Dfa | undefined): Dfa | undefined {
    if (this.#known.has(key)) return this.#known.get(key);
    const made = make();
    this.#bytes += 2 * key.length + 100 + (made?.bytes ?? 0);
    if (this.#bytes > maxKept) {
      this.#known = new Map();
      this.#bytes = 0;
    } else this.#known.set(key, made);
    return made;
  }
}

const lexemes = new Lexemes();
const encoder = new TextEncoder();

/** The strings in which patterns are all found; `undefined` where there are none. */
function charactersOf(patterns: readonly string[], where: string): CharacterDfa | undefined {
  let characters: CharacterDfa | undefined = anyString;
  for (const [i, pattern] of patterns.entries()) {
    const own = compilePattern(pattern, where);
    characters = own && characters && i > 0 ? intersect(characters, own, where) : own;
    if (!characters) return undefined;
  }
  return characters;
}

/** Builds the rules of JSON text; several schemas share what they can. */
export class JsonRules {
  readonly rules: Rules;
  readonly where: string;
  /** Places of keywords that are not held to. */
  readonly unchecked: string[] = [];
  readonly maxDepth: number;
  /** Whether keywords that cannot be held to are noted instead of refused. */
  readonly isLenient: boolean;
  /** Whether keys that the schema does not name may come. */
  hasOpenKeys = false;
  readonly #whitespace: Whitespace;
  readonly #maxString: number;
  readonly #single: Lexeme;
  readonly #flexible: Lexeme | undefined;
  /** Why nothing fits, where nothing does. */
  #why: string | undefined;
  #any: Rule | undefined;

  /** @throws OptionError for settings outside their range. */
  constructor(where: string, options: JsonTextOptions = {}) {
    const { whitespace = "single", maxWhitespace = 32, maxStringLength = 4096 } = options;
    if (!["none", "single", "flexible"].includes(whitespace)) {
      throw new OptionError(
        `json schema: whitespace must be none, single or flexible, got ${JSON.stringify(whitespace)}.`,
      );
    }
    this.where = where;
    this.rules = new Rules(where);
    this.isLenient = options.lenient ?? false;
    this.#whitespace = whitespace;
    this.#maxString = whole("maxStringLength", maxStringLength, 1, 1e6);
    this.maxDepth = whole("maxDepth", options.maxDepth ?? 32, 1, 64);
    const most = whole("maxWhitespace", maxWhitespace, 1, 1024);
    this.#single = upTo(1, [0x20], where);
    if (whitespace === "flexible") {
      this.#flexible = upTo(most, [0x20, 0x0a, 0x0d, 0x09], where);
    }
  }

  /** Why nothing fits, once something was found that nothing fits. */
  get why(): string | undefined {
    return this.#why;
  }

  /** Any object. */
  object(): Rule {
    return { start: this.objectOf([], { value: this.any(), least: 0, most: Infinity }, "#") };
  }

  /** Any value. */
  any(): Rule {
    if (this.#any) return this.#any;
    const rule: Rule = { start: undefined };
    this.#any = rule;
    rule.start = this.rules.choice([
      this.objectOf([], { value: rule, least: 0, most: Infinity }, "#"),
      this.arrayOf([], rule, 0, Infinity),
      this.string({}, "#"),
      this.number({}, true, "#"),
      this.rules.text("true"),
      this.rules.text("false"),
      this.rules.text("null"),
    ]);
    return rule;
  }

  /** What nothing fits. */
  never(place: string, what: string): Node {
    this.#why ??= `the schema at ${place} ${what}.`;
    return this.rules.choice([]);
  }

  /** White space wherever JSON takes it. */
  #space(next: Node): Node {
    return this.#flexible ? this.rules.lex(this.#flexible, next) : next;
  }

  /** White space after a comma or a colon. */
  #gap(next: Node): Node {
    if (this.#whitespace === "single") return this.rules.lex(this.#single, next);
    return this.#space(next);
  }

  comma(next: Node): Node {
    return this.#space(this.rules.text(",", this.#gap(next)));
  }

  colon(next: Node): Node {
    return this.#space(this.rules.text(":", this.#gap(next)));
  }

  #close(text: string): Node {
    return this.#space(this.rules.text(text));
  }

  /** Items of an array: the first ones by rules of their own. */
  arrayOf(first: readonly Rule[], rest: Rule | undefined, least: number, most: number): Node {
    const { rules } = this;
    const limit = rest ? most : Math.min(most, first.length);
    const close = this.#close("]");
    if (least > limit) return rules.choice([]);
    const options: Node[] = [];
    if (limit > 0) {
      const ruleAt = (index: number): Rule => first[index] ?? rest ?? first.at(-1)!;
      options.push(
        rules.list({
          ruleAt,
          distinct: first.length + 1,
          least,
          most: limit,
          between: this.comma(rules.done),
          close,
        }),
      );
    }
    if (least === 0) options.push(close);
    return rules.text("[", this.#space(rules.choice(options)));
  }

  /** An object with the properties in their order, then others. */
  objectOf(properties: readonly Property[], extra: Extra | undefined, place: string): Node {
    const { rules } = this;
    const close = this.#close("}");
    let item: Node | undefined;
    if (extra && extra.most > 0) {
      this.hasOpenKeys = true;
      const names = properties.map(({ name }) => name);
      const lexeme =
        names.length === 0
          ? keyLexeme([], this.where)
          : keyLexeme(names, `${this.where}: the schema at ${place}`);
      const entry: Rule = { start: rules.lex(lexeme, this.colon(rules.call(extra.value))) };
      item = rules.list({
        ruleAt: () => entry,
        distinct: 1,
        least: extra.least,
        most: extra.most,
        between: this.comma(rules.done),
        close,
      });
    }
    // From the last property backwards: which keys may come, and what may come after a value.
    let keys = item ? [item] : [];
    let canClose = !extra || extra.least === 0;
    let rest = rules.choice([...(item ? [this.comma(item)] : []), ...(canClose ? [close] : [])]);
    for (const { name, rule, isRequired } of properties.slice().reverse()) {
      const key = rules.text(JSON.stringify(name), this.colon(rules.call(rule, rest)));
      keys = isRequired ? [key] : [key, ...(keys.length > 1 ? [rules.choice(keys)] : keys)];
      canClose = canClose && !isRequired;
      rest = rules.choice([this.comma(rules.choice(keys)), ...(canClose ? [close] : [])]);
    }
    const start = rules.choice([...keys, ...(canClose ? [close] : [])]);
    return rules.text("{", this.#space(start));
  }

  /** Strings of a length, in which patterns are all found. */
  string(
    limits: { readonly minLength?: number; readonly maxLength?: number },
    place: string,
    patterns: readonly string[] = [],
  ): Node {
    const where = `${this.where}: the schema at ${place}`;
    const { minLength = 0, maxLength } = limits;
    if (minLength > 1e6) {
      throw new OptionError(`${where} has the minLength ${minLength}, at most 1000000 is taken.`);
    }
    const most = maxLength && Math.min(maxLength, Math.max(this.#maxString, minLength));
    const key = `string ${minLength} ${most} ${this.#maxString} ${JSON.stringify(patterns)}`;
    const made = lexemes.get(key, () => {
      const characters = charactersOf(patterns, where);
      return (
        characters &&
        jsonString(characters, {
          minLength,
          ...(most !== undefined && { maxLength: most }),
          defaultMaxLength: this.#maxString,
          isLoose: patterns.length === 0,
          where,
        })
      );
    });
    return made
      ? this.rules.lex(made)
      : this.never(place, "asks for a string that its lengths and patterns leave no room for");
  }

  number(limits: Omit<NumberOptions, "isInteger" | "where">, isReal: boolean, place: string): Node {
    const where = `${this.where}: the schema at ${place}`;
    const made = lexemes.get(`number ${isReal} ${JSON.stringify(limits)}`, () =>
      jsonNumber({ ...limits, isInteger: !isReal, where }),
    );
    return made
      ? this.rules.lex(made)
      : this.never(place, "asks for a number that its bounds leave no room for");
  }

  /** One of some values. */
  values(values: readonly JsonValue[], place: string): Node {
    if (values.length === 0) {
      return this.never(place, "lists values of which none fits the rest of it");
    }
    const isPlain = (value: JsonValue): boolean => typeof value !== "object" || value === null;
    const plain = values.filter(isPlain);
    const options = values.filter((value) => !isPlain(value)).map((value) => this.#value(value));
    if (plain.length === 1) options.unshift(this.#value(plain[0]!));
    if (plain.length > 1) {
      const texts = plain.map((value) => encoder.encode(JSON.stringify(value)));
      const where = `${this.where}: the schema at ${place}`;
      options.unshift(this.rules.lex(oneOf(texts, { where, maxStates: 600_000 })));
    }
    return this.rules.choice(options);
  }

  /** One value. */
  #value(value: JsonValue): Node {
    if (typeof value !== "object" || value === null) return this.rules.text(JSON.stringify(value));
    const rule = (inner: JsonValue): Rule => ({ start: this.#value(inner) });
    if (Array.isArray(value)) {
      const items = (value as readonly JsonValue[]).map(rule);
      return this.arrayOf(items, undefined, items.length, items.length);
    }
    const properties = Object.entries(value as JsonObject).map(([name, inner]) => ({
      name,
      rule: rule(inner),
      isRequired: true,
    }));
    return this.objectOf(properties, undefined, "#");
  }
}

/** A property that a schema names. */
export interface Property {
  readonly name: string;
  readonly rule: Rule;
  readonly isRequired: boolean;
}

/** Entries that no property names. */
export interface Extra {
  readonly value: Rule;
  readonly least: number;
  readonly most: number;
}
