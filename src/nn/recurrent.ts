/**
 * LSTM and GRU, in PyTorch's layout.
 *
 * Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Gers et al. 2000 (forget gate):
 *
 *   z_t = W x_t + b + R h_{t-1}              gates i, f, g, o along 4H
 *   c_t = σ(f) c_{t-1} + σ(i) tanh(g)
 *   h_t = σ(o) tanh(c_t)
 *
 * Cho et al., 2014, arXiv:1406.1078, in the form of cuDNN and PyTorch (reset after the product):
 *
 *   r = σ(W_r x + b_r + R_r h + s_r),  z likewise
 *   n = tanh(W_n x + b_n + r (R_n h + s_n))
 *   h_t = (1 - z) n + z h_{t-1}
 *
 *   W → weight_ih_l0, R → weight_hh_l0, b → bias_ih_l0, s → bias_hh_l0
 *
 * The products with x of all steps are one; only R h is in the loop. The LSTM has a derivative of its
 * own: the loop keeps gates and cells, the backward loop only carries the cotangents of h and c and
 * gives those of z, from which R's gradient is one product over all steps.
 */
import { backward } from "../autodiff/backward.ts";
import { OptionError, ShapeError } from "../errors.ts";
import { customVjp, scan } from "../ir/control.ts";
import { add, mul, sigmoid, square, sub, tanh } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { chunk, concat, expand, reshape, slice, split, stack, transpose } from "../ir/layout.ts";
import { asRows, dot } from "../ir/linear.ts";
import { alias } from "../ir/rewrite.ts";
import { showShape } from "../tensor/shape.ts";
import { uniform } from "./init.ts";
import { type Context, Module, type Slot } from "./module.ts";

export interface RecurrentOptions {
  /** Layers, each reading the one before; default 1. */
  readonly nLayers?: number;
  /** Default true. */
  readonly bias?: boolean;
}

interface LayerSlots {
  readonly inputWeight: Slot;
  readonly hiddenWeight: Slot;
  readonly inputBias: Slot | undefined;
  readonly hiddenBias: Slot | undefined;
}

/** The parameters of a stack of recurrent layers with a number of gates. */
abstract class Recurrent extends Module {
  readonly inFeatures: number;
  readonly hidden: number;
  readonly nLayers: number;
  protected readonly layers: readonly LayerSlots[];

  constructor(gates: number, inFeatures: number, hidden: number, options: RecurrentOptions) {
    super();
    this.inFeatures = inFeatures;
    this.hidden = hidden;
    this.nLayers = options.nLayers ?? 1;
    if (!Number.isInteger(this.nLayers) || this.nLayers < 1) {
      throw new OptionError(`nLayers must be a whole number from 1, got ${this.nLayers}.`);
    }
    const init = uniform(1 / Math.sqrt(hidden));
    this.layers = Array.from({ length: this.nLayers }, (_, i) => {
      const width = i === 0 ? inFeatures : hidden;
      const bias = options.bias ?? true;
      return {
        inputWeight: this.parameter(`weight_ih_l${i}`, [gates * hidden, width], init),
        hiddenWeight: this.parameter(`weight_hh_l${i}`, [gates * hidden, hidden], init),
        inputBias: bias ? this.parameter(`bias_ih_l${i}`, [gates * hidden], init) : undefined,
        hiddenBias: bias ? this.parameter(`bias_hh_l${i}`, [gates * hidden], init) : undefined,
      };
    });
  }

  /** (B, T, in) → (T, B, in) */
  protected stepsFirst(x: Value): Value {
    if (x.rank !== 3 || x.shape[2] !== this.inFeatures) {
      throw new ShapeError(
        `recurrent: needs (B, T, ${this.inFeatures}), got ${showShape(x.shape)}.`,
      );
    }
    return transpose(x, [1, 0, 2]);
  }

  /** The states of the layers from (layers, B, H), or zeros. */
  protected startOf(x: Value, initial: Value | undefined): Value[] {
    const shape = [x.shape[0]!, this.hidden];
    if (!initial) return this.layers.map(() => expand(x.graph.lift(0, x.dtype), shape));
    if (initial.rank !== 3 || initial.shape[0] !== this.nLayers) {
      throw new ShapeError(
        `recurrent: initial states must be ${showShape([this.nLayers, ...shape])}, got ${showShape(initial.shape)}.`,
      );
    }
    return this.layers.map((_, i) => reshape(slice(initial, 0, i, i + 1), shape));
  }

