/**
 * Several adapters at once, as one.
 *
 *   at a site       y ← y + w_i (f_i(x, y) - y), one after another
 *   a parameter     θ + Σ w_i (g_i(θ) - θ)
 *
 * Of adapters that add, as LoRA, this is the base and the weighted sum of what each adds. Weights are inputs of a
 * program, so other weights compile nothing; where all are 1 they are left out, and the sums are those of the
 * adapters themselves. Numbers are named by place: `0.` and the adapter's own name.
 */
import { OptionError, StateError, UnsupportedError } from "../errors.ts";
import { add, mul, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import type {
  Context,
  ContextOptions,
  Module,
  SiteFn,
  Slot,
  TensorRecord,
  ValueRecord,
} from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Adapter, AdapterNumbers, LoadedAdapter, PrepareScene } from "./adapter.ts";
import type { StepChanges, StepHook, StepMade } from "./hook.ts";

/** An adapter that takes part, and how much. */
export interface JoinedPart {
  readonly loaded: LoadedAdapter;
  readonly weight: number;
}

const weightName = (i: number): string => `weight.${i}`;
const prefixOf = (i: number): string => `${i}.`;

/** What of a record is a part's, by the part's own names. */
export function ownOf<T>(record: Readonly<Record<string, T>>, i: number): Record<string, T> {
  const prefix = prefixOf(i);
  return Object.fromEntries(
    Object.entries(record).flatMap(([name, value]): [string, T][] =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [],
    ),
  );
}

function named<T>(record: Readonly<Record<string, T>>, i: number): Record<string, T> {
  return Object.fromEntries(
    Object.entries(record).map(([name, value]) => [prefixOf(i) + name, value]),
  );
}

/** Parameters and buffers of all parts, by place. @param isWeighted weights are among the buffers */
export function joinedNumbers(parts: readonly JoinedPart[], isWeighted: boolean): AdapterNumbers {
  const params = Object.assign({}, ...parts.map(({ loaded }, i) => named(loaded.params, i)));
  const buffers = Object.assign(
    {},
    ...parts.map(({ loaded }, i) => named(loaded.buffers ?? {}, i)),
    ...(isWeighted
      ? parts.map(({ weight }, i) => ({ [weightName(i)]: Tensor.scalar(weight) }))
      : []),
  );
  return { params, buffers };
}

/** The one of some adapters that has what only one may have. */
function onlyOne(
  adapters: readonly Adapter[],
  what: string,
  has: (one: Adapter) => boolean,
): number {
  const found = adapters.flatMap((one, i) => (has(one) ? [i] : []));
  if (found.length <= 1) return found[0] ?? -1;
  throw new UnsupportedError(
    `set: ${adapters[found[0]!]!.title} and ${adapters[found[1]!]!.title} both ${what}, which one can do at a time — activate one of them.`,
  );
}

