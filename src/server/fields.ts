/** Requests read by tables: one row for each field says its type, its range and what is wrong otherwise. */
import { isJsonObject, type JsonObject, type JsonValue } from "../io/json.ts";
import { type ApiError, wrong } from "./errors.ts";

/** How a field is read. */
export interface Field<T> {
  /** @param param names the field in errors */
  readonly read: (value: JsonValue, param: string) => T;
  readonly isRequired?: boolean;
}

export interface RequiredField<T> extends Field<T> {
  readonly isRequired: true;
}

export type FieldTable = { readonly [name: string]: Field<unknown> };

export type FieldValues<F extends FieldTable> = {
  readonly [K in keyof F]: F[K] extends RequiredField<infer T>
    ? T
    : F[K] extends Field<infer T>
      ? T | undefined
      : never;
};

function kindOf(value: JsonValue): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "number") return Number.isInteger(value) ? "an integer" : "a decimal";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

/** The error of a value of another type. */
export function wrongType(param: string, expected: string, value: JsonValue): ApiError {
  return wrong(
    `Invalid type for '${param}': expected ${expected}, but got ${kindOf(value)} instead.`,
    param,
    "invalid_type",
  );
}

/**
 * Reads an object's fields. A null is a field that was not given.
 * @param where stands before the names in errors, as `tools[0].`
 * @param isOpen whether other fields are ignored; else they are refused
 * @throws ApiError 400 naming the field that is wrong.
 */
export function readFields<F extends FieldTable>(
  object: JsonObject,
  table: F,
  where = "",
  isOpen = false,
): FieldValues<F> {
  const values: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(table)) {
    const value = Object.hasOwn(object, name) ? object[name] : undefined;
    const param = `${where}${name}`;
    if (value !== undefined && value !== null) values[name] = field.read(value, param);
    else if (field.isRequired) {
      throw wrong(`Missing required parameter: '${param}'.`, param, "missing_required_parameter");
    }
  }
  if (!isOpen) {
    for (const name of Object.keys(object)) {
      if (Object.hasOwn(table, name)) continue;
      const param = `${where}${name.slice(0, 100)}`;
      throw wrong(`Unknown parameter: '${param}'.`, param, "unknown_parameter");
    }
  }
  return values as FieldValues<F>;
}

/** A field that must be there. */
export function need<T>(field: Field<T>): RequiredField<T> {
  return { ...field, isRequired: true };
}

/** A field that clients send and that has no meaning here. */
export const ignored: Field<undefined> = { read: () => undefined };

export function text(most: number, least = 0): Field<string> {
  return {
    read: (value, param) => {
      if (typeof value !== "string") throw wrongType(param, "a string", value);
      if (value.length >= least && value.length <= most) return value;
      throw wrong(
        `Invalid '${param}': expected a string with ${least} to ${most} characters, but got ${value.length} instead.`,
        param,
        value.length < least ? "string_below_min_length" : "string_above_max_length",
      );
    },
  };
}

export function oneOf<T extends string>(...words: readonly T[]): Field<T> {
  return {
    read: (value, param) => {
      if (typeof value !== "string") throw wrongType(param, "a string", value);
      if ((words as readonly string[]).includes(value)) return value as T;
      throw wrong(
        `Invalid value for '${param}': got '${value.slice(0, 40)}', supported are ${words.map((word) => `'${word}'`).join(", ")}.`,
        param,
      );
    },
  };
}

export const flag: Field<boolean> = {
  read: (value, param) => {
    if (typeof value === "boolean") return value;
    throw wrongType(param, "a boolean", value);
  },
};

export function number(low: number, high: number): Field<number> {
  return {
    read: (value, param) => {
      if (typeof value !== "number") throw wrongType(param, "a decimal", value);
      return inRange(value, param, low, high, "decimal");
    },
  };
}

export function whole(low: number, high: number): Field<number> {
  return {
    read: (value, param) => {
      if (typeof value !== "number" || !Number.isInteger(value)) {
        throw wrongType(param, "an integer", value);
      }
      return inRange(value, param, low, high, "integer");
    },
  };
}

function inRange(value: number, param: string, low: number, high: number, kind: string): number {
  if (value < low) {
    throw wrong(
      `Invalid '${param}': ${kind} below minimum value. Expected a value >= ${low}, but got ${value} instead.`,
      param,
      `${kind}_below_min_value`,
    );
  }
  if (value > high) {
    throw wrong(
      `Invalid '${param}': ${kind} above maximum value. Expected a value <= ${high}, but got ${value} instead.`,
      param,
      `${kind}_above_max_value`,
    );
  }
  return value;
}

export const object: Field<JsonObject> = {
  read: (value, param) => {
    if (isJsonObject(value)) return value;
    throw wrongType(param, "an object", value);
  },
};

/** An object with fields of its own. */
export function nested<F extends FieldTable>(table: F, isOpen = false): Field<FieldValues<F>> {
  return {
    read: (value, param) => readFields(object.read(value, param), table, `${param}.`, isOpen),
  };
}

export function list<T>(item: Field<T>, most: number, least = 0): Field<readonly T[]> {
  return {
    read: (value, param) => {
      if (!Array.isArray(value)) throw wrongType(param, "an array", value);
      if (value.length < least || value.length > most) {
        throw wrong(
          `Invalid '${param}': expected an array with ${least} to ${most} items, but got ${value.length} instead.`,
          param,
          value.length < least ? "array_below_min_length" : "array_above_max_length",
        );
      }
      return (value as readonly JsonValue[]).map((one, i) => item.read(one, `${param}[${i}]`));
    },
  };
}

/** One of two forms, told by a test of the value. */
export function either<A, B>(
  isFirst: (value: JsonValue) => boolean,
  first: Field<A>,
  second: Field<B>,
): Field<A | B> {
  return {
    read: (value, param) => (isFirst(value) ? first : second).read(value, param),
  };
}

export const isText = (value: JsonValue): boolean => typeof value === "string";
