/** How a model runs with an adapter, whoever runs it: training, scoring, decoding, merging. */
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { concat, expand, unsqueeze } from "../ir/layout.ts";
import type { ForwardOptions, LayerPast, PretrainedModel } from "../models/model.ts";
import { indicesTo } from "../nn/attention.ts";
import type { AroundFn, Context, ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
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
    const bare = context.with({ around: own.around });
    const layers = adapter.past!(values, model, bare);
    const shifted = behind(layers, input as Value, options as ForwardOptions);
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

/** The options of a pass whose tokens stand behind some keys and values, (1, Hkv, P, D) each. */
function behind(layers: readonly LayerPast[], ids: Value, options: ForwardOptions): ForwardOptions {
  const [batch, length] = ids.shape;
  const count = layers[0]!.keys.shape[2] as number;
  const spread = (value: Value): Value =>
    expand(value, [batch!, value.shape[1]!, count, value.shape[3]!]);
  const { past } = options;
  const joined = layers.map(({ keys, values }, i) => {
    const earlier = past?.layers[i];
    return {
      keys: earlier ? concat([spread(keys), earlier.keys], 2) : spread(keys),
      values: earlier ? concat([spread(values), earlier.values], 2) : spread(values),
    };
  });
  const open = expand(ids.graph.constant(Tensor.zeros([1, 1, 1, count], "float32")), [
    batch!,
    1,
    1,
    count,
  ]);
  const positions =
    options.positions ?? expand(unsqueeze(indicesTo(ids.graph, length!), 0), [batch!, length!]);
  return {
    ...options,
    positions: add(positions, count),
    past: { layers: joined, mask: past ? concat([open, past.mask], 3) : open },
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
