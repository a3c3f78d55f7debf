import type { ScanAttrs } from "../../ir/attrs.ts";
import { sizeOf } from "../../tensor/shape.ts";
import { make, type Nd, type StaticSpec } from "./nd.ts";

function sliceAt(x: Nd, step: number): Nd {
  const shape = x.shape.slice(1);
  const size = sizeOf(shape);
  return { dtype: x.dtype, shape, data: x.data.slice(step * size, (step + 1) * size) };
}

function putAt(y: Nd, step: number, value: Nd): void {
  y.data.set(value.data, step * value.data.length);
}

/**
 * Runs a body step by step: carries, slices of xs and captures → next carries and ys.
 * @returns the last carries, the ys, and the carries before every step, both in the order of xs.
 */
export function runScan(
  { nCarry, nXs, length, reverse, outputs }: ScanAttrs,
  inputs: readonly Nd[],
  specs: readonly StaticSpec[],
  step: (inputs: readonly Nd[]) => readonly Nd[],
): Nd[] {
  const xs = inputs.slice(nCarry, nCarry + nXs);
  const captures = inputs.slice(nCarry + nXs);
  const ys = specs.slice(nCarry, outputs.length).map(make);
  const history = specs.slice(outputs.length).map(make);
  let carries = inputs.slice(0, nCarry);
  for (let i = 0; i < length; i++) {
    const at = reverse ? length - 1 - i : i;
    history.forEach((kept, k) => {
      putAt(kept, at, carries[k]!);
    });
    const results = step([...carries, ...xs.map((x) => sliceAt(x, at)), ...captures]);
    carries = results.slice(0, nCarry);
    ys.forEach((y, k) => {
      putAt(y, at, results[nCarry + k]!);
    });
  }
  return [...carries, ...ys, ...history];
}
