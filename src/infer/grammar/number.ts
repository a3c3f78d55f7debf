/**
 * JSON numbers as automata over bytes: with caps on digits, so that a number ends, and within bounds, which are
 * compared digit by digit as the number is written.
 */
import { OptionError } from "../../errors.ts";
import { type Dfa, explore } from "./dfa.ts";

const maxStates = 20_000;
/** What ECMA-262 writes: up to 21 digits before the point, 1e-6 with 17 digits after it. */
const maxWhole = 21;
const maxFraction = 23;
/** Integers up to 2^53 have so many digits. */
const maxInteger = 16;
/** With one digit before the point, below the largest number. */
const maxExponent = 307;

export interface NumberOptions {
  readonly isInteger: boolean;
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
  /** Above 0. */
  readonly multipleOf?: number;
  /** Begins errors: the place in the schema. */
  readonly where: string;
}

/** A number that is not negative, as its digits. */
interface Decimal {
  readonly whole: string;
  /** Without zeros at its end. */
  readonly fraction: string;
}

/** All digits of |x|, without an exponent. */
export function decimalOf(x: number): Decimal {
  const [mantissa, exponent = "0"] = String(Math.abs(x)).split("e") as [string, string?];
  const [whole, fraction = ""] = mantissa.split(".") as [string, string?];
  const shift = Number(exponent);
  const all = whole + fraction;
  const point = whole.length + shift;
  const left = point > 0 ? all.padEnd(point, "0").slice(0, point) : "";
  const right = point > 0 ? all.slice(point) : "0".repeat(-point) + all;
  return { whole: left.replace(/^0+(?=.)/, "") || "0", fraction: right.replace(/0+$/, "") };
}

/** How the digits so far compare with a decimal's: -1 below, 0 equal so far, 1 above. */
interface Comparison {
  readonly sign: -1 | 0 | 1;
  /** Digits of the whole part so far, or of the fraction. */
  readonly at: number;
  readonly isFraction: boolean;
}

const beginning: Comparison = { sign: 0, at: 0, isFraction: false };

function afterDigit(
  bound: Decimal,
  { sign, at, isFraction }: Comparison,
  digit: number,
): Comparison {
  const other = isFraction ? Number(bound.fraction[at] ?? 0) : Number(bound.whole[at] ?? 0);
  const own = sign !== 0 ? sign : (Math.sign(digit - other) as -1 | 0 | 1);
  if (!isFraction) return { sign: own, at: Math.min(at + 1, bound.whole.length + 1), isFraction };
  return { sign: own, at: own !== 0 ? 0 : Math.min(at + 1, bound.fraction.length), isFraction };
}

function afterPoint(bound: Decimal, { sign, at }: Comparison): Comparison {
  const longer = Math.sign(at - bound.whole.length) as -1 | 0 | 1;
  return { sign: longer !== 0 ? longer : sign, at: 0, isFraction: true };
}

function final(bound: Decimal, comparison: Comparison): -1 | 0 | 1 {
  const { sign, at } = comparison.isFraction ? comparison : afterPoint(bound, comparison);
  if (sign !== 0) return sign;
  return at < bound.fraction.length ? -1 : 0;
}

/** What divides a number: `unit` · 10^-places. */
interface Step {
  readonly unit: number;
  readonly places: number;
}

type Phase =
  | "start"
  | "minus"
  | "zero"
  | "whole"
  | "point"
  | "fraction"
  | "mark"
  | "sign"
  | "exponent";

interface State {
  readonly phase: Phase;
  readonly isNegative: boolean;
  /** Digits of the part that is written. */
  readonly digits: number;
  /** More than one digit stands before the point. */
  readonly isLong: boolean;
  /** Value of the exponent so far. */
  readonly exponent: number;
  readonly low: Comparison;
  readonly high: Comparison;
  readonly remainder: number;
  readonly isZero: boolean;
}

function keyOf(state: State): string {
  const { phase, isNegative, digits, isLong, exponent, low, high, remainder, isZero } = state;
  const own = [phase, isNegative, digits, isLong, exponent, remainder, isZero];
  for (const { sign, at, isFraction } of [low, high]) own.push(sign, at, isFraction);
  return own.join();
}

interface Bound {
  readonly value: number;
  readonly decimal: Decimal;
  /** The bound itself is left out. */
  readonly isOpen: boolean;
}

function boundOf(
  closed: number | undefined,
  open: number | undefined,
  tighter: (a: number, b: number) => boolean,
): Bound | undefined {
  if (closed === undefined && open === undefined) return undefined;
  const isOpen = open !== undefined && (closed === undefined || !tighter(closed, open));
  const value = isOpen ? open : closed!;
  return { value, decimal: decimalOf(value), isOpen };
}

function stepOf(multipleOf: number | undefined, where: string): Step | undefined {
  if (multipleOf === undefined) return undefined;
  const { whole, fraction } = decimalOf(multipleOf);
  const [unit, places] = [Number(whole + fraction), fraction.length];
  if (unit >= 1 && unit <= 2000 && places <= 12) return { unit, places };
  throw new OptionError(
    `${where}: multipleOf ${multipleOf} cannot be held to digit by digit — its digits must be a number up to 2000, with at most 12 after the point.`,
  );
}

/**
 * The JSON numbers within bounds; `undefined` where there are none. Exponents are taken only where there are
 * neither bounds nor steps; a whole number has no point.
 * @throws OptionError when bounds or steps need too many states, naming the place.
 */
