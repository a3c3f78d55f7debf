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
import { OptionError, ShapeError } from "../errors.ts";
import { customVjp, scan } from "../ir/control.ts";
import { add, and, cast, equal, exp, mul, not, sub, where } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { repeatInterleave, trilMask } from "../ir/indexing.ts";
import {
  concat,
  expand,
  pad,
  reshape,
  slice,
  swapAxes,
  transpose,
  unsqueeze,
} from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { cumSum, sum } from "../ir/reduce.ts";
import { sameShape, showShape, toStatic } from "../tensor/shape.ts";

function fill(like: Value, value: number, shape: readonly number[]): Value {
  return expand(like.graph.lift(value, like.dtype), shape);
}

function need(where_: string, fits: boolean, wanted: string, values: readonly Value[]): void {
  if (fits) return;
  throw new ShapeError(
    `${where_}: needs ${wanted}, got ${values.map((value) => showShape(value.shape)).join(", ")}.`,
  );
}

export interface RecurrenceOptions {
  /** The state before the first step, one step's shape; default zeros. */
  readonly initial?: Value;
  /** From the last step to the first: h_t = a_t h_{t+1} + b_t. */
  readonly reverse?: boolean;
}

/**
 * h_t = a_t h_{t-1} + b_t for all steps, element by element: a and b (T, …) → h (T, …).
 * Its derivative is the same recurrence, backwards.
 * @throws ShapeError when a and b differ.
 */
export function linearRecurrence(a: Value, b: Value, options: RecurrenceOptions = {}): Value {
  const reverse = options.reverse ?? false;
  need("linearRecurrence", sameShape(a.shape, b.shape) && a.rank > 0, "a and b (T, …)", [a, b]);
  const step = toStatic(a.shape.slice(1), "linearRecurrence");
  const length = toStatic(a.shape, "linearRecurrence")[0]!;
  const initial = options.initial ?? fill(a, 0, step);
  if (length === 0) return b;
  const run = (decay: Value, drive: Value, first: Value): Value =>
    scan(
      (h: Value, [at, bt]: readonly [Value, Value]) => {
        const next = add(mul(at, h), bt);
        return [next, next] as const;
      },
      first,
      [decay, drive] as const,
      { reverse },
    )[1];
  const solve = customVjp(
    run,
    ([decay, , first], [states], [ct]) => {
      // g_t = ct_t + a_{t+1} g_{t+1}; then db = g, da_t = g_t h_{t-1}, dh_0 = a_1 g_1.
      const shifted = neighbours(decay!, fill(decay!, 0, step), !reverse);
      const slope = linearRecurrence(shifted, ct!, { reverse: !reverse });
      const end = reverse ? length - 1 : 0;
      const edge = (x: Value): Value => reshape(slice(x, 0, end, end + 1), step);
      return [
        mul(slope, neighbours(states!, first!, reverse)),
        slope,
        mul(edge(decay!), edge(slope)),
      ];
    },
    "linearRecurrence",
  );
  return solve(a, b, initial)[0]!;
}

/** The steps moved by one: each sees the one before it (after it, with `after`), the end sees `edge`. */
function neighbours(x: Value, edge: Value, after: boolean): Value {
  const length = x.shape[0] as number;
  const row = reshape(edge, [1, ...edge.shape]);
  return after ? concat([slice(x, 0, 1), row]) : concat([row, slice(x, 0, 0, length - 1)]);
}

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

