/**
 * The selective scan without a loop, for targets on which a loop is driven by the host: all chunks run
 * side by side, step after step, in elementwise operators, then the states before the chunks follow one
 * from another, and the chunks run again from there. Formulas and names are those of `selective-scan.ts`;
 * the state of all chunks is (1, chunks·B, N, D), so that the largest tensor is one chunk-th of
 * (B, T, D, N), and of the backward pass the states of all steps.
 */

import { type Dim, mulDims } from "../tensor/shape.ts";
import type { ChunkAttrs } from "./attrs.ts";
import { add, exp, mul } from "./elementwise.ts";
import type { Value } from "./graph.ts";
import { concat, reshape, slice, swapAxes, transpose } from "./layout.ts";
import { blockStarts } from "./recurrence.ts";
import { sum } from "./reduce.ts";
import { Chunks } from "./selective-scan.ts";

const keepDims = { keepDims: true } as const;

/** The steps of all chunks: what step i of each needs, ready to be multiplied with states. */
class Blocks {
  readonly chunks: Chunks;
  /** (1, N, D) */
  readonly rows: Value;
  readonly #lanes: Dim;

  constructor(x: Value, a: Value, chunk: number) {
    this.chunks = new Chunks(x, a, chunk);
    this.rows = reshape(transpose(a), [1, 1, this.chunks.states, this.chunks.channels]);
    this.#lanes = mulDims(this.chunks.count, this.chunks.batch);
  }

