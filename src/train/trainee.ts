/** What of a model is trained, and in which form the rest is kept. */
import type { Adapter } from "../adapters/adapter.ts";
import { OptionError } from "../errors.ts";
import type { LanguageModel } from "../models/model.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import { type QuantizeOptions, quantizedLayers, quantizeLinear } from "../nn/quantize.ts";
import type { Trainee } from "./program.ts";

export interface TraineeOptions {
  /**
   * Without an adapter: parts of paths whose parameters stay as they are, as `model.embed_tokens` or
   * `layers.0`.
   */
  readonly freeze?: readonly string[];
  /** With an adapter: keep the linear layers of the blocks in 4 or 8 bits. */
  readonly quantize?: QuantizeOptions;
}

/**
 * What is trained: an adapter's new parameters beside a frozen model, or the model's own.
 * @throws OptionError when a part of a path names nothing, nothing is left to train, or options do
 * not go together.
 */
export function traineeOf(
  model: LanguageModel,
  params: TensorRecord,
  adapter?: { readonly adapter: Adapter; readonly params: TensorRecord },
  options: TraineeOptions = {},
): Trainee {
  const { freeze = [], quantize } = options;
  if (adapter) {
    if (freeze.length > 0) {
      throw new OptionError(
        `freeze: an adapter leaves the whole model as it is — leave out ${freeze.join(", ")}, or train without an adapter.`,
      );
    }
    const base = quantize
      ? quantizeModel(model, params, quantize)
      : { params, context: (): ContextOptions => ({}) };
    return {
      model,
      maxLength: model.sizes.maxPositions,
      frozen: base.params,
      trained: adapter.params,
      form: base.context,
      adapt: (own, frozen) => ({ ...base.context(frozen), ...adapter.adapter.context(own) }),
    };
  }
  if (quantize) {
    throw new OptionError(
      "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
    );
  }
  const isFrozen = (path: string): boolean => freeze.some((part) => names(part, path));
  const unused = freeze.filter((part) => !Object.keys(params).some((path) => names(part, path)));
  if (unused.length > 0) {
    throw new OptionError(
      `freeze: "${unused[0]}" is part of no parameter's path — paths are like ${Object.keys(params)[0]}.`,
    );
  }
  const entries = Object.entries(params);
  const trained = Object.fromEntries(entries.filter(([path]) => !isFrozen(path)));
  if (Object.keys(trained).length === 0) {
    throw new OptionError(`freeze: ${freeze.join(", ")} leave nothing to train.`);
  }
  return {
    model,
    maxLength: model.sizes.maxPositions,
    frozen: Object.fromEntries(entries.filter(([path]) => isFrozen(path))),
    trained,
  };
}

/** Whether whole words of a path are those of `part`: `layers.1` names `layers.1.mlp` and not `layers.10`. */
function names(part: string, path: string): boolean {
  return `.${path}.`.includes(`.${part}.`);
}

/** A model's weights with the linear layers of its blocks quantised. */
export interface QuantizedModel {
  /** Float parameters as they were; for quantised layers `<path>.weight.packed` and `.scales`. */
  readonly params: TensorRecord;
  /** What the forward pass needs to know, given these values. */
  context(values: ValueRecord): ContextOptions;
}

/** Quantises every linear layer of the blocks; embeddings, norms and the head stay float32. */
export function quantizeModel(
  model: LanguageModel,
  params: TensorRecord,
  options: QuantizeOptions = {},
): QuantizedModel {
  const kept: TensorRecord = { ...params };
  const layers = [...model.targets].map(([path, layer]) => {
    const name = `${path}.weight`;
    const { packed, scales, attrs } = quantizeLinear(layer, params[name]!, options);
    delete kept[name];
    kept[`${name}.packed`] = packed;
    kept[`${name}.scales`] = scales;
    return { layer, name, attrs };
  });
  return {
    params: kept,
    context: (values) => ({
      linear: quantizedLayers(
        layers.map(({ layer, name, attrs }) => [
          layer,
          { packed: values[`${name}.packed`]!, scales: values[`${name}.scales`]!, attrs },
        ]),
      ),
    }),
  };
}
