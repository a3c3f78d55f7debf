/**
 * Derivatives of LSTM and GRU: the backward loop only carries the cotangents of the states and gives
 * those of the gates, from which R's gradient is one product over all steps.
 */
import { scan } from "../ir/control.ts";
import { add, mul, square, sub, tanh } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { chunk, concat, slice } from "../ir/layout.ts";
import { asRows, dot } from "../ir/linear.ts";
import { neighbours } from "../ir/recurrence.ts";
import { sum } from "../ir/reduce.ts";
import { type Rule, throughExpansion, zerosLike } from "./rule.ts";

/** σ' = σ (1 - σ) */
const slopeOf = (gate: Value): Value => mul(gate, sub(1, gate));

export const lstmRule: Rule<"lstm"> = (context) => {
  const { cotangents, inputs, outputs, needs } = context;
  // Cotangents of what is only kept come from a derivative of this derivative.
  if (cotangents.slice(3).some((ct) => ct !== undefined)) return throughExpansion(context);
  const [, weight, h0, c0] = inputs as [Value, Value, Value, Value];
  const [states, , , cells, inForget, g, o] = outputs as [
    Value,
    Value,
    Value,
    Value,
    Value,
    Value,
    Value,
  ];
  const before = neighbours(cells, c0, false);
  const kept = { before, cells, inForget, g, o };
  const ct = cotangents[0];
  const [[ctHidden, ctCell], ctZ] = scan(
    ([dhNext, dcNext]: readonly [Value, Value], x: typeof kept & { ct?: Value }) => {
      const [i, f] = chunk(x.inForget, 2);
      const dh = x.ct ? add(dhNext, x.ct) : dhNext;
      const squashed = tanh(x.cells);
      const dho = mul(dh, x.o);
      const dc = add(dcNext, mul(dho, sub(1, square(squashed))));
      const dif = mul(concat([mul(dc, x.g), mul(dc, x.before)], -1), slopeOf(x.inForget));
      const dg = mul(mul(dc, i!), sub(1, square(x.g)));
      const dout = mul(mul(dho, squashed), sub(1, x.o));
      const dz = concat([dif, dg, dout], -1);
      return [[dot(dz, weight), mul(dc, f!)] as const, dz] as const;
    },
    [cotangents[1] ?? zerosLike(h0), cotangents[2] ?? zerosLike(c0)] as const,
    { ...kept, ...(ct && { ct }) },
    { reverse: true },
  );
  const toWeight = (): Value =>
    dot(asRows(ctZ), asRows(neighbours(states, h0, false)), { transA: true });
  return [ctZ, needs(1) ? toWeight() : undefined, ctHidden, ctCell];
};

export const gruRule: Rule<"gru"> = (context) => {
  const { cotangents, inputs, outputs, needs } = context;
  if (cotangents.slice(2).some((ct) => ct !== undefined)) return throughExpansion(context);
  const [, weight, h0] = inputs as [Value, Value, Value];
  const [, , r, update, n, recurrent, before] = outputs as Value[];
  const kept = { r: r!, update: update!, n: n!, recurrent: recurrent!, before: before! };
  const ct = cotangents[0];
  const [ctHidden, ctZ] = scan(
    (dhNext: Value, x: typeof kept & { ct?: Value }) => {
      const dh = x.ct ? add(dhNext, x.ct) : dhNext;
      const stays = mul(dh, x.update);
      const dn = mul(sub(dh, stays), sub(1, square(x.n)));
      const dReset = mul(mul(dn, x.recurrent), slopeOf(x.r));
      const dUpdate = mul(mul(stays, sub(x.before, x.n)), sub(1, x.update));
      const product = dot(concat([dReset, dUpdate, mul(dn, x.r)], -1), weight);
      return [add(stays, product), concat([dReset, dUpdate, dn], -1)] as const;
    },
    cotangents[1] ?? zerosLike(h0),
    { ...kept, ...(ct && { ct }) },
    { reverse: true },
  );
  // R h + s differs from z in the part of n alone, by r: formed outside, since the loop would keep it.
  const hidden = h0.shape[1] as number;
  const ctNew = mul(slice(ctZ, 2, 2 * hidden), r!);
  const joined = (ofZ: Value, ofNew: Value): Value => concat([slice(ofZ, 0, 0, 2 * hidden), ofNew]);
  const alongStates = (rows: Value): Value => dot(asRows(rows), asRows(before!), { transA: true });
  return [
    ctZ,
    needs(1) ? joined(alongStates(ctZ), alongStates(ctNew)) : undefined,
    ctHidden,
    inputs[3] && needs(3) ? joined(sum(ctZ, [0, 1]), sum(ctNew, [0, 1])) : undefined,
  ];
};