  /** W x + bias for all steps in one product: (T, B, in) → (T, B, gates·H). */
  protected project(context: Context, x: Value, layer: LayerSlots, bias?: Value): Value {
    const product = dot(asRows(x), context.get(layer.inputWeight), { transB: true });
    const rows = bias ? add(product, bias) : product;
    return reshape(rows, [x.shape[0]!, x.shape[1]!, rows.shape[1]!]);
  }
}

export interface LstmResult {
  /** Hidden states of the last layer, (B, T, H). */
  readonly output: Value;
  /** Of every layer after the last step, (layers, B, H). */
  readonly hidden: Value;
  readonly cell: Value;
}

/**
 * (B, T, in) → (B, T, H). Parameters for each layer l: weight_ih_l (4H, in), weight_hh_l (4H, H),
 * bias_ih_l (4H,), bias_hh_l (4H,).
 */
export class Lstm extends Recurrent {
  constructor(inFeatures: number, hidden: number, options: RecurrentOptions = {}) {
    super(4, inFeatures, hidden, options);
  }

  /**
   * @param initial states before the first step, (layers, B, H) each; default zeros
   * @throws ShapeError when x is not (B, T, in).
   */
  forward(
    context: Context,
    x: Value,
    initial?: { readonly hidden: Value; readonly cell: Value },
  ): LstmResult {
    let steps = this.stepsFirst(x);
    const [hidden, cell] = [this.startOf(x, initial?.hidden), this.startOf(x, initial?.cell)];
    this.layers.forEach((layer, i) => {
      const { inputBias, hiddenBias } = layer;
      const bias =
        inputBias && hiddenBias ? add(context.get(inputBias), context.get(hiddenBias)) : undefined;
      const z = this.project(context, steps, layer, bias);
      const run = lstmSteps(z, context.get(layer.hiddenWeight), hidden[i]!, cell[i]!);
      steps = run.outputs;
      hidden[i] = run.hidden;
      cell[i] = run.cell;
    });
    return { output: transpose(steps, [1, 0, 2]), hidden: stack(hidden), cell: stack(cell) };
  }
}

interface LstmRun {
  readonly outputs: Value;
  readonly hidden: Value;
  readonly cell: Value;
}

/** Everything that a loop over the steps gives, in the order of the call's outputs. */
function lstmLoop(z: Value, weight: Value, h0: Value, c0: Value): Value[] {
  const hidden = h0.shape[1] as number;
  const columns = transpose(weight);
  const [[h, c], [outputs, cells, inForget, cellGate, outGate]] = scan(
    ([hPrevious, cPrevious]: readonly [Value, Value], zt: Value) => {
      const gates = add(zt, dot(hPrevious, columns));
      const [zif, zg, zo] = split(gates, [2 * hidden, hidden, hidden]);
      const [both, g, o] = [sigmoid(zif!), tanh(zg!), sigmoid(zo!)];
      const [i, f] = chunk(both, 2);
      const cNext = add(mul(f!, cPrevious), mul(i!, g));
      const hNext = mul(o, tanh(cNext));
      return [[hNext, cNext] as const, [hNext, cNext, both, g, o] as const] as const;
    },
    [h0, c0] as const,
    z,
  );
  return [outputs, h, c, cells, inForget, cellGate, outGate];
}

/**
 * The recurrent part of an LSTM.
 * @param z W x + b of all steps, (T, B, 4H)
 * @param weight R, (4H, H)
 * @param h0 (B, H)
 * @param c0 (B, H)
 * @returns outputs (T, B, H), and h and c after the last step
 */
export function lstmSteps(z: Value, weight: Value, h0: Value, c0: Value): LstmRun {
  const [outputs, hidden, cell] = customVjp(lstmLoop, lstmBackward, "lstm")(z, weight, h0, c0);
  return { outputs: outputs!, hidden: hidden!, cell: cell! };
}

/** The states before each step: (T, B, H). */
function previous(states: Value, first: Value): Value {
  const length = states.shape[0] as number;
  return concat([reshape(first, [1, ...first.shape]), slice(states, 0, 0, length - 1)]);
}

