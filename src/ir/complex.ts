/** Complex numbers as pairs of real values. */
import { add, div, mul, neg, sqrt, square, sub } from "./elementwise.ts";
import type { Operand, Value } from "./graph.ts";

/** Real and imaginary parts, of shapes that broadcast. */
export interface Complex {
  readonly re: Operand;
  readonly im: Operand;
}

export interface ComplexValue extends Complex {
  readonly re: Value;
  readonly im: Value;
}

export function complexAdd(a: Complex, b: Complex): ComplexValue {
  return { re: add(a.re, b.re), im: add(a.im, b.im) };
}

export function complexMul(a: Complex, b: Complex): ComplexValue {
  return {
    re: sub(mul(a.re, b.re), mul(a.im, b.im)),
    im: add(mul(a.re, b.im), mul(a.im, b.re)),
  };
}

export function conjugate(a: Complex): { re: Operand; im: Value } {
  return { re: a.re, im: neg(a.im) };
}

/** a / b = a b̄ / |b|² */
export function complexDiv(a: Complex, b: Complex): ComplexValue {
  const size = add(square(b.re), square(b.im));
  const product = complexMul(a, conjugate(b));
  return { re: div(product.re, size), im: div(product.im, size) };
}

/** |a| */
export function complexAbs(a: Complex): Value {
  return sqrt(add(square(a.re), square(a.im)));
}
