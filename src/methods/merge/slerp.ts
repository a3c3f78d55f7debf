/**
 * Spherical interpolation between two models, tensor by tensor.
 *
 * Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985; used on weights as mergekit does.
 *
 *   cos Ω = ⟨a, b⟩ / (‖a‖ ‖b‖)                            all entries of a tensor are one vector
 *   θ     = sin((1 - t) Ω)/sin Ω · a + sin(t Ω)/sin Ω · b
 *   θ     = (1 - t) a + t b                               where |cos Ω| > 0.9995: nearly one direction
 *
 *   a → tensors[0], the base where one is named    b → tensors[1]    t → t
 *
 * Fine-tunes of one base are usually nearly one direction, so that most tensors are averaged linearly. Cost: two
 * passes over the models.
 */
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type MergeRole, type Method } from "../method.ts";

export interface SlerpOptions {
  /** 0 gives the first model, 1 the second; default 0.5. A list is a gradient over the layers. */
  readonly t?: number;
}

/** Above this |cosine| two vectors count as one direction. */
const collinear = 0.9995;

/** cos Ω; a vector of zeros is at right angles to every other. */
export function cosine(a: Float32Array, b: Float32Array): number {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const norms = Math.sqrt(aa) * Math.sqrt(bb);
  return norms > 0 ? Math.min(1, Math.max(-1, dot / norms)) : 0;
}

/** Factors of both vectors at a place between them. */
export function slerpFactors(cos: number, t: number): readonly [number, number] {
  if (Math.abs(cos) > collinear) return [1 - t, t];
  const omega = Math.acos(cos);
  return [Math.sin((1 - t) * omega) / Math.sin(omega), Math.sin(t * omega) / Math.sin(omega)];
}

/** The point at t between two tensors of one shape. */
export function slerpBetween(
  a: Float32Array,
  b: Float32Array,
  t: number,
): Float32Array<ArrayBuffer> {
  const [first, second] = slerpFactors(cosine(a, b), t);
  const result = new Float32Array(a.length);
  for (let i = 0; i < result.length; i++) result[i] = first * a[i] + second * b[i];
  return result;
}

const role: MergeRole<SlerpOptions> = {
  needsBase: false,
  models: { least: 2, most: 2 },
  perModel: [],
  merge: ({ tensors: [a, b] }, [{ t }]) =>
    new Tensor("float32", a.shape, slerpBetween(a.data, b.data, t!)),
};

export const slerp: Method<SlerpOptions> = defineMethod<SlerpOptions>({
  id: "slerp",
  number: null,
  title: "SLERP",
  capability: "merge",
  summary: "Interpolates two models along the arc between their weights.",
  paper: {
    title: "Animating Rotation with Quaternion Curves",
    year: 1985,
    url: "https://doi.org/10.1145/325165.325242",
  },
  implementation: "parity",
  options: {
    t: {
      type: "number",
      default: 0.5,
      range: [0, 1],
      about: "0 gives the first model (the base where one is named), 1 the second",
    },
  },
  roles: { merge: role },
});
