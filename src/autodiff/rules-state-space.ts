/** Derivatives of linear recurrences, the selective scan and SSD. */
import { add, mul, sub } from "../ir/elementwise.ts";
import { emitAll } from "../ir/emit.ts";
import type { Value } from "../ir/graph.ts";
import { concat, expand, reshape, slice, unsqueeze } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { linearRecurrence, neighbours } from "../ir/recurrence.ts";
import { cumSum, sum } from "../ir/reduce.ts";
import { SsdChunks, ssdParts } from "../ir/ssd.ts";
import { type Rule, throughExpansion, zerosLike } from "./rule.ts";

/** g_t = ct_t + a_{t+1} g_{t+1}; then db = g, da_t = g_t h_{t-1}, dh_0 = a_1 g_1. */
export const recurrenceRule: Rule<"linearRecurrence"> = ({
  attrs: { reverse },
  cotangents: [ct],
  inputs,
  outputs: [states],
}) => {
  const [decay, , first] = inputs as [Value, Value, Value];
  const length = decay.shape[0] as number;
  if (length === 0) return [undefined, ct, undefined];
  const step = first.shape;
  const shifted = neighbours(decay, expand(decay.graph.lift(0, decay.dtype), step), !reverse);
  const slope = linearRecurrence(shifted, ct!, { reverse: !reverse });
  const end = reverse ? length - 1 : 0;
  const edge = (x: Value): Value => reshape(slice(x, 0, end, end + 1), step);
  return [mul(slope, neighbours(states!, first, reverse)), slope, mul(edge(decay), edge(slope))];
};

/** One node: the loop over chunks, backwards, each run again from the state that was kept. */
export const selectiveScanRule: Rule<"selectiveScan"> = (context) => {
  const { attrs, cotangents, inputs, outputs } = context;
  // Of the states that are only kept: from a derivative of this derivative.
  if (cotangents[2]) return throughExpansion(context);
  const [x, delta, a, b, c, initial, resets] = inputs as Value[];
  const [ctY, ctState] = [cotangents[0] ?? zerosLike(x!), cotangents[1] ?? zerosLike(initial!)];
  const operands = [x!, delta!, a!, b!, c!, outputs[2]!, ctY, ctState, ...(resets ? [resets] : [])];
  return emitAll("selectiveScanGradient", operands, attrs);
};

export const ssdRule: Rule<"ssd"> = (context) => {
  const { attrs, cotangents, inputs, outputs, needs } = context;
  if (cotangents[2]) return throughExpansion(context);
  const [x, delta, a, b, , initial] = inputs as [Value, Value, Value, Value, Value, Value];
  const chunks = new SsdChunks(x, b, attrs.chunk);
  const { blocks, count, grid, heads, width, states, chunk } = chunks;
  if (count === 0) return [undefined, undefined, undefined, undefined, undefined, cotangents[1]];
  const { drive, keys, queries, fromStart, toEnd, across, between } = ssdParts(inputs, chunks);
  const before = reshape(outputs[2]!, [blocks, heads, width, states]);
  const ct = chunks.cut(cotangents[0] ?? zerosLike(x)); // (blocks, H, L, P)
  const [keysOf, queriesOf] = [chunks.perHead(keys), chunks.perHead(queries)];
  const steps = (value: Value): Value => unsqueeze(value, 3);
  const overLast = (value: Value): Value => sum(value, -1);

  // What the state before each chunk gave: y += fromStart · C h.
  const carried = mul(ct, steps(fromStart));
  const ctStart = overLast(mul(carried, dot(queriesOf, before, { transB: true })));
  const ctBefore = reshape(dot(carried, queriesOf, { transA: true }), grid);

  // The recurrence over chunks, backwards.
  const last = cotangents[1] ?? zerosLike(initial);
  const ctAfter = neighbours(ctBefore, last, true);
  const wide = expand(reshape(across, [count, chunks.batch, heads, 1, 1]), grid);
  const shifted = neighbours(wide, zerosLike(initial), true);
  const slope = linearRecurrence(shifted, ctAfter, { reverse: true });
  const first = (value: Value): Value => reshape(slice(value, 0, 0, 1), initial.shape);
  const ctInitial = add(first(ctBefore), mul(first(wide), first(slope)));
  const sent = reshape(slope, [blocks, heads, width, states]);
  const ctAcross = mul(reshape(sum(mul(sent, before), [2, 3]), [blocks, heads, 1]), across);

  // What each chunk gave to the state: (drive · toEnd)ᵀ B.
  const alongEnd = dot(keysOf, sent, { transB: true }); // (blocks, H, L, P)
  const ctEnd = mul(overLast(mul(alongEnd, drive)), toEnd);

  // Inside a chunk: y = (C Bᵀ ∘ between) drive.
  const ctScores = dot(ct, drive, { transB: true }); // (blocks, H, L, L)
  const products = chunks.perHead(dot(queries, keys, { transB: true }));
  const scores = mul(products, between);
  const ctDrive = add(dot(scores, ct, { transA: true }), mul(alongEnd, steps(toEnd)));
  const ctProducts = chunks.perGroup(mul(ctScores, between));
  const ctQueries = add(dot(ctProducts, keys), chunks.perGroup(dot(carried, before)));
  const ctKeys = add(
    dot(ctProducts, queries, { transA: true }),
    chunks.perGroup(dot(mul(drive, steps(toEnd)), sent)),
  );

  // Every share is an exponential of differences of the running sum of Δ A.
  const ctPairs = mul(ctScores, scores);
  const ctRows = sub(sum(ctPairs, 3), sum(ctPairs, 2));
  const ctLogs = sub(add(ctRows, ctStart), ctEnd);
  const atEnd = add(ctAcross, sum(ctEnd, 2, { keepDims: true }));
  const whole =
    chunk === 1
      ? add(ctLogs, atEnd)
      : concat([slice(ctLogs, 2, 0, chunk - 1), add(slice(ctLogs, 2, chunk - 1), atEnd)], 2);
  const ctLog = chunks.join(cumSum(whole, 2, { reverse: true })); // (B, T, H)
  const ctX = chunks.join(ctDrive); // of Δ x, (B, T, H, P)
  return [
    needs(0) ? mul(ctX, steps(delta)) : undefined,
    needs(1) ? add(overLast(mul(ctX, x)), mul(ctLog, a)) : undefined,
    needs(2) ? sum(mul(ctLog, delta), [0, 1]) : undefined,
    chunks.join(ctKeys),
    chunks.join(ctQueries),
    ctInitial,
  ];
};
