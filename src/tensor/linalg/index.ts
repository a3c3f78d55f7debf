/** Linear algebra on the host, in double precision. */
export { type Eigen, eigenSymmetric } from "./eigen.ts";
export {
  columnsOf,
  frobenius,
  identity,
  type Matrix,
  type MultiplyOptions,
  matrix,
  matrixOf,
  multiply,
  rowsOf,
  tensorOf,
  transpose,
} from "./matrix.ts";
export { productSvd } from "./product-svd.ts";
export { leastSquares, type Qr, qr } from "./qr.ts";
export { randomSvd } from "./random-svd.ts";
export { cholesky, choleskySolve, inverse, inverseFactor, solve } from "./solve.ts";
export { type Svd, svd } from "./svd.ts";
export { type TopSvdOptions, topSvd } from "./top-svd.ts";
