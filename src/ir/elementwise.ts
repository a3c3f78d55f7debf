/** Element by element; shapes broadcast. A plain number takes the type of the other operand. */
import type { Dtype } from "../tensor/dtype.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { BinaryOp, BitwiseOp, CompareOp, LogicalOp, UnaryOp } from "./attrs.ts";
import { emit } from "./emit.ts";
import { graphFor, type Operand, Value } from "./graph.ts";

type Unary = (x: Operand) => Value;
type Binary = (a: Operand, b: Operand) => Value;

const unary =
  (op: UnaryOp): Unary =>
  (x) =>
    emit(op, [x], {});

const binary =
  (op: BinaryOp | CompareOp | LogicalOp | BitwiseOp): Binary =>
  (a, b) =>
    emit(op, [a, b], {});

export const neg: Unary = unary("neg");
export const abs: Unary = unary("abs");
/** -1, 0 or 1. */
export const sign: Unary = unary("sign");
export const exp: Unary = unary("exp");
/** Natural logarithm. */
export const log: Unary = unary("log");
export const sqrt: Unary = unary("sqrt");
export const sin: Unary = unary("sin");
export const cos: Unary = unary("cos");
export const tanh: Unary = unary("tanh");
export const erf: Unary = unary("erf");
export const sigmoid: Unary = unary("sigmoid");
export const floor: Unary = unary("floor");
export const ceil: Unary = unary("ceil");
/** To the nearest whole number, ties to even. */
export const round: Unary = unary("round");
export const reciprocal: Unary = unary("reciprocal");
export const relu: Unary = unary("relu");
/** log(1 + e^x) */
export const softplus: Unary = unary("softplus");

export const add: Binary = binary("add");
export const sub: Binary = binary("sub");
export const mul: Binary = binary("mul");
export const div: Binary = binary("div");
export const pow: Binary = binary("pow");
/** Remainder with the sign of the divisor for int32, of the dividend for floats (fmod). */
export const mod: Binary = binary("mod");
export const minimum: Binary = binary("min");
export const maximum: Binary = binary("max");

export const equal: Binary = binary("equal");
export const less: Binary = binary("less");
export const lessOrEqual: Binary = binary("lessOrEqual");
export const greater: Binary = (a, b) => less(b, a);
export const greaterOrEqual: Binary = (a, b) => lessOrEqual(b, a);
export const notEqual: Binary = (a, b) => not(equal(a, b));

export const and: Binary = binary("and");
export const or: Binary = binary("or");
export const xor: Binary = binary("xor");
export const bitAnd: Binary = binary("bitAnd");
export const bitOr: Binary = binary("bitOr");
export const bitXor: Binary = binary("bitXor");

export function not(x: Operand): Value {
  return emit("not", [x], {});
}

export function isNan(x: Operand): Value {
  return emit("isNan", [x], {});
}

/** `a` where the condition is true, else `b`. */
export function where(condition: Operand, a: Operand, b: Operand): Value {
  const typed = [a, b].find((x) => x instanceof Value || x instanceof Tensor);
  const graph = graphFor("where", [condition, a, b]);
  const dtype = (typed as Value | undefined)?.dtype ?? "float32";
  return emit("where", [condition, graph.lift(a, dtype), graph.lift(b, dtype)], {});
}

/** The numbers in another type; towards zero when it holds whole numbers only. */
export function cast(x: Operand, to: Dtype): Value {
  if (x instanceof Value && x.dtype === to) return x;
  return emit("cast", [x], { to });
}

export function square(x: Operand): Value {
  return mul(x, x);
}

/** 1 / √x */
export function rsqrt(x: Operand): Value {
  return reciprocal(sqrt(x));
}

export function clamp(x: Operand, low: number, high: number): Value {
  return minimum(maximum(x, low), high);
}

/** The value, through which no derivative passes. */
export function stopGradient(x: Operand): Value {
  return emit("stopGradient", [x], {});
}
