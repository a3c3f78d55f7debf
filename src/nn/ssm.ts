/**
 * State-space layers: linear recurrences, the selective scan (Mamba) and its scalar form (Mamba-2).
 *
 * Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752:
 *
 *   h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t        per channel d and state n
 *   y_t = Σ_n C_t h_t + D x_t
 *
 * Dao and Gu, "Transformers are SSMs" (SSD), 2024, arXiv:2405.21060: A is one number per head, so that
 * a chunk of steps is a masked product of matrices (section 6):
 *
 *   Y = (L ∘ C Bᵀ) (Δ x) inside a chunk,   L_ij = exp(Σ_{j<k≤i} Δ_k A)
 *
 *   Δ → delta, x → x, A → a, B → b, C → c, D → skip, h → state
 */
import { OptionError } from "../errors.ts";
import { add, exp, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { repeatInterleave } from "../ir/indexing.ts";
import { expand, unsqueeze } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { selectiveScan as selectiveScanOf } from "../ir/selective-scan.ts";
import { ssd as ssdOf } from "../ir/ssd.ts";
import type { Dim } from "../tensor/shape.ts";

export { linearRecurrence, type RecurrenceOptions } from "../ir/recurrence.ts";

export interface SelectiveScanInputs {
  /** (B, T, D) */
  readonly x: Value;
  /** Step sizes, positive: (B, T, D). */
  readonly delta: Value;
  /** Negative: (D, N). */
  readonly a: Value;
  /** (B, T, N) */
  readonly b: Value;
  /** (B, T, N) */
  readonly c: Value;
  /** Share of x that passes by, (D,). */
  readonly skip?: Value;
  /** Steps before which the state is cleared, bool (B, T): packed sequences. */
  readonly resets?: Value;
  /** The state before the first step, (B, D, N); default zeros. */
  readonly initial?: Value;
}

export interface ChunkOptions {
  /** Steps of a chunk, between which states are kept; default 32. */
  readonly chunk?: number;
}

function chunkOf(where: string, options: ChunkOptions, length: Dim | undefined): number {
  const chunk = options.chunk ?? 32;
  if (!Number.isInteger(chunk) || chunk < 1) {
    throw new OptionError(`${where}: chunk must be a whole number from 1, got ${chunk}.`);
  }
  return typeof length === "number" ? Math.max(1, Math.min(chunk, length)) : chunk;
}

/** Zeros of a type. */
function zeros(like: Value, shape: readonly (Dim | undefined)[]): Value {
  return expand(
    like.graph.lift(0, like.dtype),
    shape.map((dim) => dim ?? 0),
  );
}

/**
 * The recurrence of Mamba. No tensor holds (B, T, D, N): the loop forms its coefficients, and the
 * backward pass keeps the state at the start of every chunk and runs the chunk again.
 * @returns y (B, T, D), and the state after the last step (B, D, N)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function selectiveScan(
  inputs: SelectiveScanInputs,
  options: ChunkOptions = {},
): { y: Value; state: Value } {
  const { skip, ...rest } = inputs;
  const { x, a } = inputs;
  const chunk = chunkOf("selectiveScan", options, x.shape[1]);
  const initial = inputs.initial ?? zeros(x, [x.shape[0], x.shape[2], a.shape[1]]);
  const { y, state } = selectiveScanOf({ ...rest, initial }, chunk);
  return { y: skip ? add(y, mul(x, skip)) : y, state };
}

export interface SelectiveStep {
  /** (B, D) */
  readonly x: Value;
  /** (B, D) */
  readonly delta: Value;
  /** (D, N) */
  readonly a: Value;
  /** (B, N) */
  readonly b: Value;
  /** (B, N) */
  readonly c: Value;
  /** (D,) */
  readonly skip?: Value;
}

/** One token of `selectiveScan`: state (B, D, N) → y (B, D) and the next state. */
export function selectiveStep(state: Value, step: SelectiveStep): [y: Value, next: Value] {
  const { x, delta, a, b, c, skip } = step;
  const decay = exp(mul(unsqueeze(delta, 2), a));
  const drive = mul(unsqueeze(mul(delta, x), 2), unsqueeze(b, 1));
  const next = add(mul(decay, state), drive);
  const y = sum(mul(next, unsqueeze(c, 1)), -1);
  return [skip ? add(y, mul(x, skip)) : y, next];
}

export interface SsdInputs {
  /** (B, T, H, P) */
  readonly x: Value;
  /** Step sizes, positive: (B, T, H). */
  readonly delta: Value;
  /** Negative, one per head: (H,). */
  readonly a: Value;
  /** (B, T, G, N); heads of a group, neighbours, share it. */
  readonly b: Value;
  /** (B, T, G, N) */
  readonly c: Value;
  /** Share of x that passes by, (H,). */
  readonly skip?: Value;
  /** Steps before which the state is cleared, bool (B, T): packed sequences. */
  readonly resets?: Value;
  /** The state before the first step, (B, H, P, N); default zeros. */
  readonly initial?: Value;
}

/**
 * The recurrence of Mamba-2 by products of matrices over chunks of steps.
 * @returns y (B, T, H, P), and the state after the last step (B, H, P, N)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function ssd(inputs: SsdInputs, options: ChunkOptions = {}): { y: Value; state: Value } {
  const { skip, ...rest } = inputs;
  const { x, b } = inputs;
  const chunk = chunkOf("ssd", options, x.shape[1]);
  const [batch, , heads, width] = x.shape;
  const initial = inputs.initial ?? zeros(x, [batch, heads, width, b.shape[3]]);
  const { y, state } = ssdOf({ ...rest, initial }, chunk);
  return { y: skip ? add(y, mul(x, unsqueeze(skip, 1))) : y, state };
}

export interface SsdStep {
  /** (B, H, P) */
  readonly x: Value;
  /** (B, H) */
  readonly delta: Value;
  /** (H,) */
  readonly a: Value;
  /** (B, G, N) */
  readonly b: Value;
  /** (B, G, N) */
  readonly c: Value;
  /** (H,) */
  readonly skip?: Value;
}

/** One token of `ssd`: state (B, H, P, N) → y (B, H, P) and the next state. */
export function ssdStep(state: Value, step: SsdStep): [y: Value, next: Value] {
  const { x, delta, a, b, c, skip } = step;
  const perGroup = (x.shape[1] as number) / (b.shape[1] as number);
  const rows = (value: Value): Value => unsqueeze(repeatInterleave(value, perGroup, 1), 2);
  const decay = exp(mul(delta, a));
  const drive = mul(unsqueeze(mul(x, unsqueeze(delta, 2)), 3), rows(b));
  const next = add(mul(state, unsqueeze(unsqueeze(decay, 2), 3)), drive);
  const y = sum(mul(next, rows(c)), -1);
  return [skip ? add(y, mul(x, unsqueeze(skip, 1))) : y, next];
}