/** The context of all parts. */
function joinedContext(
  adapters: readonly Adapter[],
  isWeighted: boolean,
  values: ValueRecord,
): ContextOptions {
  const contexts = adapters.map((adapter, i) => adapter.context(ownOf(values, i)));
  const weigh = (i: number, before: Value, after: Value): Value =>
    isWeighted ? add(before, mul(sub(after, before), values[weightName(i)]!)) : after;
  const sites = new Map<Module, SiteFn>();
  const replace = new Map<Slot, (context: Context) => Value>();
  const one: { around?: ContextOptions["around"]; linear?: ContextOptions } = {};
  const signals: Record<string, Value> = {};
  for (const [i, own] of contexts.entries()) {
    for (const [module, wrap] of own.sites ?? []) {
      const earlier = sites.get(module);
      sites.set(module, (x, y, context, place) => {
        const before = earlier ? earlier(x, y, context, place) : y;
        return weigh(i, before, wrap(x, before, context, place));
      });
    }
    for (const [slot, change] of own.replace ?? []) {
      const earlier = replace.get(slot);
      const others = adapters.filter((_, k) => k <= i && contexts[k]!.replace?.has(slot));
      const whole = others.find((adapter) => !adapter.isAdditive);
      if (others.length > 1 && whole) {
        throw new UnsupportedError(
          `set: ${others.map(({ title }) => title).join(" and ")} change one parameter, and ${whole.title} does not just add to it — activate one of them.`,
        );
      }
      replace.set(slot, (context) => {
        const stored = context.stored(slot);
        const weighed = weigh(i, stored, change(context));
        return earlier ? add(earlier(context), sub(weighed, stored)) : weighed;
      });
    }
    if ((own.linear?.size ?? 0) > 0 || own.around) {
      const isTaken = own.around ? one.around : one.linear;
      if (isTaken || (own.linear && isWeighted)) {
        throw new UnsupportedError(
          `set: ${adapters[i]!.title} ${own.around ? "steers the whole pass" : "computes layers in a form of its own"}, which it does alone${isTaken ? "" : " and at weight 1"} — activate one adapter.`,
        );
      }
      if (own.around) one.around = own.around;
      else one.linear = own;
    }
    for (const [name, signal] of Object.entries(own.signals ?? {})) {
      if (Object.hasOwn(signals, name)) {
        throw new UnsupportedError(
          `set: two adapters send a signal "${name}" — activate one of them.`,
        );
      }
      signals[name] = signal;
    }
  }
  return {
    sites,
    replace,
    ...(one.around && { around: one.around }),
    ...(one.linear?.linear && { linear: one.linear.linear }),
    ...(one.linear?.weights && { weights: one.linear.weights }),
    ...(Object.keys(signals).length > 0 && { signals }),
  };
}

/** A part's hook, that sees and changes the part's own. */
function hookOf(hook: StepHook, i: number): StepHook {
  const own = <T extends { readonly buffers: Readonly<Record<string, Tensor>> }>(step: T): T => ({
    ...step,
    buffers: ownOf(step.buffers, i),
  });
  const changed = (changes: StepChanges): StepChanges => ({
    ...changes,
    ...(changes.params && { params: named(changes.params, i) }),
    ...(changes.buffers && { buffers: named(changes.buffers, i) }),
  });
  return {
    changes: hook.changes.map((name) => prefixOf(i) + name),
    ...(hook.reads && { reads: hook.reads }),
    ...(hook.phases && { phases: (steps: number) => hook.phases!(steps) }),
    ...(hook.before && {
      before: (ahead) => {
        const changes = hook.before!(own(ahead));
        return changes && changed(changes);
      },
    }),
    ...(hook.after && {
      after: (made: StepMade) => {
        const step = { ...own(made), params: ownOf(made.params, i) };
        const changes = hook.after!({ ...step, gradients: ownOf(made.gradients, i) });
        return changes && changed(changes);
      },
    }),
  };
}

/**
 * Adapters of one model as one, in this order.
 * @param isWeighted each has a weight among the buffers; else all are 1
 * @throws UnsupportedError for adapters that do not go together: two that put keys before all others, take
 * several passes, stand in for the base's weights or act after steps.
 */
