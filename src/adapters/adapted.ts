/** How a model runs with an adapter, whoever runs it: training, scoring, decoding, merging. */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { expand, unsqueeze } from "../ir/layout.ts";
import type { ForwardOptions, LanguageModel, LayerPast, PretrainedModel } from "../models/model.ts";
import { indicesTo } from "../nn/attention.ts";
import type { AroundFn, Context, ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Dim } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Adapter, LoadedAdapter } from "./adapter.ts";

/** Everything that an adapter's context reads: parameters, then buffers. */
export function numbersOf(loaded: LoadedAdapter | undefined): TensorRecord {
  return loaded ? { ...loaded.params, ...loaded.buffers } : {};
}

/**
 * What a forward pass of the model does with an adapter.
 * @param values of parameters and buffers
 */
export function adaptedContext(
  adapter: Adapter,
  model: PretrainedModel,
  values: ValueRecord,
): ContextOptions {
  const own = adapter.context(values);
  if (!adapter.past) return own;
  const around: AroundFn = (forward, context, input, options) => {
    const [ids, given] = [input as Value, options as ForwardOptions];
    const bare = context.with({ around: own.around });
    const past = given.past ?? spreadPast(adapter.past!(values, model, bare), ids.shape[0]!);
    const shifted = { ...given, past, positions: shiftedPositions(adapter, model, ids, given) };
    return forward(context, input, shifted as typeof options);
  };
  return { ...own, around };
}

/** The same for an adapter that may not be there. */
export function contextOf(
  loaded: LoadedAdapter | undefined,
  model: PretrainedModel,
  values: ValueRecord,
): ContextOptions {
  return loaded ? adaptedContext(loaded.adapter, model, values) : {};
}

/** Tokens of a sequence at most: the model's positions without those that an adapter's `past` takes. */
export function positionsBeside(
  model: LanguageModel,
  adapter: Pick<Adapter, "virtualTokens"> | undefined,
): number {
  return model.sizes.maxPositions - (adapter?.virtualTokens ?? 0);
}

/** Position ids of tokens that stand behind an adapter's, (B, T). */
function shiftedPositions(
  adapter: Adapter,
  model: PretrainedModel,
  ids: Value,
  { positions }: ForwardOptions,
): Value {
  const [batch, length] = ids.shape;
  const room = positionsBeside(model as LanguageModel, adapter);
  if (typeof length === "number" && length > room) {
    throw new OptionError(
      `${adapter.title}: ${length} tokens do not fit behind ${adapter.virtualTokens ?? 0} virtual ones in the model's ${room + (adapter.virtualTokens ?? 0)} positions — take at most ${room}.`,
    );
  }
  const own = positions ?? expand(unsqueeze(indicesTo(ids.graph, length!), 0), [batch!, length!]);
  return add(own, adapter.virtualTokens ?? 0);
}

/**
 * The past of a pass from keys and values that stand before each of its rows, (1, Hkv, P, D) each. A past that
 * a caller of an adapted model gives begins with them.
 */
export function spreadPast(
  layers: readonly LayerPast[],
  rows: Dim,
): NonNullable<ForwardOptions["past"]> {
  const spread = (value: Value): Value => expand(value, [rows, ...value.shape.slice(1)]);
  const { graph, shape } = layers[0]!.keys;
  const open = graph.constant(Tensor.zeros([1, 1, 1, shape[2] as number], "float32"));
  return {
    layers: layers.map(({ keys, values }) => ({ keys: spread(keys), values: spread(values) })),
    mask: spread(open),
  };
}

/** The forward pass without the adapter's sites, as a first pass takes it. */
export function withoutSites(context: Context): Context {
  return context.with({ sites: new Map(), replace: new Map(), around: undefined });
}

/** Both: of a layer that both compute in another form, as the second says. */
export function joinContexts(first: ContextOptions, second: ContextOptions): ContextOptions {
  if (!first.linear || !second.linear) return { ...first, ...second };
  return { ...first, ...second, linear: new Map([...first.linear, ...second.linear]) };
}