  /** (chunks, chunk, B, K) → of each step (1, chunks·B, 1, K), or (…, K, 1) as a column. */
  steps(cut: Value, isColumn: boolean): Value[] {
    const width = (cut.shape[3] ?? 1) as number;
    const ordered = swapAxes(cut, 0, 1);
    const shape = [this.chunks.chunk, this.#lanes, ...(isColumn ? [width, 1] : [1, width])];
    const flat = reshape(ordered, shape);
    return Array.from({ length: this.chunks.chunk }, (_, i) => slice(flat, 0, i, i + 1));
  }

  /** Of each step (1, chunks·B, 1, K) or (…, K, 1) → (B, T, K) */
  join(steps: readonly Value[]): Value {
    const { chunks } = this;
    const [, , p, q] = steps[0]!.shape as number[];
    const width = p! * q!;
    const flat = reshape(concat(steps), [chunks.chunk, chunks.count, chunks.batch, width]);
    return chunks.join(swapAxes(flat, 0, 1));
  }

  /** Lanes to chunks: (1, chunks·B, N, D) → (chunks, B, N, D) */
  apart(state: Value): Value {
    const { count, batch, states, channels } = this.chunks;
    return reshape(state, [count, batch, states, channels]);
  }

  /** (chunks, B, N, D) → (1, chunks·B, N, D) */
  together(states: Value): Value {
    return reshape(states, [1, this.#lanes, ...states.shape.slice(2)]);
  }
}

interface Steps {
  readonly decays: (i: number) => Value;
  readonly drives: (i: number) => Value;
  readonly keep: readonly Value[] | undefined;
  readonly delta: readonly Value[];
  readonly x: readonly Value[];
  readonly b: readonly Value[];
  /** How much of a state is left after a whole chunk, (chunks, B, N, D). */
  readonly total: Value;
}

function stepsOf(blocks: Blocks, x: Value, delta: Value, b: Value, resets?: Value): Steps {
  const { chunks } = blocks;
  const cutDelta = chunks.cut(delta);
  const deltas = blocks.steps(cutDelta, false);
  const drive = blocks.steps(mul(cutDelta, chunks.cut(x)), false);
  const bs = blocks.steps(chunks.cut(b), true);
  const kept = chunks.kept(resets, x);
  const keep = kept && blocks.steps(kept, false);
  const length = sum(cutDelta, 1); // (chunks, B, D)
  const whole = exp(
    mul(reshape(length, [chunks.count, chunks.batch, 1, chunks.channels]), blocks.rows),
  );
  const open = keep?.reduce((p, q) => mul(p, q));
  return {
    // Multiplied out where used: keeping it would hold (B, T, D, N).
    decays: (i) => {
      const decay = exp(mul(deltas[i]!, blocks.rows));
      return keep ? mul(decay, keep[i]!) : decay;
    },
    drives: (i) => mul(bs[i]!, drive[i]!),
    keep,
    delta: deltas,
    x: blocks.steps(chunks.cut(x), false),
    b: bs,
    total: open ? mul(whole, reshape(open, [chunks.count, chunks.batch, 1, 1])) : whole,
  };
}

/** States after each step, from a start (zero where none is given). */
function run(steps: Steps, start: Value | undefined, visit?: (h: Value, i: number) => void): Value {
  let h = start;
  for (let i = 0; i < steps.delta.length; i++) {
    const drive = steps.drives(i);
    h = h ? add(mul(steps.decays(i), h), drive) : drive;
    visit?.(h, i);
  }
  return h!;
}

export function blockedSelectiveScan(inputs: readonly Value[], { chunk }: ChunkAttrs): Value[] {
  const [x, delta, a, b, c, initial, resets] = inputs as Value[];
  const blocks = new Blocks(x!, a!, chunk);
  const steps = stepsOf(blocks, x!, delta!, b!, resets);
  const cs = blocks.steps(blocks.chunks.cut(c!), true);
  const added = blocks.apart(run(steps, undefined));
  const { starts, last } = blockStarts(added, steps.total, swapAxes(initial!), false);
  const ys: Value[] = [];
  run(steps, blocks.together(starts), (h, i) => {
    ys.push(sum(mul(h, cs[i]!), 2, keepDims));
  });
  return [blocks.join(ys), swapAxes(last), starts];
}

export function blockedSelectiveScanGradient(
  inputs: readonly Value[],
  { chunk }: ChunkAttrs,
): Value[] {
  const [x, delta, a, b, c, starts, ctY, ctState, resets] = inputs as Value[];
  const blocks = new Blocks(x!, a!, chunk);
  const steps = stepsOf(blocks, x!, delta!, b!, resets);
  const cs = blocks.steps(blocks.chunks.cut(c!), true);
  const cts = blocks.steps(blocks.chunks.cut(ctY!), false);
  // What each chunk alone sends back over its start, then what arrives at its end.
  let sent: Value | undefined;
  for (let i = chunk - 1; i >= 0; i--) {
    const own = mul(cs[i]!, cts[i]!);
    sent = mul(steps.decays(i), sent ? add(sent, own) : own);
  }
  const end = blockStarts(blocks.apart(sent!), steps.total, swapAxes(ctState!), true);
  const before: Value[] = [blocks.together(starts!)];
  run(steps, before[0], (h) => before.push(h));
  const out: Record<"x" | "delta" | "b" | "c", Value[]> = { x: [], delta: [], b: [], c: [] };
  let arriving = blocks.together(end.starts);
  let ctA: Value | undefined;
  for (let i = chunk - 1; i >= 0; i--) {
    const g = add(arriving, mul(cs[i]!, cts[i]!));
    arriving = mul(g, steps.decays(i));
    const slope = mul(arriving, before[i]!);
    const driven = sum(mul(g, steps.b[i]!), 2, keepDims);
    const own = mul(slope, steps.delta[i]!);
    ctA = ctA ? add(ctA, own) : own;
    out.x[i] = mul(steps.delta[i]!, driven);
    out.delta[i] = add(sum(mul(slope, blocks.rows), 2, keepDims), mul(steps.x[i]!, driven));
    out.b[i] = sum(mul(g, mul(steps.delta[i]!, steps.x[i]!)), 3, keepDims);
    out.c[i] = sum(mul(before[i + 1]!, cts[i]!), 3, keepDims);
  }
  return [
    blocks.join(out.x),
    blocks.join(out.delta),
    transpose(sum(ctA!, [0, 1])),
    blocks.join(out.b),
    blocks.join(out.c),
    swapAxes(end.last),
  ];
}
