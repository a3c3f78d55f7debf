/**
 * The one table of tolerances. A difference is held against the size of the numbers compared, and
 * against 1 where they are smaller.
 */
export const tolerance = {
  float64: 1e-10,
  float32: 1e-5,
  float16: 1e-2,
  /** Derivatives against central differences, in float64. */
  gradient: 1e-6,
} as const;
