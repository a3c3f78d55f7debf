/** Trying a merged model: whatever its kind, it loads and gives finite numbers; and how far from the others' these are. */
import { contextOf, numbersOf } from "../../../adapters/adapted.ts";
import type { LoadedAdapter } from "../../../adapters/adapter.ts";
import type { Backend } from "../../../backend/backend.ts";
import { compile } from "../../../backend/compile.ts";
import { StateError } from "../../../errors.ts";
import type { Files } from "../../../host/host.ts";
import { compareLogits, type LogitDifference, probeInputs } from "../../../infer/verify.ts";
import type { Value } from "../../../ir/graph.ts";
import { concat, reshape } from "../../../ir/layout.ts";
import { type LoadedModel, loadAnyModel } from "../../../models/folder.ts";
import type {
  EncoderModel,
  LanguageModel,
  PretrainedModel,
  Seq2SeqModel,
  VisionModel,
  VisionTextModel,
} from "../../../models/model.ts";
import type { Context, TensorRecord, ValueRecord } from "../../../nn/module.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";

const length = 16;
const pictures = 2;

function randomPixels(size: readonly number[]): Tensor<"float32"> {
  const shape = [pictures, ...size];
  const count = shape.reduce((a, b) => a * b, 1);
  return new Tensor("float32", shape, new Rng(0).fold("pixels").normals(count, 0.5));
}

interface Probe {
  readonly inputs: readonly Tensor[];
  /** Rows of numbers: logits where the model has a head, else hidden states or vectors. */
  forward(context: Context, inputs: readonly Value[]): Value;
}

/** Inputs and a forward pass for a model of any kind. */
function probeOf(model: PretrainedModel): Probe {
  switch (model.kind) {
    case "causal-lm": {
      const m = model as LanguageModel;
      const ids = probeInputs(m.sizes, { length });
      return { inputs: [ids], forward: (context, [x]) => m.forward(context, x).logits };
    }
    case "encoder": {
      const m = model as EncoderModel;
      const { vocabSize, dModel, nLayers, nHeads, maxPositions } = m.sizes;
      const sizes = {
        ...{ vocabSize, dModel, nLayers, nHeads, maxPositions },
        ...{ nKvHeads: nHeads, headDim: dModel / nHeads },
      };
      return {
        inputs: [probeInputs(sizes, { length: Math.min(length, maxPositions - 2) })],
        forward: (context, [x]) => {
          const { hidden } = m.forward(context, x);
          return m.head ? m.head.forward(context, hidden) : hidden;
        },
      };
    }
    case "seq2seq": {
      const m = model as Seq2SeqModel;
      const ids = probeInputs(m.sizes, { length });
      const [rows, columns] = ids.shape;
      return {
        inputs: [ids],
        forward: (context, [x]) => {
          const source = m.crossed(context, m.encode(context, x), rows, columns);
          return m.decode(context, x, source).logits;
        },
      };
    }
    case "vision": {
      const m = model as VisionModel;
      return {
        inputs: [randomPixels([m.sizes.channels, ...m.sizes.imageSize])],
        forward: (context, [x]) => {
          const { logits, pooled } = m.forward(context, x, { statistics: "running" });
          return logits ?? pooled;
        },
      };
    }
    case "vision-text": {
      const m = model as VisionTextModel;
      const text = m.text;
      const ids = probeInputs(
        { ...text, nKvHeads: text.nHeads, headDim: text.dModel / text.nHeads },
        { length },
      );
      return {
        inputs: [randomPixels([m.vision.channels, ...m.vision.imageSize]), ids],
        forward: (context, [pixels, x]) =>
          concat([m.embedImages(context, pixels), m.embedTexts(context, x)], 0),
      };
    }
  }
}

/**
 * What a model makes of the probe inputs.
 * @returns (rows, width)
 */
export async function probeOutputs(
  backend: Backend,
  model: PretrainedModel,
  params: TensorRecord,
  adapter?: LoadedAdapter,
): Promise<Tensor> {
  const { inputs, forward } = probeOf(model);
  const own = numbersOf(adapter);
  // State, as running means of a norm, is among the parameters of a folder.
  const state: TensorRecord = {};
  const trained: TensorRecord = { ...params };
  for (const [name, slot] of model.slots()) {
    if (slot.kind !== "state" || !trained[name]) continue;
    state[name] = trained[name];
    delete trained[name];
  }
  const compiled = await compile<Tensor>(
    ((values: ValueRecord, base: ValueRecord, kept: ValueRecord, ...given: Value[]) => {
      const context = model.context(base, kept, contextOf(adapter, model, values));
      const result = forward(context, given);
      return reshape(result, [-1, result.shape.at(-1) as number]);
    }) as never,
    [own, trained, state, ...inputs],
    { backend },
  );
  try {
    return await compiled.run(own, trained, state, ...inputs);
  } finally {
    await compiled.release();
  }
}

/** A model's outputs beside those of the merged one. */
export interface ModelDifference extends LogitDifference {
  readonly model: string;
}

export interface ProbeModel {
  readonly label: string;
  readonly path: string;
  readonly adapter: LoadedAdapter | undefined;
}

/**
 * Runs the merged model and every model that was merged, one after another: the weights of one are in memory.
 * @param open opens the merged model
 * @throws StateError when the merged model gives numbers that are not finite.
 */
export async function probeMerge(
  files: Files,
  backend: Backend,
  open: () => Promise<LoadedModel<PretrainedModel>>,
  models: readonly ProbeModel[],
  where: string,
  onModel: (label: string) => void = () => {},
): Promise<ModelDifference[]> {
  const outputsOf = async (
    load: () => Promise<LoadedModel<PretrainedModel>>,
    adapter?: LoadedAdapter,
  ): Promise<Tensor> => {
    const { model, params } = await load();
    return probeOutputs(backend, model, params, adapter);
  };
  const outputs = await outputsOf(open);
  const bad = Array.from(outputs.numbers()).findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) {
    throw new StateError(
      `${where}: the merged model gives ${outputs.numbers()[bad]} for a probe input — nothing was kept; take smaller weights, or look at the models.`,
    );
  }
  const differences: ModelDifference[] = [];
  for (const { label, path, adapter } of models) {
    onModel(label);
    const own = await outputsOf(() => loadAnyModel(files, path), adapter);
    // Slices may have made a model of other sizes; its rows are still comparable if they are as many.
    if (own.shape.join() !== outputs.shape.join()) continue;
    differences.push({ model: label, ...compareLogits(own, outputs) });
  }
  return differences;
}