export function jsonNumber(options: NumberOptions): Dfa | undefined {
  const { isInteger, where } = options;
  const least = boundOf(options.minimum, options.exclusiveMinimum, (a, b) => a > b);
  const most = boundOf(options.maximum, options.exclusiveMaximum, (a, b) => a < b);
  const step = stepOf(options.multipleOf, where);
  const isPlain = !least && !most && !step;
  const wholeDigits = isInteger ? maxInteger : maxWhole;
  const fractionDigits = isInteger ? 0 : maxFraction;
  const zero: Decimal = { whole: "0", fraction: "" };
  const [low, high] = [least?.decimal ?? zero, most?.decimal ?? zero];

  const digit = (state: State, value: number, phase: Phase): State | undefined =>
    sooner({
      ...state,
      phase,
      digits: phase === state.phase ? state.digits + 1 : 1,
      isLong: isPlain && (state.isLong || (phase === "whole" && state.phase === "whole")),
      low: least ? afterDigit(low, state.low, value) : beginning,
      high: most ? afterDigit(high, state.high, value) : beginning,
      remainder: step ? (state.remainder * 10 + value) % step.unit : 0,
      isZero: state.isZero && value === 0,
    });

  /** Drops what is beyond a bound whatever follows, so that few states are looked at. */
  const sooner = (state: State): State | undefined => {
    const { isNegative } = state;
    const [bound, decimal, own] = isNegative ? [least, low, state.low] : [most, high, state.high];
    if (!bound) return state;
    if (isNegative ? bound.value >= 0 : bound.value < 0) return undefined;
    const isBeyond = own.isFraction ? own.sign > 0 : own.at > decimal.whole.length;
    return isBeyond ? undefined : state;
  };

  const isWithin = (state: State): boolean => {
    const { isNegative, isZero } = state;
    const sign = isNegative && !isZero ? -1 : 1;
    if (least) {
      const own = compare(sign, isZero, state.low, least);
      if (own < 0 || (own === 0 && least.isOpen)) return false;
    }
    if (most) {
      const own = compare(sign, isZero, state.high, most);
      if (own > 0 || (own === 0 && most.isOpen)) return false;
    }
    return true;
  };

  const isMultiple = ({ phase, digits, remainder }: State): boolean => {
    if (!step) return true;
    const missing = step.places - (phase === "fraction" ? digits : 0);
    let own = remainder;
    for (let i = 0; i < missing; i++) own = (own * 10) % step.unit;
    return own === 0;
  };

  const start: State = {
    phase: "start",
    isNegative: false,
    digits: 0,
    isLong: false,
    exponent: 0,
    low: beginning,
    high: beginning,
    remainder: 0,
    isZero: true,
  };
  /** What stands before an exponent matters no more: there are no bounds. */
  const marked: State = { ...start, phase: "mark" };
  const found = explore<State>(
    {
      start,
      key: keyOf,
      accepts: (state) => {
        const { phase, isNegative, isZero } = state;
        if (phase === "exponent") return state.digits > 0;
        if (phase !== "zero" && phase !== "whole" && phase !== "fraction") return false;
        if (isNegative && isZero) return false;
        return isWithin(state) && isMultiple(state);
      },
      step: (state, byte) => {
        const { phase, digits } = state;
        const value = byte - 0x30;
        const isDigit = value >= 0 && value <= 9;
        switch (phase) {
          case "start":
            if (byte === 0x2d) return { ...state, phase: "minus", isNegative: true };
            return isDigit ? digit(state, value, value === 0 ? "zero" : "whole") : undefined;
          case "minus":
            return isDigit ? digit(state, value, value === 0 ? "zero" : "whole") : undefined;
          case "zero":
          case "whole":
            if (isDigit) {
              const isFull = phase === "zero" || digits >= wholeDigits;
              return isFull ? undefined : digit(state, value, "whole");
            }
            if (byte === 0x2e && fractionDigits > 0) {
              return sooner({
                ...state,
                phase: "point",
                digits: 0,
                low: least ? afterPoint(low, state.low) : beginning,
                high: most ? afterPoint(high, state.high) : beginning,
              });
            }
            return canMark(state, byte) ? marked : undefined;
          case "point":
          case "fraction": {
            if (isDigit) {
              const written = phase === "fraction" ? digits : 0;
              // After the last place that a multiple may have only zeros follow, which say nothing.
              if (written >= fractionDigits || (step && written >= step.places)) return undefined;
              return digit(state, value, "fraction");
            }
            return phase === "fraction" && canMark(state, byte) ? marked : undefined;
          }
          case "mark":
            if (byte === 0x2b || byte === 0x2d) return { ...state, phase: "sign" };
            return isDigit ? exponentDigit(state, value) : undefined;
          case "sign":
          case "exponent":
            return isDigit ? exponentDigit(state, value) : undefined;
        }
      },
    },
    {
      where,
      maxStates,
      bytes: [0x2b, 0x2d, 0x2e, 0x45, 0x65, ...Array.from({ length: 10 }, (_, i) => 0x30 + i)],
    },
  );
  return found?.dfa;

  /** Whether an exponent may follow. */
  function canMark({ phase, isLong }: State, byte: number): boolean {
    if (!isPlain || isInteger || isLong || phase === "zero") return false;
    return byte === 0x65 || byte === 0x45;
  }

  function exponentDigit(state: State, value: number): State | undefined {
    const exponent = state.exponent * 10 + value;
    const isLeadingZero = state.phase === "exponent" && state.exponent === 0;
    if (exponent > maxExponent || isLeadingZero) return undefined;
    return { ...state, phase: "exponent", digits: 1, exponent };
  }

  function compare(sign: number, isZero: boolean, own: Comparison, bound: Bound): number {
    if (isZero) return Math.sign(0 - bound.value);
    const other = bound.value < 0 ? -1 : 1;
    if (bound.value === 0 || sign !== other) return sign;
    return sign * final(bound.decimal, own);
  }
}
