/**
 * The recurrence of Mamba-2 by products of matrices over chunks of steps.
 *
 * Dao and Gu, "Transformers are SSMs" (SSD), 2024, arXiv:2405.21060: A is one number per head, so that
 * a chunk of steps is a masked product of matrices (section 6):
 *
 *   Y = (L ∘ C Bᵀ) (Δ x) inside a chunk,   L_ij = exp(Σ_{j<k≤i} Δ_k A)
 *
 *   Δ → delta, x → x, A → a, B → b (keys), C → c (queries)
 */
import { type Dim, mulDims, type Shape, toStatic } from "../tensor/shape.ts";
import type { ChunkAttrs } from "./attrs.ts";
import { add, and, cast, equal, exp, mul, sub, where } from "./elementwise.ts";
import { emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { repeatInterleave, trilMask } from "./indexing.ts";
import { expand, pad, reshape, slice, transpose, unsqueeze } from "./layout.ts";
import { dot } from "./linear.ts";
import { linearRecurrence, neighbours } from "./recurrence.ts";
import { cumSum, sum } from "./reduce.ts";

export interface SsdOperands {
  /** (B, T, H, P) */
  readonly x: Operand;
  /** Step sizes, positive: (B, T, H). */
  readonly delta: Operand;
  /** Negative, one per head: (H,). */
  readonly a: Operand;
  /** (B, T, G, N); heads of a group, neighbours, share it. */
  readonly b: Operand;
  /** (B, T, G, N) */
  readonly c: Operand;
  /** The state before the first step, (B, H, P, N). */
  readonly initial: Operand;
  /** Steps before which the state is cleared, bool (B, T). */
  readonly resets?: Operand;
}

/**
 * @param chunk steps that are one product
 * @returns y (B, T, H, P), and the state after the last step (B, H, P, N)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function ssd(inputs: SsdOperands, chunk: number): { y: Value; state: Value } {
  const { x, delta, a, b, c, initial, resets } = inputs;
  const all = [x, delta, a, b, c, initial, ...(resets === undefined ? [] : [resets])];
  const graph = graphFor("ssd", all);
  const [y, state] = emitAll(
    "ssd",
    all.map((operand) => graph.lift(operand)),
    { chunk },
  );
  return { y: y!, state: state! };
}

/** Sizes of an SSD, and its sequences cut into chunks: blocks are chunks · B. */
export class SsdChunks {
  /** May be a symbol. */
  readonly batch: Dim;
  readonly length: number;
  readonly heads: number;
  readonly width: number;
  readonly groups: number;
  readonly states: number;
  readonly chunk: number;
  readonly count: number;

  constructor(x: Value, b: Value, chunk: number) {
    this.batch = x.shape[0]!;
    [this.length, this.heads, this.width] = toStatic(x.shape.slice(1), "ssd") as [
      number,
      number,
      number,
    ];
    [this.groups, this.states] = toStatic(b.shape.slice(2), "ssd") as [number, number];
    this.chunk = chunk;
    this.count = Math.ceil(this.length / chunk);
  }

  get blocks(): Dim {
    return mulDims(this.count, this.batch);
  }

  /** Of the state before or after each chunk. */
  get grid(): Shape {
    return [this.count, this.batch, this.heads, this.width, this.states];
  }

  /** (B, T, K, …) → (blocks, K, chunk, …); steps of size 0 change nothing. */
  cut(value: Value): Value {
    const rest = value.shape.slice(2) as number[];
    const none = value.shape.map(() => 0);
    const padded = pad(value, none, none.with(1, this.count * this.chunk - this.length));
    const split = reshape(padded, [this.batch, this.count, this.chunk, ...rest]);
    const after = rest.slice(1).map((_, i) => i + 4);
    return reshape(transpose(split, [1, 0, 3, 2, ...after]), [
      this.blocks,
      rest[0]!,
      this.chunk,
      ...rest.slice(1),
    ]);
  }

  /** (blocks, K, chunk, …) → (B, T, K, …) */
  join(value: Value): Value {
    const [, k, , ...rest] = value.shape as readonly number[];
    const split = reshape(value, [this.count, this.batch, k!, this.chunk, ...rest]);
    const steps = transpose(split, [1, 0, 3, 2, ...rest.map((_, i) => i + 4)]);
    return slice(
      reshape(steps, [this.batch, this.count * this.chunk, k!, ...rest]),
      1,
      0,
      this.length,
    );
  }

  /** Groups to heads: axis 1. */
  perHead(value: Value): Value {
    const { groups, heads } = this;
    return groups === heads ? value : repeatInterleave(value, heads / groups, 1);
  }

  /** Heads to groups, summed: axis 1. */
  perGroup(value: Value): Value {
    const { groups, heads } = this;
    if (groups === heads) return value;
    const [blocks, , ...rest] = value.shape as readonly Dim[];
    return sum(reshape(value, [blocks!, groups, heads / groups, ...rest]), 2);
  }
}

export interface SsdParts {
  /** Δ x, (blocks, H, L, P) */
  readonly drive: Value;
  /** (blocks, G, L, N) */
  readonly keys: Value;
  readonly queries: Value;
  /** How much of the state before a chunk is left at each step, (blocks, H, L). */
  readonly fromStart: Value;
  /** How much of each step is left at the end of its chunk, (blocks, H, L). */
  readonly toEnd: Value;
  /** How much of the state is left after a whole chunk, (blocks, H, 1). */
  readonly across: Value;
  /** How much of step j is left at step i, (blocks, H, L, L). */
  readonly between: Value;
}

/** What both passes need: the cut sequences, and how much of a step is left at another. */
export function ssdParts(inputs: readonly Value[], chunks: SsdChunks): SsdParts {
  const [x, delta, a, b, c, , resets] = inputs as Value[];
  const drive = chunks.cut(mul(x!, unsqueeze(delta!, 3))); // (blocks, H, L, P)
  const [keys, queries] = [chunks.cut(b!), chunks.cut(c!)]; // (blocks, G, L, N)
  const logs = cumSum(chunks.cut(mul(delta!, a!)), 2); // (blocks, H, L)
  const last = slice(logs, 2, chunks.chunk - 1); // (blocks, H, 1)

  // Resets cut the paths between steps: equal counts of resets so far mean that none lies between.
  const count = resets && cumSum(chunks.cut(unsqueeze(cast(resets, "int32"), 2)), 2); // (blocks, 1, L)
  const open = (path: Value | undefined, log: Value): Value => {
    const decay = exp(path ? where(path, log, 0) : log);
    return path ? mul(decay, cast(path, decay.dtype)) : decay;
  };
  const past = trilMask(chunks.chunk, chunks.chunk);
  const inside = count ? and(past, equal(unsqueeze(count, 3), unsqueeze(count, 2))) : past;
  const lastCount = count && slice(count, 2, chunks.chunk - 1);
  return {
    drive,
    keys,
    queries,
    fromStart: open(count && equal(count, 0), logs), // (blocks, H, L)
    toEnd: open(count && equal(count, lastCount!), sub(last, logs)),
    across: open(lastCount && equal(lastCount, 0), last), // (blocks, H, 1)
    between: open(inside, sub(unsqueeze(logs, 3), unsqueeze(logs, 2))), // (blocks, H, L, L)
  };
}

/** y, the last state, and the states before the chunks (chunks, B, H, P, N). */
export function expandSsd(inputs: readonly Value[], { chunk }: ChunkAttrs): Value[] {
  const [x, , , b] = inputs as Value[];
  const initial = inputs[5]!;
  const chunks = new SsdChunks(x!, b!, chunk);
  const { count, grid, blocks, heads, width, states } = chunks;
  if (count === 0) return [x!, initial, expand(x!.graph.lift(0, x!.dtype), grid)];
  const { drive, keys, queries, fromStart, toEnd, across, between } = ssdParts(inputs, chunks);
  const scores = mul(chunks.perHead(dot(queries, keys, { transB: true })), between);
  const local = dot(scores, drive);

  // What each chunk adds to the state, then the state before each chunk.
  const added = dot(mul(drive, unsqueeze(toEnd, 3)), chunks.perHead(keys), { transA: true });
  const decay = expand(reshape(across, [count, chunks.batch, heads, 1, 1]), grid);
  const after = linearRecurrence(decay, reshape(added, grid), { initial });
  const before = neighbours(after, initial, false);
  const carried = dot(chunks.perHead(queries), reshape(before, [blocks, heads, width, states]), {
    transB: true,
  });
  const joined = add(local, mul(carried, unsqueeze(fromStart, 3))); // (blocks, H, L, P)
  const state = reshape(slice(after, 0, count - 1), grid.slice(1));
  return [chunks.join(joined), state, before];
}