function lstmBackward(
  inputs: readonly Value[],
  outputs: readonly Value[],
  cotangents: readonly (Value | undefined)[],
): readonly (Value | undefined)[] {
  // Cotangents of what is only kept come from a derivative of this derivative.
  if (cotangents.slice(3).some((ct) => ct !== undefined)) {
    const stands = inputs.map(alias);
    const again = lstmLoop(stands[0]!, stands[1]!, stands[2]!, stands[3]!);
    const used = cotangents.flatMap((ct, i) => (ct ? [i] : []));
    return backward(
      used.map((i) => again[i]!),
      used.map((i) => cotangents[i]!),
      stands,
    );
  }
  const [z, weight, h0, c0] = inputs as [Value, Value, Value, Value];
  const [states, , , cells, inForget, cellGate, outGate] = outputs as Value[];
  const zeros = (like: Value): Value => expand(like.graph.lift(0, like.dtype), like.shape);
  const before = previous(cells!, c0);
  const ctOutputs = cotangents[0];
  const kept = { before, cells: cells!, inForget: inForget!, g: cellGate!, o: outGate! };
  const [[ctHidden, ctCell], ctZ] = scan(
    ([dhNext, dcNext]: readonly [Value, Value], x: typeof kept & { ct?: Value }) => {
      const { g, o } = x;
      const [i, f] = chunk(x.inForget, 2);
      const dh = x.ct ? add(dhNext, x.ct) : dhNext;
      const squashed = tanh(x.cells);
      const dho = mul(dh, o);
      const dc = add(dcNext, mul(dho, sub(1, square(squashed))));
      // σ' = σ (1 - σ) on i and f together
      const slopes = mul(x.inForget, sub(1, x.inForget));
      const dif = mul(concat([mul(dc, g), mul(dc, x.before)], -1), slopes);
      const dg = mul(mul(dc, i!), sub(1, square(g)));
      const dout = mul(mul(dho, squashed), sub(1, o));
      const dz = concat([dif, dg, dout], -1);
      return [[dot(dz, weight), mul(dc, f!)] as const, dz] as const;
    },
    [cotangents[1] ?? zeros(h0), cotangents[2] ?? zeros(c0)] as const,
    { ...kept, ...(ctOutputs && { ct: ctOutputs }) },
    { reverse: true },
  );
  const ctWeight = dot(asRows(ctZ), asRows(previous(states!, h0)), { transA: true });
  return [reshape(ctZ, z.shape), ctWeight, ctHidden, ctCell];
}

export interface GruResult {
  /** Hidden states of the last layer, (B, T, H). */
  readonly output: Value;
  /** Of every layer after the last step, (layers, B, H). */
  readonly hidden: Value;
}

/**
 * (B, T, in) → (B, T, H). Parameters for each layer l: weight_ih_l (3H, in), weight_hh_l (3H, H),
 * bias_ih_l (3H,), bias_hh_l (3H,); gates r, z, n.
 */
export class Gru extends Recurrent {
  constructor(inFeatures: number, hidden: number, options: RecurrentOptions = {}) {
    super(3, inFeatures, hidden, options);
  }

  /**
   * @param initial states before the first step, (layers, B, H); default zeros
   * @throws ShapeError when x is not (B, T, in).
   */
  forward(context: Context, x: Value, initial?: Value): GruResult {
    let steps = this.stepsFirst(x);
    const hidden = this.startOf(x, initial);
    this.layers.forEach((layer, i) => {
      const bias = layer.inputBias && context.get(layer.inputBias);
      const projected = this.project(context, steps, layer, bias);
      const columns = transpose(context.get(layer.hiddenWeight));
      const hiddenBias = layer.hiddenBias && context.get(layer.hiddenBias);
      const [last, outputs] = scan(
        (h: Value, xt: Value) => {
          const product = dot(h, columns);
          const recurrent = hiddenBias ? add(product, hiddenBias) : product;
          const sizes = [2 * this.hidden, this.hidden];
          const [[xGates, xNew], [hGates, hNew]] = [split(xt, sizes), split(recurrent, sizes)];
          const [r, z] = chunk(sigmoid(add(xGates!, hGates!)), 2);
          const n = tanh(add(xNew!, mul(r!, hNew!)));
          // (1 - z) n + z h
          const next = add(n, mul(z!, sub(h, n)));
          return [next, next] as const;
        },
        hidden[i]!,
        projected,
      );
      steps = outputs;
      hidden[i] = last;
    });
    return { output: transpose(steps, [1, 0, 2]), hidden: stack(hidden) };
  }
}
