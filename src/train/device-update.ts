/**
 * The update of all parameters as one program: global norm, clipping, optimisers, masks, running means.
 * Its inputs are each parameter's arrays and one vector of numbers, its outputs the norm of the gradient
 * and what the arrays become.
 */
import type { Program } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { add, div, minimum, sqrt, square } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { clipMargin } from "../optim/clip.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { type UpdatePlan, type UpdaterOptions, updateOf } from "./update.ts";

/** A parameter that such a program updates. */
export interface DeviceUpdate extends UpdatePlan {
  /** Shapes of what an update changes, by name: `param`, the optimiser's slots, `ema`. */
  readonly shapes: Readonly<Record<string, StaticShape>>;
}

/** What the program reads of a parameter, in the order of its inputs. */
export function updateInputs<T>(
  arrays: Readonly<Record<string, T>>,
  gradient: T,
  mask: T | undefined,
): Record<string, T> {
  const { param, ...state } = arrays;
  return { param: param!, gradient, ...state, ...(mask !== undefined && { mask }) };
}

/** Groups in order of their first parameter. */
function groupsOf(updates: readonly UpdatePlan[]): ParameterGroup[] {
  return [...new Set(updates.map(({ group }) => group))];
}

/** The numbers of a step, counted from 1: those of each group, one after another. */
export function updateScalars(
  updates: readonly UpdatePlan[],
  step: number,
  learningRate: number,
): number[] {
  return groupsOf(updates).flatMap(({ optimizer, learningRateScale = 1 }) =>
    Object.values(optimizer.scalars(step, learningRate * learningRateScale)),
  );
}

/**
 * Outputs: the norm of the gradient, then per parameter what `shapes` names, in its order. The sum of
 * squares is of float32, so a norm above 1.8e19 counts as infinite.
 * @param updates at least one
 */
export function updateProgram(
  updates: readonly DeviceUpdate[],
  { clipNorm, ema }: UpdaterOptions,
): Program {
  const groups = groupsOf(updates);
  const names = groups.map(({ optimizer }) => Object.keys(optimizer.scalars(1, 0)));
  const body = (all: readonly Readonly<Record<string, Value>>[], scalars: Value): Value[] => {
    let at = 0;
    const byGroup = names.map((own) =>
      Object.fromEntries(own.map((name) => [name, reshape(slice(scalars, 0, at, ++at), [])])),
    );
    const squares = all.map(({ gradient }) => sum(square(gradient!)));
    const norm = sqrt(squares.reduce((total, more) => add(total, more)));
    const gradientScale =
      clipNorm === undefined
        ? scalars.graph.lift(1)
        : minimum(div(scalars.graph.lift(clipNorm), add(norm, clipMargin)), 1);
    const updated = updates.flatMap(({ group, shapes }, i) => {
      const numbers = { ...byGroup[groups.indexOf(group)], gradientScale };
      const next = updateOf(group, all[i]!, numbers, ema);
      return Object.keys(shapes).map((name) => next[name]!);
    });
    return [norm, ...updated];
  };
  const specs = updates.map(({ shapes, param, mask }) => {
    const inputs = updateInputs(shapes, param.shape, mask?.shape);
    return Object.fromEntries(Object.entries(inputs).map(([name, shape]) => [name, spec(shape)]));
  });
  const count = names.reduce((total, { length }) => total + length, 0);
  return trace(body as never, [specs, spec([count])]).program;
}
