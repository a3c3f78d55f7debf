/** The decomposition of a product of thin matrices, without the product. */
import { type Matrix, multiply, transpose } from "./matrix.ts";
import { qr } from "./qr.ts";
import { type Svd, svd, withSigns } from "./svd.ts";

/**
 * B A = U diag(s) Vᵀ with k = min(m, r, n): from B = Q R and Aᵀ = P S it is that of R Sᵀ, turned by Q and P.
 * @param b (m, r) @param a (r, n)
 */
export function productSvd(b: Matrix, a: Matrix): Svd {
  const [left, right] = [qr(b), qr(transpose(a))];
  const core = svd(multiply(left.r, right.r, { transB: true }));
  return withSigns({
    u: multiply(left.q, core.u),
    s: core.s,
    vt: multiply(core.vt, right.q, { transB: true }),
  });
}
