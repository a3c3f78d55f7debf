import { normalizeAxis } from "../tensor/shape.ts";
import { scan } from "./control.ts";
import { mul } from "./elementwise.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { expand, flip, swapAxes } from "./layout.ts";
import type { CumulativeOptions } from "./reduce.ts";

/** Products of all elements up to each one along an axis; the derivative is right at zeros too. */
export function cumProd(x: Operand, axis = -1, options: CumulativeOptions = {}): Value {
  const value = graphFor("cumProd", [x]).lift(x);
  const at = normalizeAxis("cumProd", axis, value.rank);
  const steps = swapAxes(options.reverse ? flip(value, at) : value, 0, at);
  const one = expand(value.graph.lift(1, value.dtype), steps.shape.slice(1));
  const [, products] = scan(
    (total: Value, step: Value): [Value, Value] => {
      const next = mul(total, step);
      return [next, options.exclusive ? total : next];
    },
    one,
    steps,
  );
  const back = swapAxes(products, 0, at);
  return options.reverse ? flip(back, at) : back;
}
