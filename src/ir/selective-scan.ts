/**
 * The selective scan of Mamba, as a loop over chunks of a loop over steps.
 *
 * Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752:
 *
 *   h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t        per channel d and state n
 *   y_t = Σ_n C_t h_t
 *
 *   Δ → delta, x → x, A → a, B → b, C → c, h → state
 *
 * No tensor holds (B, T, D, N): a step forms its coefficients itself. The forward pass keeps the state
 * at the start of every chunk; the backward pass runs each chunk again from there, and with g_t the
 * cotangent of h_t,
 *
 *   g_t  = exp(Δ_{t+1} A) g_{t+1} + C_t ȳ_t
 *   Ā    = Σ_t Δ_t g_t exp(Δ_t A) h_{t-1},   x̄_t = Δ_t Σ_n g_t B_t,   C̄_t = Σ_d ȳ_t h_t
 *   Δ̄_t  = Σ_n A g_t exp(Δ_t A) h_{t-1} + x_t Σ_n g_t B_t,   B̄_t = Σ_d g_t Δ_t x_t
 *
 * Inside, channels are last, since rows of D numbers are long and rows of N short: a state is (B, N, D).
 */
import { type Dim, toStatic } from "../tensor/shape.ts";
import type { ChunkAttrs } from "./attrs.ts";
import { scan } from "./control.ts";
import { add, cast, exp, mul, not } from "./elementwise.ts";
import { emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { expand, pad, reshape, slice, swapAxes, transpose, unsqueeze } from "./layout.ts";
import { dot } from "./linear.ts";
import { sum } from "./reduce.ts";

export interface SelectiveScanOperands {
  /** (B, T, D) */
  readonly x: Operand;
  /** Step sizes, positive: (B, T, D). */
  readonly delta: Operand;
  /** Negative: (D, N). */
  readonly a: Operand;
  /** (B, T, N) */
  readonly b: Operand;
  /** (B, T, N) */
  readonly c: Operand;
  /** The state before the first step, (B, D, N). */
  readonly initial: Operand;
  /** Steps before which the state is cleared, bool (B, T). */
  readonly resets?: Operand;
}

/**
 * @param chunk steps between states that are kept for the backward pass
 * @returns y (B, T, D), and the state after the last step (B, D, N)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function selectiveScan(
  inputs: SelectiveScanOperands,
  chunk: number,
): { y: Value; state: Value } {
  const { x, delta, a, b, c, initial, resets } = inputs;
  const all = [x, delta, a, b, c, initial, ...(resets === undefined ? [] : [resets])];
  const graph = graphFor("selectiveScan", all);
  const [y, state] = emitAll(
    "selectiveScan",
    all.map((operand) => graph.lift(operand)),
    { chunk },
  );
  return { y: y!, state: state! };
}

/** Sizes of a selective scan, and its sequences cut into chunks. */
export class Chunks {
  /** May be a symbol. */
  readonly batch: Dim;
  readonly length: number;
  readonly channels: number;
  readonly states: number;
  readonly chunk: number;
  readonly count: number;

  constructor(x: Value, a: Value, chunk: number) {
    this.batch = x.shape[0]!;
    [this.length, this.channels] = toStatic(x.shape.slice(1), "selectiveScan") as [number, number];
    this.states = a.shape[1] as number;
    this.chunk = chunk;
    this.count = Math.ceil(this.length / chunk);
  }

  /** (B, T, …) → (chunks, chunk, B, …). The padding must change nothing: steps of size 0. */
  cut(value: Value, padding = 0): Value {
    const rest = value.shape.slice(2);
    const first = transpose(value, [1, 0, ...rest.map((_, i) => i + 2)]);
    const none = first.shape.map(() => 0);
    const padded = pad(first, none, none.with(0, this.count * this.chunk - this.length), padding);
    return reshape(padded, [this.count, this.chunk, this.batch, ...rest]);
  }

  /** (chunks, chunk, B, K) → (B, T, K) */
  join(value: Value): Value {
    const rows = reshape(value, [this.count * this.chunk, this.batch, value.shape[3]!]);
    return transpose(slice(rows, 0, 0, this.length), [1, 0, 2]);
  }

  /** What a step leaves of the state: 0 where `resets` clears it, cut. */
  kept(resets: Value | undefined, like: Value): Value | undefined {
    return resets && this.cut(cast(not(resets), like.dtype), 1);
  }
}

type Step = {
  readonly x: Value;
  readonly delta: Value;
  readonly b: Value;
  readonly keep?: Value;
};

/** What a step does with the state, (B, N, D). */
function advance(
  h: Value,
  { x, delta, b, keep }: Step,
  rows: Value,
): { decay: Value; held: Value; decayed: Value; drive: Value; next: Value } {
  const held = keep ? mul(h, reshape(keep, [keep.shape[0]!, 1, 1])) : h;
  const decay = exp(mul(unsqueeze(delta, 1), rows));
  const drive = mul(delta, x);
  const decayed = mul(decay, held);
  return { decay, held, decayed, drive, next: add(decayed, outer(b, drive)) };
}

/** (B, N) and (B, D) → (B, N, D) */
function outer(b: Value, x: Value): Value {
  return dot(unsqueeze(b, 2), unsqueeze(x, 1));
}

/** y, the last state, and the states before the chunks (chunks, B, N, D). */
export function expandSelectiveScan(inputs: readonly Value[], { chunk }: ChunkAttrs): Value[] {
  const [x, delta, a, b, c, initial, resets] = inputs as Value[];
  const chunks = new Chunks(x!, a!, chunk);
  const rows = transpose(a!);
  const keep = chunks.kept(resets, x!);
  const xs: Step & { readonly c: Value } = {
    x: chunks.cut(x!),
    delta: chunks.cut(delta!),
    b: chunks.cut(b!),
    c: chunks.cut(c!),
    ...(keep && { keep }),
  };
  const [state, [ys, starts]] = scan(
    (start: Value, part: typeof xs) => {
      const [end, y] = scan(
        (h: Value, step: typeof xs) => {
          const { next } = advance(h, step, rows);
          const out = dot(unsqueeze(step.c, 1), next);
          return [next, reshape(out, [chunks.batch, chunks.channels])] as const;
        },
        start,
        part,
      );
      return [end, [y, start] as const] as const;
    },
    swapAxes(initial!),
    xs,
  );
  return [chunks.join(ys), swapAxes(state), starts];
}

/** Cotangents of x, delta, a, b, c and initial. */
export function expandSelectiveScanGradient(
  inputs: readonly Value[],
  { chunk }: ChunkAttrs,
): Value[] {
  const [x, delta, a, b, c, starts, ctY, ctState, resets] = inputs as Value[];
  const chunks = new Chunks(x!, a!, chunk);
  const { batch, channels, states } = chunks;
  const rows = transpose(a!);
  const keep = chunks.kept(resets, x!);
  const cut: Step & { readonly c: Value; readonly ct: Value } = {
    x: chunks.cut(x!),
    delta: chunks.cut(delta!),
    b: chunks.cut(b!),
    c: chunks.cut(c!),
    ct: chunks.cut(ctY!),
    ...(keep && { keep }),
  };
  type Part = typeof cut;
  const row = (value: Value, size: number): Value => reshape(value, [batch, size]);
  const back = (
    [ctNext, ctA]: readonly [Value, Value],
    step: Part & { readonly before: Value },
  ) => {
    const { decay, decayed, drive, next } = advance(step.before, step, rows);
    const g = add(ctNext, outer(step.c, step.ct));
    const slope = mul(g, decayed);
    const driven = row(dot(unsqueeze(step.b, 1), g), channels);
    const ctDelta = add(sum(mul(slope, rows), 1), mul(step.x, driven));
    const ctB = row(dot(g, unsqueeze(drive, 2)), states);
    const ctC = row(dot(next, unsqueeze(step.ct, 2)), states);
    const carried = mul(g, decay);
    const ctBefore = step.keep ? mul(carried, reshape(step.keep, [batch, 1, 1])) : carried;
    return [
      [ctBefore, add(ctA, mul(slope, unsqueeze(step.delta, 1)))] as const,
      [mul(step.delta, driven), ctDelta, ctB, ctC] as const,
    ] as const;
  };
  const state = [batch, states, channels];
  const [[ctInitial, ctA], cts] = scan(
    (carry: readonly [Value, Value], { start, ...part }: Part & { readonly start: Value }) => {
      const [, before] = scan(
        (h: Value, step: Part) => [advance(h, step, rows).next, h] as const,
        start,
        part as Part,
      );
      return scan(back, carry, { ...(part as Part), before }, { reverse: true });
    },
    [swapAxes(ctState!), expand(x!.graph.lift(0, x!.dtype), state)] as const,
    { ...cut, start: starts! },
    { reverse: true },
  );
  const [ctX, ctDelta, ctB, ctC] = cts.map((value) => chunks.join(value));
  return [ctX!, ctDelta!, transpose(sum(ctA, 0)), ctB!, ctC!, swapAxes(ctInitial)];
}