export function joinAdapters(adapters: readonly Adapter[], isWeighted: boolean): Adapter {
  if (adapters.length === 0) throw new OptionError("set: no adapter is active.");
  const at = {
    past: onlyOne(adapters, "put keys before every sequence", (one) => one.past !== undefined),
    passes: onlyOne(adapters, "take several passes", (one) => (one.passes ?? 1) > 1),
    replaces: onlyOne(
      adapters,
      "stand in for base weights",
      (one) => (one.replaces?.length ?? 0) > 0,
    ),
    hook: onlyOne(adapters, "act after steps", (one) => one.hook !== undefined),
  };
  const [past, hook] = [adapters[at.past], adapters[at.hook]?.hook];
  const whole = adapters[Math.max(at.past, at.replaces)];
  if (whole && isWeighted) {
    throw new UnsupportedError(
      `set: ${whole.title} is there or it is not — give it weight 1, and the others too.`,
    );
  }
  const isAdditive = adapters.every((adapter) => adapter.isAdditive);
  const all = (of: (adapter: Adapter, i: number) => TensorRecord): TensorRecord =>
    Object.assign({}, ...adapters.map((adapter, i) => named(of(adapter, i), i)));
  const ones = (): TensorRecord =>
    isWeighted ? Object.fromEntries(adapters.map((_, i) => [weightName(i), Tensor.scalar(1)])) : {};
  const states = new Set(adapters.map(({ mergeable }) => mergeable));
  const penalties = adapters.some(({ penalty }) => penalty);
  return {
    kind: "SET",
    title: adapters.map(({ title }) => title).join(" + "),
    targets: [...new Set(adapters.flatMap(({ targets }) => targets))],
    // A change that reads the weight, as DoRA's, would read one that others have changed already.
    mergeable: states.has("no")
      ? "no"
      : states.has("approximate") || (adapters.length > 1 && !isAdditive)
        ? "approximate"
        : "exact",
    isAdditive,
    ...(at.replaces >= 0 && { replaces: adapters[at.replaces]!.replaces! }),
    ...(at.passes >= 0 && { passes: adapters[at.passes]!.passes! }),
    ...(hook && { hook: hookOf(hook, at.hook) }),
    init: (rng: Rng) => all((adapter, i) => adapter.init(rng.fold(i))),
    initBuffers: () => ({ ...all((adapter) => adapter.initBuffers?.() ?? {}), ...ones() }),
    ...(adapters.some(({ prepare }) => prepare) && {
      prepare: async (scene: PrepareScene): Promise<AdapterNumbers> => {
        const parts: JoinedPart[] = [];
        for (const [i, adapter] of adapters.entries()) {
          const own = { ...scene, rng: scene.rng.fold(i) };
          const numbers = (await adapter.prepare?.(own)) ?? {
            params: adapter.init(own.rng),
            buffers: adapter.initBuffers?.() ?? {},
          };
          parts.push({ loaded: { adapter, ...numbers }, weight: 1 });
        }
        return joinedNumbers(parts, isWeighted);
      },
    }),
    context: (values) => joinedContext(adapters, isWeighted, values),
    ...(past && {
      virtualTokens: past.virtualTokens ?? 0,
      past: (values, model, context) => past.past!(ownOf(values, at.past), model, context),
    }),
    ...(penalties && {
      penalty: (values: ValueRecord, context: Context): Value =>
        adapters
          .flatMap((adapter, i) => adapter.penalty?.(ownOf(values, i), context) ?? [])
          .reduce((sum, one) => add(sum, one)),
    }),
    learningRateScale: (name) => {
      const i = Number.parseInt(name, 10);
      return adapters[i]?.learningRateScale?.(name.slice(prefixOf(i).length)) ?? 1;
    },
    merge: (base, params, buffers = {}) => {
      const merged: TensorRecord = {};
      for (const [i, adapter] of adapters.entries()) {
        const before: Readonly<Record<string, Tensor>> = { ...base, ...merged };
        const own = adapter.merge(before, ownOf(params, i), ownOf(buffers, i));
        const weight = isWeighted ? buffers[weightName(i)]!.item() : 1;
        for (const [name, tensor] of Object.entries(own)) {
          merged[name] = weight === 1 ? tensor : between(before[name]!, tensor, weight);
        }
      }
      return merged;
    },
    config: () => {
      throw new StateError(
        "set: several adapters are no adapter of one folder — saveAdapterSet writes a folder for each.",
      );
    },
  };
}

/** before + weight · (after - before) */
function between(before: Tensor, after: Tensor, weight: number): Tensor<"float32"> {
  const [from, to] = [before.numbers(), after.numbers()];
  return new Tensor(
    "float32",
    after.shape,
    Float32Array.from({ length: after.size }, (_, i) => from[i]! + weight * (to[i]! - from[i]!)),
  );
}
