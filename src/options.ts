/**
 * Options of methods. One description of each serves checking, the command line, the server, the studio and
 * the documents.
 */
import { OptionError } from "./errors.ts";

interface Described {
  /** What it is, with its unit, and the paper's value where that is another than the default. */
  readonly about: string;
}

export interface NumberOption extends Described {
  readonly type: "number" | "integer";
  readonly default?: number;
  /** Least and largest value that is taken. */
  readonly range: readonly [least: number, most: number];
  /** The ends of the range are left out: the least, the largest. Default: neither. */
  readonly open?: readonly [least: boolean, most: boolean];
}

export interface FlagOption extends Described {
  readonly type: "flag";
  readonly default?: boolean;
}

export interface TextOption<T extends string = string> extends Described {
  readonly type: "text";
  readonly default?: T;
  /** The words that are taken; default any. */
  readonly choices?: readonly T[];
}

export interface ListOption extends Described {
  readonly type: "list";
  readonly default?: readonly string[] | string;
  /** Words that stand for a list of their own, as "all-linear". */
  readonly words?: readonly string[];
  /** Entries at most; default 4096. */
  readonly most?: number;
}

export interface NumbersOption extends Described {
  readonly type: "numbers";
  readonly default?: readonly number[];
  readonly range: readonly [least: number, most: number];
  readonly most?: number;
}

/** Numbers by name, as ranks by layer. */
export interface TableOption extends Described {
  readonly type: "table";
  readonly default?: Readonly<Record<string, number>>;
  readonly range: readonly [least: number, most: number];
  readonly most?: number;
}

export type OptionSpec =
  | NumberOption
  | FlagOption
  | TextOption
  | ListOption
  | NumbersOption
  | TableOption;

type SpecOf<T> = [T] extends [boolean]
  ? FlagOption
  : [T] extends [number]
    ? NumberOption
    : [T] extends [string]
      ? TextOption<T>
      : [T] extends [readonly number[]]
        ? NumbersOption
        : [T] extends [readonly string[] | string]
          ? ListOption
          : [T] extends [Readonly<Record<string, number>>]
            ? TableOption
            : never;

/** A description of each option of an options interface. */
export type OptionSpecs<O> = { readonly [K in keyof O]-?: SpecOf<NonNullable<O[K]>> };

/** Options as they come from outside: values, or text that is read by the description. */
export type GivenOptions = Readonly<Record<string, unknown>>;

/** Options of which those with a default are there. */
export type Filled<O, S> = O & {
  readonly [K in keyof O & keyof S as S[K] extends { readonly default: infer _ }
    ? K
    : never]-?: NonNullable<O[K]>;
};

/**
 * Checks options and fills in defaults.
 * @param where begins an error: the method's id
 * @throws OptionError for an unknown option, or a value of the wrong type or outside its range.
 */
export function readOptions<O extends object, S extends OptionSpecs<O>>(
  where: string,
  specs: S & OptionSpecs<O>,
  given: O | GivenOptions = {},
): Filled<O, S> {
  const known = specs as unknown as Readonly<Record<string, OptionSpec>>;
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(known, name)) continue;
    const names = Object.keys(known).join(", ");
    throw new OptionError(
      `${where}: has no option "${name}" — ${names === "" ? "it has none." : `it has ${names}.`}`,
    );
  }
  const read: Record<string, unknown> = {};
  for (const [name, spec] of Object.entries(known)) {
    const value = (given as GivenOptions)[name] ?? spec.default;
    if (value !== undefined) read[name] = readOption(`${where}: ${name}`, spec, value);
  }
  return read as Filled<O, S>;
}

