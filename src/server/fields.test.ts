import { describe, expect, it } from "vitest";
import type { JsonObject } from "../io/json.ts";
import { ApiError } from "./errors.ts";
import {
  either,
  type Field,
  flag,
  ignored,
  isText,
  list,
  need,
  nested,
  number,
  oneOf,
  readFields,
  text,
  whole,
} from "./fields.ts";

const table = {
  name: need(text(5, 2)),
  share: number(0, 1),
  count: whole(1, 3),
  isOn: flag,
  kind: oneOf("a", "b"),
  inner: nested({ deep: need(whole(0, 9)) }),
  items: list(text(3), 2, 1),
  one: either(isText, text(3), list(text(3), 4)) as Field<string | readonly string[]>,
  user: ignored,
};

function errorOf(object: unknown): ApiError {
  try {
    readFields(object as JsonObject, table);
  } catch (error) {
    expect(error).toBeInstanceOf(ApiError);
    return error as ApiError;
  }
  throw new Error("nothing was wrong");
}

describe("readFields", () => {
  it("gives what was sent, null being nothing", () => {
    const values = readFields(
      { name: "ab", share: 0, isOn: null, inner: { deep: 3 }, one: ["x"], user: { any: 1 } },
      table,
    );
    expect(values).toEqual({ name: "ab", share: 0, inner: { deep: 3 }, one: ["x"] });
  });

  it.each([
    [{}, "name", "missing_required_parameter", "Missing required parameter: 'name'."],
    [{ name: null }, "name", "missing_required_parameter", "Missing required parameter: 'name'."],
    [
      { name: 1 },
      "name",
      "invalid_type",
      "Invalid type for 'name': expected a string, but got an integer instead.",
    ],
    [
      { name: "a" },
      "name",
      "string_below_min_length",
      "Invalid 'name': expected a string with 2 to 5 characters, but got 1 instead.",
    ],
    [
      { name: "ab", share: 1.5 },
      "share",
      "decimal_above_max_value",
      "Invalid 'share': decimal above maximum value. Expected a value <= 1, but got 1.5 instead.",
    ],
    [
      { name: "ab", count: 0 },
      "count",
      "integer_below_min_value",
      "Invalid 'count': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ],
    [
      { name: "ab", count: 1.5 },
      "count",
      "invalid_type",
      "Invalid type for 'count': expected an integer, but got a decimal instead.",
    ],
    [
      { name: "ab", kind: "c" },
      "kind",
      "invalid_value",
      "Invalid value for 'kind': got 'c', supported are 'a', 'b'.",
    ],
    [
      { name: "ab", inner: { deep: [] } },
      "inner.deep",
      "invalid_type",
      "Invalid type for 'inner.deep': expected an integer, but got an array instead.",
    ],
    [
      { name: "ab", inner: { deep: 1, x: 1 } },
      "inner.x",
      "unknown_parameter",
      "Unknown parameter: 'inner.x'.",
    ],
    [
      { name: "ab", items: ["a", 2] },
      "items[1]",
      "invalid_type",
      "Invalid type for 'items[1]': expected a string, but got an integer instead.",
    ],
    [
      { name: "ab", items: [] },
      "items",
      "array_below_min_length",
      "Invalid 'items': expected an array with 1 to 2 items, but got 0 instead.",
    ],
    [{ name: "ab", naem: 1 }, "naem", "unknown_parameter", "Unknown parameter: 'naem'."],
  ])("says of %j what is wrong, where and how it is called", (object, param, code, message) => {
    expect(errorOf(object)).toMatchObject({ status: 400, param, code, message });
  });

  it("takes no field that an object has from elsewhere", () => {
    const own = Object.assign(Object.create({ name: "inherited" }) as object, { constructor: 1 });
    expect(errorOf(JSON.parse('{"__proto__": 1, "name": "ab"}')).param).toBe("__proto__");
    expect(errorOf(own).code).toMatch(/unknown_parameter|missing/);
  });
});