function chunkOf(where_: string, options: ChunkOptions, length: number): number {
  const chunk = options.chunk ?? 32;
  if (!Number.isInteger(chunk) || chunk < 1) {
    throw new OptionError(`${where_}: chunk must be a whole number from 1, got ${chunk}.`);
  }
  return Math.max(1, Math.min(chunk, length));
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
  const { x, delta, a, b, c, skip, resets } = inputs;
  const [batch, length, channels] = toStatic(x.shape, "selectiveScan") as [number, number, number];
  const states = a.shape[1] as number;
  const grid = [batch, length, states];
  const fits =
    x.rank === 3 &&
    sameShape(x.shape, delta.shape) &&
    sameShape(a.shape, [channels, states]) &&
    [b, c].every((value) => sameShape(value.shape, grid)) &&
    (!resets || sameShape(resets.shape, [batch, length]));
  const all = [x, delta, a, b, c, ...(resets ? [resets] : [])];
  need(
    "selectiveScan",
    fits,
    "x and delta (B, T, D), a (D, N), b and c (B, T, N), resets (B, T)",
    all,
  );
  const chunk = chunkOf("selectiveScan", options, length);
  const chunks = Math.ceil(length / chunk);
  // Steps of size 0 change nothing: (B, T, …) → (chunks, chunk, B, …)
  const parts = (value: Value, padding = 0): Value => {
    const rest = value.shape.slice(2) as number[];
    const first = transpose(value, [1, 0, ...rest.map((_, i) => i + 2)]);
    const none = first.shape.map(() => 0);
    const padded = pad(first, none, none.with(0, chunks * chunk - length), padding);
    return reshape(padded, [chunks, chunk, batch, ...rest]);
  };
  const keep = resets && parts(cast(not(resets), x.dtype), 1);
  // Inside, channels are last: rows of D numbers are long, rows of N short.
  const start = inputs.initial ? swapAxes(inputs.initial) : fill(x, 0, [batch, states, channels]);
  const rows = transpose(a);
  type Step = { x: Value; delta: Value; b: Value; c: Value; keep?: Value };
  const xs: Step = {
    x: parts(x),
    delta: parts(delta),
    b: parts(b),
    c: parts(c),
    ...(keep && { keep }),
  };
  const [state, ys] = scan(
    (outer: Value, part: Step) =>
      scan(
        (h: Value, step: Step) => {
          const held = step.keep ? mul(h, reshape(step.keep, [batch, 1, 1])) : h;
          const decay = exp(mul(unsqueeze(step.delta, 1), rows));
          const drive = dot(unsqueeze(step.b, 2), unsqueeze(mul(step.delta, step.x), 1));
          const next = add(mul(decay, held), drive);
          const y = dot(unsqueeze(step.c, 1), next);
          return [next, reshape(y, [batch, channels])] as const;
        },
        outer,
        part,
      ),
    start,
    xs,
  );
  // (chunks, chunk, B, D) → (B, T, D)
  const joined = slice(reshape(ys, [chunks * chunk, batch, channels]), 0, 0, length);
  const y = transpose(joined, [1, 0, 2]);
  return { y: skip ? add(y, mul(x, skip)) : y, state: swapAxes(state) };
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
  const { x, delta, a, b, c, skip, resets } = inputs;
  const [batch, length, heads, width] = toStatic(x.shape, "ssd") as [
    number,
    number,
    number,
    number,
  ];
  const [, , groups, states] = toStatic(b.shape, "ssd") as [number, number, number, number];
  const fits =
    x.rank === 4 &&
    b.rank === 4 &&
    sameShape(b.shape, c.shape) &&
    sameShape(delta.shape, [batch, length, heads]) &&
    sameShape(a.shape, [heads]) &&
    sameShape(b.shape.slice(0, 2), [batch, length]) &&
    heads % groups === 0 &&
    (!resets || sameShape(resets.shape, [batch, length]));
  const all = [x, delta, a, b, c, ...(resets ? [resets] : [])];
  need(
    "ssd",
    fits,
    "x (B, T, H, P), delta (B, T, H), a (H,), b and c (B, T, G, N), resets (B, T), G dividing H",
    all,
  );
  const chunk = chunkOf("ssd", options, length);
  const chunks = Math.ceil(length / chunk);
  const blocks = chunks * batch;
  const perGroup = heads / groups;
  // (B, T, K, …) → (chunks·B, K, chunk, …); steps of size 0 change nothing.
  const parts = (value: Value): Value => {
    const rest = value.shape.slice(2) as number[];
    const none = value.shape.map(() => 0);
    const padded = pad(value, none, none.with(1, chunks * chunk - length));
    const split = reshape(padded, [batch, chunks, chunk, ...rest]);
    const after = rest.slice(1).map((_, i) => i + 4);
    return reshape(transpose(split, [1, 0, 3, 2, ...after]), [
      blocks,
      rest[0]!,
      chunk,
      ...rest.slice(1),
    ]);
  };
  const drive = parts(mul(x, unsqueeze(delta, 3))); // (blocks, H, L, P)
  const [keys, queries] = [parts(b), parts(c)]; // (blocks, G, L, N)
  const logs = cumSum(parts(mul(delta, a)), 2); // (blocks, H, L)
  const last = slice(logs, 2, chunk - 1); // (blocks, H, 1)

  // Resets cut the paths between steps: equal counts of resets so far mean that none lies between.
  const count = resets && cumSum(parts(unsqueeze(cast(resets, "int32"), 2)), 2); // (blocks, 1, L)
  const open = (path: Value | undefined, log: Value): Value => {
    const decay = exp(path ? where(path, log, 0) : log);
    return path ? mul(decay, cast(path, decay.dtype)) : decay;
  };
  const past = trilMask(chunk, chunk);
  const inside = count ? and(past, equal(unsqueeze(count, 3), unsqueeze(count, 2))) : past;
  const fromStart = open(count && equal(count, 0), logs); // (blocks, H, L)
  const lastCount = count && slice(count, 2, chunk - 1);
  const toEnd = open(count && equal(count, lastCount!), sub(last, logs));
  const across = open(lastCount && equal(lastCount, 0), last); // (blocks, H, 1)

  const perHead = (value: Value): Value =>
    groups === heads ? value : repeatInterleave(value, perGroup, 1);
  const between = open(inside, sub(unsqueeze(logs, 3), unsqueeze(logs, 2))); // (blocks, H, L, L)
  const scores = mul(perHead(dot(queries, keys, { transB: true })), between);
  const local = dot(scores, drive);

  // What each chunk adds to the state, then the state before each chunk.
  const added = dot(mul(drive, unsqueeze(toEnd, 3)), perHead(keys), { transA: true });
  const grid = [chunks, batch, heads, width, states];
  const decay = expand(reshape(across, [chunks, batch, heads, 1, 1]), grid);
  const initial = inputs.initial ?? fill(x, 0, grid.slice(1));
  const after = linearRecurrence(decay, reshape(added, grid), { initial });
  const before = neighbours(after, initial, false);
  const carried = dot(perHead(queries), reshape(before, [blocks, heads, width, states]), {
    transB: true,
  });
  const joined = add(local, mul(carried, unsqueeze(fromStart, 3))); // (blocks, H, L, P)
  const steps = transpose(reshape(joined, [chunks, batch, heads, chunk, width]), [1, 0, 3, 2, 4]);
  const y = slice(reshape(steps, [batch, chunks * chunk, heads, width]), 1, 0, length);
  const state = reshape(slice(after, 0, chunks - 1), grid.slice(1));
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
