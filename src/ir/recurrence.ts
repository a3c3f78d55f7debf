/** Linear recurrences, and the two forms in which a target may run them. */
import { type Dim, toStatic } from "../tensor/shape.ts";
import type { AttrsOf } from "./attrs.ts";
import { scan } from "./control.ts";
import { add, mul } from "./elementwise.ts";
import { emit } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { concat, expand, pad, reshape, slice, stack } from "./layout.ts";

/**
 * How recurrences over time run. `scan`: a loop of T short steps, which a CPU does best. `blocked`:
 * blocks of steps side by side, then over the blocks, all unrolled in elementwise operators: for
 * devices on which each step of a loop is a round trip to the host.
 */
export type RecurrenceForm = "scan" | "blocked";

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
export function linearRecurrence(a: Operand, b: Operand, options: RecurrenceOptions = {}): Value {
  const graph = graphFor("linearRecurrence", [a, b]);
  const [decay, drive] = [graph.lift(a), graph.lift(b)];
  const initial = options.initial ?? expand(graph.lift(0, decay.dtype), decay.shape.slice(1));
  return emit("linearRecurrence", [decay, drive, initial], { reverse: options.reverse ?? false });
}

export function expandRecurrence(
  [a, b, initial]: readonly Value[],
  { reverse }: AttrsOf["linearRecurrence"],
  form: RecurrenceForm,
): Value[] {
  const [length] = toStatic(a!.shape.slice(0, 1), "linearRecurrence") as [number];
  const step = a!.shape.slice(1);
  if (length === 0) return [b!];
  if (form === "blocked") return [blocked(a!, b!, initial!, length, step, reverse)];
  const [, states] = scan(
    (h: Value, [at, bt]: readonly [Value, Value]) => {
      const next = add(mul(at, h), bt);
      return [next, next] as const;
    },
    initial!,
    [a!, b!] as const,
    { reverse },
  );
  return [states];
}

/**
 * √T blocks of √T steps. All blocks run side by side from 0, which gives what each adds to the state
 * and by how much it shrinks it; from that come the states before the blocks, one after another; then
 * the blocks run again, from those.
 */
function blocked(
  a: Value,
  b: Value,
  initial: Value,
  length: number,
  step: readonly Dim[],
  reverse: boolean,
): Value {
  const size = Math.ceil(Math.sqrt(length));
  const blocks = Math.ceil(length / size);
  // Steps with a = 1 and b = 0 change nothing: (T, …) → each step of all blocks, (blocks, …)
  const steps = (x: Value, padding: number): Value[] => {
    const none = x.shape.map(() => 0);
    const padded = pad(x, none, none.with(0, blocks * size - length), padding);
    const grid = reshape(padded, [blocks, size, ...step]);
    return Array.from({ length: size }, (_, i) =>
      reshape(slice(grid, 1, i, i + 1), [blocks, ...step]),
    );
  };
  const [decays, drives] = [steps(a, 1), steps(b, 0)];
  const order = Array.from({ length: size }, (_, i) => (reverse ? size - 1 - i : i));
  const run = (start: Value | undefined): Value[] => {
    const states: Value[] = [];
    let h = start;
    for (const i of order) {
      h = h ? add(mul(decays[i]!, h), drives[i]!) : drives[i]!;
      states[i] = h;
    }
    return states;
  };
  const last = order.at(-1)!;
  const starts = blockStarts(
    run(undefined)[last]!,
    decays.reduce((x, y) => mul(x, y)),
    initial,
    reverse,
  ).starts;
  return slice(reshape(stack(run(starts), 1), [blocks * size, ...step]), 0, 0, length);
}

/**
 * The second level: from what each block adds and by how much it shrinks the state, (blocks, …) both,
 * the states before the blocks, (blocks, …), and the state after the last.
 */
export function blockStarts(
  added: Value,
  decay: Value,
  initial: Value,
  reverse: boolean,
): { starts: Value; last: Value } {
  const [blocks, ...step] = added.shape as [number, ...Dim[]];
  const row = (x: Value, i: number): Value => slice(x, 0, i, i + 1);
  const starts: Value[] = [];
  let state = reshape(initial, [1, ...step]);
  for (let k = 0; k < blocks; k++) {
    const i = reverse ? blocks - 1 - k : k;
    starts[i] = state;
    state = add(mul(row(decay, i), state), row(added, i));
  }
  return { starts: concat(starts), last: reshape(state, step) };
}

/** The steps moved by one: each sees the one before it (after it, with `after`), the end sees `edge`. */
export function neighbours(x: Value, edge: Value, after: boolean): Value {
  const length = x.shape[0] as number;
  if (length === 0) return x;
  const row = reshape(edge, [1, ...edge.shape]);
  return after ? concat([slice(x, 0, 1), row]) : concat([row, slice(x, 0, 0, length - 1)]);
}
