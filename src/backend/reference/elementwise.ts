import { StateError } from "../../errors.ts";
import type { BinaryOp, BitwiseOp, CompareOp, LogicalOp, UnaryOp } from "../../ir/attrs.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { bfloatToFloat, floatToBfloat, floatToHalf, halfToFloat } from "../../tensor/half.ts";
import { erf } from "./erf.ts";
import { broadcastStrides, eachIndex, type Kernel, type Kernels, make, offsetOf } from "./nd.ts";

const unary: Record<UnaryOp, (x: number) => number> = {
  neg: (x) => -x,
  abs: Math.abs,
  sign: Math.sign,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  sin: Math.sin,
  cos: Math.cos,
  tanh: Math.tanh,
  erf,
  sigmoid: (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x))),
  floor: Math.floor,
  ceil: Math.ceil,
  round: roundHalfToEven,
  reciprocal: (x) => 1 / x,
  relu: (x) => Math.max(x, 0),
  softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
};

type Pairwise = (a: number, b: number) => number;
type PairwiseOp = BinaryOp | CompareOp | LogicalOp | BitwiseOp;

const binary: Record<PairwiseOp, Pairwise> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  // JavaScript alone gives NaN for 1 to the power of infinity or NaN.
  pow: (a, b) => (a === 1 ? 1 : a ** b),
  // As fmod: the sign of the dividend.
  mod: (a, b) => a % b,
  min: Math.min,
  max: Math.max,
  equal: (a, b) => Number(a === b),
  less: (a, b) => Number(a < b),
  lessOrEqual: (a, b) => Number(a <= b),
  and: (a, b) => a & b,
  or: (a, b) => a | b,
  xor: (a, b) => a ^ b,
  bitAnd: (a, b) => a & b,
  bitOr: (a, b) => a | b,
  bitXor: (a, b) => a ^ b,
};

/** Where 32-bit integers differ from numbers. Sums and differences are exact and wrap when stored. */
const binaryInt: { readonly [O in BinaryOp]?: Pairwise } = {
  mul: Math.imul,
  div: (a, b) => Math.trunc(a / divisor("div", a, b)),
  pow: integerPower,
  // The sign of the divisor.
  mod: (a, b) => {
    const rest = a % divisor("mod", a, b);
    return rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest;
  },
};

function divisor(where: string, a: number, b: number): number {
  if (b === 0) throw new StateError(`${where}: int32 division by zero, ${a} by 0.`);
  return b;
}

function integerPower(base: number, exponent: number): number {
  if (exponent < 0) return Math.trunc(base ** exponent);
  let result = 1;
  for (let i = 0; i < exponent; i++) result = Math.imul(result, base);
  return result;
}

function roundHalfToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  const isUp = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  const whole = isUp ? floor + 1 : floor;
  // -0.5 rounds to -0.
  return whole === 0 ? x * 0 : whole;
}

/** A number as another type holds it; integer arrays truncate and wrap when stored to. */
function convert(x: number, to: Dtype): number {
  if (to === "bool") return Number(x !== 0);
  if (to === "float16") return halfToFloat(floatToHalf(x));
  if (to === "bfloat16") return bfloatToFloat(floatToBfloat(x));
  return to === "int64" ? Math.trunc(x) : x;
}

function map(fn: (x: number) => number): Kernel<UnaryOp | "not" | "isNan"> {
  return ([x], _, [spec]) => {
    const y = make(spec!);
    for (let i = 0; i < y.data.length; i++) y.data[i] = fn(x!.data[i]!);
    return [y];
  };
}

function broadcast(fn: (...values: number[]) => number): Kernel<PairwiseOp | "where"> {
  return (inputs, _, [spec]) => {
    const y = make(spec!);
    const strides = inputs.map((input) => broadcastStrides(input.shape, spec!.shape.length));
    const values = new Array<number>(inputs.length);
    eachIndex(y.shape, (index, flat) => {
      for (let i = 0; i < inputs.length; i++) {
        values[i] = inputs[i]!.data[offsetOf(index, strides[i]!)]!;
      }
      y.data[flat] = fn(...values);
    });
    return [y];
  };
}

function pairwise(op: PairwiseOp): Kernel<PairwiseOp> {
  return (inputs, attrs, outputs) => {
    const forInt = inputs[0]!.dtype === "int32" ? binaryInt[op as BinaryOp] : undefined;
    return broadcast(forInt ?? binary[op])(inputs, attrs, outputs);
  };
}

export const elementwise: Kernels = {
  ...Object.fromEntries(Object.entries(unary).map(([op, fn]) => [op, map(fn)])),
  ...Object.fromEntries(Object.keys(binary).map((op) => [op, pairwise(op as PairwiseOp)])),
  not: map((x) => 1 - x),
  isNan: map((x) => Number(Number.isNaN(x))),
  where: broadcast((condition, a, b) => (condition ? a! : b!)),
  cast: ([x], { to }, outputs) => map((value) => convert(value, to))([x!], {}, outputs),
  stopGradient: (inputs) => inputs,
};