function show(value: unknown): string {
  const text = typeof value === "string" ? `"${value}"` : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** One option's value, text read by its type. */
function readOption(where: string, spec: OptionSpec, value: unknown): unknown {
  const wrong = (what: string): OptionError =>
    new OptionError(`${where} must be ${what}, got ${show(value)}.`);
  switch (spec.type) {
    case "number":
    case "integer":
      return readNumber(spec, value, wrong);
    case "flag": {
      if (typeof value === "boolean") return value;
      if (value === "true" || value === "false") return value === "true";
      throw wrong("true or false");
    }
    case "text": {
      if (typeof value !== "string") throw wrong("text");
      if (spec.choices && !spec.choices.includes(value)) throw wrong(spec.choices.join(" or "));
      return value;
    }
    case "list": {
      if (typeof value === "string" && spec.words?.includes(value)) return value;
      const list = typeof value === "string" ? value.split("+") : value;
      const most = spec.most ?? 4096;
      const isList = Array.isArray(list) && list.every((item) => typeof item === "string");
      if (!isList || list.length > most || list.includes("")) {
        const words = (spec.words ?? []).map((word) => `"${word}" or `).join("");
        throw wrong(`${words}a list of at most ${most} names`);
      }
      return list;
    }
    case "numbers": {
      const list = typeof value === "string" ? value.split("+").map(Number) : value;
      const most = spec.most ?? 4096;
      if (!Array.isArray(list) || list.length > most) {
        throw wrong(`a list of at most ${most} numbers`);
      }
      for (const item of list) readNumber({ ...spec, type: "number" }, item, wrong);
      return list;
    }
    case "table": {
      const table = typeof value === "string" ? readTable(value) : value;
      const most = spec.most ?? 4096;
      const isTable = typeof table === "object" && table !== null && !Array.isArray(table);
      if (!isTable || Object.keys(table).length > most) {
        throw wrong(`a table of at most ${most} numbers, as name:8+other:4`);
      }
      return Object.fromEntries(
        Object.entries(table).map(([name, item]) => [
          name,
          readNumber({ ...spec, type: "number" }, item, wrong),
        ]),
      );
    }
  }
}

function readTable(text: string): Record<string, string> {
  return Object.fromEntries(
    text.split("+").map((item) => {
      const at = item.lastIndexOf(":");
      return at < 1 ? [item, ""] : [item.slice(0, at), item.slice(at + 1)];
    }),
  );
}

function readNumber(
  spec: Pick<NumberOption, "range" | "open" | "type">,
  value: unknown,
  wrong: (what: string) => OptionError,
): number {
  const [least, most] = spec.range;
  const [isAbove, isBelow] = spec.open ?? [false, false];
  const number = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  const fits =
    typeof number === "number" &&
    Number.isFinite(number) &&
    (isAbove ? number > least : number >= least) &&
    (isBelow ? number < most : number <= most) &&
    (spec.type === "number" || Number.isInteger(number));
  if (fits) return number;
  const kind = spec.type === "integer" ? "a whole number" : "a number";
  throw wrong(
    spec.open
      ? `${kind} in ${isAbove ? "(" : "["}${least}, ${most}${isBelow ? ")" : "]"}`
      : `${kind} from ${least} to ${most}`,
  );
}

/** A method and its options as people write them: `eva:rho=2,tau=0.99`. */
export interface NamedOptions {
  readonly id: string;
  readonly options: GivenOptions;
}

/**
 * Reads `id`, or `id:name=value,name=value`; lists are written `a+b`, tables `a:1+b:2`.
 * @throws OptionError for a part without a name or a value.
 */
export function parseNamed(where: string, text: string): NamedOptions {
  const at = text.indexOf(":");
  if (at < 0) return { id: text, options: {} };
  const options: Record<string, string | boolean> = {};
  for (const part of text.slice(at + 1).split(",")) {
    const equals = part.indexOf("=");
    const name = equals < 0 ? part : part.slice(0, equals);
    if (name === "" || Object.hasOwn(options, name)) {
      throw new OptionError(
        `${where}: "${text}" must be ${text.slice(0, at)}:name=value,name=value with each name once.`,
      );
    }
    // A name alone is a flag.
    options[name] = equals < 0 ? true : part.slice(equals + 1);
  }
  return { id: text.slice(0, at), options };
}
