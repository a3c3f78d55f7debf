/** The derivative of a loop: a loop in the other direction. */
import { emitScan } from "../ir/control.ts";
import { add } from "../ir/elementwise.ts";
import { Graph, graphFor, type Value } from "../ir/graph.ts";
import { alias, inline } from "../ir/rewrite.ts";
import { type Rule, zerosLike } from "./rule.ts";

/**
 * Steps run backwards over the carries kept by the forward scan; each step recomputes its body and
 * differentiates it. Cotangents of captures are summed in the carry.
 */
export const scanRule: Rule<"scan"> = ({ attrs, inputs, outputs, cotangents, backward }) => {
  const { body, nCarry, nXs, length, reverse } = attrs;
  const nYs = attrs.outputs.length - nCarry;
  const graph = graphFor("scan", [...inputs, ...outputs]);
  const isFloat = (value: Value): boolean => value.dtype.startsWith("float");
  const carries = inputs.slice(0, nCarry);
  const slices = inputs.slice(nCarry, nCarry + nXs);
  const captures = inputs.slice(nCarry + nXs);
  const history = outputs.slice(nCarry + nYs);
  const inner = new Graph(graph);
  const like = (value: Value, name: string, sliced: boolean): Value =>
    inner.input(name, {
      shape: sliced ? value.shape.slice(1) : value.shape,
      dtype: value.dtype,
    });
  const activeCarries = carries.flatMap((v, i) => (isFloat(v) ? [i] : []));
  const activeSlices = slices.flatMap((v, i) => (isFloat(v) ? [i] : []));
  const activeCaptures = captures.flatMap((v, i) => (isFloat(v) ? [i] : []));
  const activeYs = Array.from({ length: nYs }, (_, i) => i).filter(
    (i) => cotangents[nCarry + i] !== undefined,
  );
  // Inner inputs in scan order: carries (cotangents of carries and captures), then slices.
  const ctCarryIn = activeCarries.map((i) => like(carries[i]!, `ctCarry${i}`, false));
  const ctCaptureIn = activeCaptures.map((i) => like(captures[i]!, `ctCapture${i}`, false));
  const historyIn = history.map((value, i) => like(value, `carry${i}`, true));
  const sliceIn = slices.map((value, i) => like(value, `x${i}`, true));
  const ctYsIn = activeYs.map((i) => like(cotangents[nCarry + i]!, `ctY${i}`, true));
  // Someone else may have used the kept carries (a derivative of this derivative).
  const activeHistory = activeCarries.filter((i) => cotangents[nCarry + nYs + i] !== undefined);
  const ctHistory = activeHistory.map((i) => cotangents[nCarry + nYs + i]!);
  const ctHistoryIn = ctHistory.map((value, i) => like(value, `ctHistory${i}`, true));
  const results = inner.trace(() => {
    const capturesIn = captures.map(alias);
    const stepInputs = [...historyIn, ...sliceIn, ...capturesIn];
    const stepOutputs = inline(body, attrs.outputs, stepInputs, inner);
    const wrt = [
      ...activeCarries.map((i) => historyIn[i]!),
      ...activeSlices.map((i) => sliceIn[i]!),
      ...activeCaptures.map((i) => capturesIn[i]!),
    ];
    const pairs: [Value, Value][] = [
      ...activeCarries.map((i, k): [Value, Value] => [stepOutputs[i]!, ctCarryIn[k]!]),
      ...activeYs.map((i, k): [Value, Value] => [stepOutputs[nCarry + i]!, ctYsIn[k]!]),
    ];
    const cts = backward(
      pairs.map((pair) => pair[0]),
      pairs.map((pair) => pair[1]),
      wrt,
    ).map((ct, i) => ct ?? zerosLike(wrt[i]!));
    const ctCarries = cts.slice(0, activeCarries.length).map((ct, k) => {
      const at = activeHistory.indexOf(activeCarries[k]!);
      return at < 0 ? ct : add(ct, ctHistoryIn[at]!);
    });
    const ctSlices = cts.slice(activeCarries.length, activeCarries.length + activeSlices.length);
    const ctCaptures = cts
      .slice(activeCarries.length + activeSlices.length)
      .map((ct, i) => add(ctCaptureIn[i]!, ct));
    return [...ctCarries, ...ctCaptures, ...ctSlices];
  });
  const initial = [
    ...activeCarries.map((i) => cotangents[i] ?? zerosLike(carries[i]!)),
    ...activeCaptures.map((i) => zerosLike(captures[i]!)),
  ];
  const ctYs = activeYs.map((i) => cotangents[nCarry + i]!);
  const xs = [...history, ...slices, ...ctYs, ...ctHistory];
  const made = emitScan(
    graph,
    [...initial, ...xs],
    inner,
    results.map((value) => inner.lift(value)),
    initial.length,
    xs.length,
    length,
    !reverse,
  );
  const result: (Value | undefined)[] = inputs.map(() => undefined);
  activeCarries.forEach((i, k) => {
    result[i] = made[k]!;
  });
  activeCaptures.forEach((i, k) => {
    result[nCarry + nXs + i] = made[activeCarries.length + k]!;
  });
  activeSlices.forEach((i, k) => {
    result[nCarry + i] = made[initial.length + k]!;
  });
  return result;
};
