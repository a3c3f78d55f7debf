import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Dfa, dead } from "./dfa.ts";
import { decimalOf, jsonNumber, type NumberOptions } from "./number.ts";

const taken = (dfa: Dfa | undefined, text: string): boolean => {
  let state = 0;
  for (const byte of new TextEncoder().encode(text)) {
    if (!dfa || state === dead) return false;
    state = dfa.step(state, byte);
  }
  return dfa !== undefined && state !== dead && dfa.accepts(state);
};

const plain = {
  real: jsonNumber({ isInteger: false, where: "test" }),
  whole: jsonNumber({ isInteger: true, where: "test" }),
};

/** Numbers near each other, with few digits. */
const some = fc
  .tuple(fc.integer({ min: -2500, max: 2500 }), fc.constantFrom(1, 10, 100))
  .map(([n, scale]) => n / scale);

describe("numbers of JSON", () => {
  it("are within their bounds, exactly those", () => {
    const kinds = fc.record(
      {
        minimum: some,
        exclusiveMinimum: some,
        maximum: some,
        exclusiveMaximum: some,
        multipleOf: fc.constantFrom(1, 2, 7, 0.1, 0.25, 0.5, 12),
      },
      { requiredKeys: [] },
    );
    let [inside, all] = [0, 0];
    fc.assert(
      fc.property(
        kinds,
        fc.boolean(),
        fc.array(some, { minLength: 8, maxLength: 8 }),
        (limits, isInteger, numbers) => {
          const { minimum = -Infinity, maximum = Infinity } = limits;
          const { exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity, multipleOf } = limits;
          const options = { ...limits, isInteger, where: "test" } as NumberOptions;
          const dfa = jsonNumber(options);
          for (const drawn of numbers) {
            const x = (isInteger ? Math.round(drawn) : drawn) + 0;
            const steps = multipleOf === undefined ? 0 : x / multipleOf;
            const fits =
              x >= minimum &&
              x <= maximum &&
              x > exclusiveMinimum &&
              x < exclusiveMaximum &&
              Math.abs(steps - Math.round(steps)) < 1e-9;
            const text = JSON.stringify(x);
            if (taken(dfa, text) !== fits) throw new Error(`${text} ${JSON.stringify(options)}`);
            all++;
            if (fits) inside++;
          }
        },
      ),
      { seed: 9, numRuns: 150 },
    );
    expect(inside).toBeGreaterThan(all * 0.05);
  });

  it("without bounds are all that ECMA-262 writes, save the smallest", () => {
    fc.assert(
      fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (x) => {
        if (Math.abs(x) > 1e307 || (x !== 0 && Math.abs(x) < 1e-307)) return;
        expect(taken(plain.real, JSON.stringify(x))).toBe(true);
      }),
      { seed: 1, numRuns: 60 },
    );
    for (const text of ["0", "-1", "1.5", "1e5", "1.25E-7", "123456789012345678901"]) {
      expect(taken(plain.real, text)).toBe(true);
    }
    for (const text of [
      "01",
      "-",
      "1.",
      ".5",
      "+1",
      "-0",
      "1e",
      "1e999",
      "0x1",
      "1234567890123456789012",
      "12e5",
    ]) {
      expect(taken(plain.real, text)).toBe(false);
    }
  });

  it("that are whole have no point, no exponent and no sign of zero", () => {
    for (const text of ["0", "-12", "9007199254740991"])
      expect(taken(plain.whole, text)).toBe(true);
    for (const text of ["1.0", "1e2", "-0", "00", "12345678901234567"]) {
      expect(taken(plain.whole, text)).toBe(false);
    }
  });

  it("know when nothing is left", () => {
    const where = "test";
    expect(jsonNumber({ isInteger: true, minimum: 3, maximum: 2, where })).toBeUndefined();
    expect(jsonNumber({ isInteger: true, minimum: 0.2, maximum: 0.8, where })).toBeUndefined();
    expect(
      jsonNumber({ isInteger: false, minimum: 1, exclusiveMaximum: 1, where }),
    ).toBeUndefined();
    expect(() => jsonNumber({ isInteger: true, multipleOf: 123457, where })).toThrow(
      "test: multipleOf 123457 cannot be held to digit by digit",
    );
  });

  it("are written out without an exponent", () => {
    expect([1e21, 1.5e-7, -20.5, 0].map(decimalOf)).toEqual([
      { whole: `1${"0".repeat(21)}`, fraction: "" },
      { whole: "0", fraction: "00000015" },
      { whole: "20", fraction: "5" },
      { whole: "0", fraction: "" },
    ]);
  });
});
