import { checkpoint, grad } from "../../../src/autodiff/grad.ts";
import { customVjp, scan } from "../../../src/ir/control.ts";
import { add, less, mul, tanh } from "../../../src/ir/elementwise.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { expand } from "../../../src/ir/layout.ts";
import { dot } from "../../../src/ir/linear.ts";
import { sum } from "../../../src/ir/reduce.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import { type Cases, type Fn, ints, normals, type OperatorCase, once } from "./case.ts";

function scanCases(): OperatorCase[] {
  const [h0, xs] = [normals([3]), normals([5, 3])];
  const decay = (reverse: boolean): Fn => {
    return (h, x) => {
      const [last, ys] = scan(
        (carry: Value, slice_: Value) => {
          const next = add(mul(carry, 0.5), slice_);
          return [next, tanh(next)] as const;
        },
        h!,
        x!,
        { reverse },
      );
      return [last, ys];
    };
  };
  const captured: Fn = (h, x, w) => {
    const twice = mul(w!, 2);
    const [last] = scan(
      (carry: Value, slice_: Value) => {
        const next = tanh(add(mul(carry, twice), mul(slice_, w!)));
        return [next, sum(next)] as const;
      },
      h!,
      x!,
    );
    return last;
  };
  const counted: Fn = (h) => {
    const [last] = scan(
      (carry: Value) => [mul(carry, 1.5), []] as const,
      h!,
      [] as readonly Value[],
      { length: 4 },
    );
    return last;
  };
  const nested: Fn = (h, x) => {
    const [last, ys] = scan(
      (carry: Value, row: Value) => {
        const [inner, kept] = scan(
          (c: Value, element: Value) => {
            const next = add(mul(c, 0.9), mul(element, sum(carry)));
            return [next, next] as const;
          },
          sum(carry),
          row,
          { reverse: true },
        );
        return [add(carry, inner), kept] as const;
      },
      h!,
      x!,
    );
    return [last, ys];
  };
  return [
    once("forward", decay(false), h0, xs),
    once("reverse", decay(true), h0, xs),
    once("one step", decay(false), h0, normals([1, 3])),
    once("no steps", decay(false), h0, normals([0, 3])),
    once("captured values, and an output that nobody reads", captured, h0, xs, normals([3])),
    once("no xs", counted, h0),
    once("a scan within a scan", nested, normals([1]), normals([3, 4])),
    once(
      "the body returns its carry, its slice and a constant as they are",
      (h, x) => {
        const [last, [a, b, c]] = scan(
          (carry: Value, slice_: Value) =>
            [carry, [slice_, carry, expand(carry.graph.lift(2), [2])]] as const,
          h!,
          x!,
        );
        return [last, a!, b!, c!];
      },
      h0,
      xs,
    ),
    once(
      "its derivative, with captures",
      (h, x, w) => {
        const loss = (p: Value[]): Value => {
          const [last, ys] = scan(
            (carry: Value, slice_: Value) => {
              const next = tanh(add(mul(carry, p[2]!), slice_));
              return [next, mul(next, next)] as const;
            },
            p[0]!,
            p[1]!,
          );
          return add(sum(last), sum(ys));
        };
        return grad(loss)([h!, x!, w!]) as Value[];
      },
      h0,
      xs,
      normals([3]),
    ),
    once(
      "int32 carry and bool ys",
      (h, x) => {
        const [last, ys] = scan(
          (carry: Value, slice_: Value) => {
            const next = add(carry, slice_);
            return [next, less(next, 3)] as const;
          },
          h!,
          x!,
        );
        return [last, ys];
      },
      ints([0, 1]),
      ints([1, 2, 3, -4, 5, 6], [3, 2]),
    ),
  ];
}

export const controlCases: Cases<"scan" | "call"> = {
  scan: scanCases(),
  call: [
    once(
      "checkpoint",
      (x, w) => checkpoint((a) => tanh(dot(a!, w!)))(x!),
      normals([2, 3]),
      normals([3, 3]),
    ),
    once(
      "the derivative of checkpointed blocks",
      (x, w) => {
        const loss = (p: Value): Value =>
          sum(
            [1, 2, 3].reduce<Value>((y) => checkpoint((a) => add(a!, tanh(dot(a!, p))))(y)[0]!, x!),
          );
        return grad(loss)(w!);
      },
      normals([4, 3]),
      normals([3, 3]),
    ),
    once(
      "a derivative of its own, inside a scan too",
      (x) => {
        const clipped = customVjp(
          (a) => mul(a!, 2),
          ([a], _, [ct]) => [mul(ct!, less(a!, 0).graph.lift(3))],
        );
        const [last] = scan(
          (carry: Value, row: Value) => [add(carry, clipped(row)[0]!), []] as const,
          x!.graph.lift(Tensor.zeros([3], "float32")),
          x!,
        );
        return [clipped(x!)[0]!, last, grad((p: Value) => sum(clipped(p)[0]!))(x!)];
      },
      normals([2, 3]),
    ),
  ],
};
