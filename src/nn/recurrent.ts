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
 * The products with x of all steps are one; only R h is in the loop, which is an operator of the graph
 * (`ir/recurrent.ts`).
 */
import { OptionError, ShapeError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { expand, reshape, slice, stack, transpose } from "../ir/layout.ts";
import { asRows, dot } from "../ir/linear.ts";
import { gru, lstm } from "../ir/recurrent.ts";
import { showShape } from "../tensor/shape.ts";
import { uniform } from "./init.ts";
import { type Context, Module, type Slot } from "./module.ts";

export { type GruRun, gru as gruSteps, type LstmRun, lstm as lstmSteps } from "../ir/recurrent.ts";

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
      const run = lstm(z, context.get(layer.hiddenWeight), hidden[i]!, cell[i]!);
      steps = run.outputs;
      hidden[i] = run.hidden;
      cell[i] = run.cell;
    });
    return { output: transpose(steps, [1, 0, 2]), hidden: stack(hidden), cell: stack(cell) };
  }
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
      const hiddenBias = layer.hiddenBias && context.get(layer.hiddenBias);
      const run = gru(projected, context.get(layer.hiddenWeight), hidden[i]!, hiddenBias);
      steps = run.outputs;
      hidden[i] = run.hidden;
    });
    return { output: transpose(steps, [1, 0, 2]), hidden: stack(hidden) };
  }
}
