/**
 * The recurrent parts of LSTM and GRU: what is left when W x + b of all steps is formed beforehand.
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
 * Beside their results the nodes give what the loop knows and the backward loop needs: gates and cells.
 */
import { scan } from "./control.ts";
import { add, mul, sigmoid, sub, tanh } from "./elementwise.ts";
import { emitAll } from "./emit.ts";
import type { Operand, Value } from "./graph.ts";
import { chunk, split, transpose } from "./layout.ts";
import { dot } from "./linear.ts";

export interface LstmRun {
  /** h of all steps, (T, B, H). */
  readonly outputs: Value;
  /** After the last step, (B, H). */
  readonly hidden: Value;
  readonly cell: Value;
}

/**
 * The recurrent part of an LSTM.
 * @param z W x + b of all steps, (T, B, 4H)
 * @param weight R, (4H, H)
 * @param h0 (B, H)
 * @param c0 (B, H)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function lstm(z: Operand, weight: Operand, h0: Operand, c0: Operand): LstmRun {
  const [outputs, hidden, cell] = emitAll("lstm", [z, weight, h0, c0], {});
  return { outputs: outputs!, hidden: hidden!, cell: cell! };
}

/** outputs, h, c; then of all steps c, (i, f), g, o. */
export function expandLstm([z, weight, h0, c0]: readonly Value[]): Value[] {
  const hidden = h0!.shape[1] as number;
  const columns = transpose(weight!);
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
    [h0!, c0!] as const,
    z!,
  );
  return [outputs, h, c, cells, inForget, cellGate, outGate];
}

export interface GruRun {
  /** h of all steps, (T, B, H). */
  readonly outputs: Value;
  /** After the last step, (B, H). */
  readonly hidden: Value;
}

/**
 * The recurrent part of a GRU.
 * @param z W x + b of all steps, (T, B, 3H): gates r, z, n
 * @param weight R, (3H, H)
 * @param h0 (B, H)
 * @param bias s, (3H,)
 * @throws ShapeError when the inputs do not fit each other.
 */
export function gru(z: Operand, weight: Operand, h0: Operand, bias?: Operand): GruRun {
  const inputs = [z, weight, h0, ...(bias === undefined ? [] : [bias])];
  const [outputs, hidden] = emitAll("gru", inputs, {});
  return { outputs: outputs!, hidden: hidden! };
}

/** outputs, h; then of all steps r, z, n, R_n h + s_n, and h before it. */
export function expandGru([z, weight, h0, bias]: readonly Value[]): Value[] {
  const hidden = h0!.shape[1] as number;
  const columns = transpose(weight!);
  const sizes = [2 * hidden, hidden];
  const [last, [outputs, resets, updates, news, recurrents, before]] = scan(
    (h: Value, zt: Value) => {
      const product = dot(h, columns);
      const [xGates, xNew] = split(zt, sizes);
      const [hGates, hNew] = split(bias ? add(product, bias) : product, sizes);
      const [r, update] = chunk(sigmoid(add(xGates!, hGates!)), 2);
      const n = tanh(add(xNew!, mul(r!, hNew!)));
      // (1 - z) n + z h
      const next = add(n, mul(update!, sub(h, n)));
      return [next, [next, r!, update!, n, hNew!, h] as const] as const;
    },
    h0!,
    z!,
  );
  return [outputs, last, resets, updates, news, recurrents, before];
}
