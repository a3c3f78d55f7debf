/** A model of pictures made anew with a head for other classes. */
import { OptionError } from "../errors.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { families } from "./families.ts";
import { fillFrom, type Headed, headJson } from "./heads.ts";
import type { VisionModel } from "./model.ts";

/**
 * The model with one output for each label. A head for the same labels in the same order stays; else it is
 * new, by the stream alone. The body keeps its weights and statistics.
 * @throws OptionError when the architecture has no classifier.
 */
export function withLabels(
  model: VisionModel,
  params: TensorRecord,
  labels: readonly string[],
  rng: Rng,
): Headed<VisionModel> {
  const { head, classifier } = model;
  const isSame =
    head?.labels.length === labels.length && head.labels.every((label, i) => label === labels[i]);
  if (isSame) return { model, params, fresh: [] };
  if (classifier === undefined) {
    throw new OptionError(
      `image-classification: a ${model.family} has no classifier — take a ViT or a ResNet, or classify by texts with both towers of a CLIP.`,
    );
  }
  const config = {
    ...model.config,
    architectures: [classifier],
    ...headJson({
      task: "sequence-classification",
      labels,
      problem: "single_label_classification",
    }),
  };
  const made = families[model.config["model_type"] as string]!(config) as VisionModel;
  const own = (path: string): boolean =>
    made.head!.modules.some((name) => path.startsWith(`${name}.`));
  const body = Object.fromEntries(Object.entries(params).filter(([path]) => !own(path)));
  const headed = fillFrom(made, { ...body, ...stateOf(made, body) }, rng);
  return headed;
}

/** State that a body without numbers of its own begins with. */
function stateOf(model: VisionModel, given: TensorRecord): TensorRecord {
  const state: TensorRecord = {};
  for (const [path, slot] of model.slots()) {
    if (slot.kind !== "state" || given[path] || given[path.slice(path.indexOf(".") + 1)]) continue;
    state[path] = Tensor.zeros(slot.shape, slot.dtype);
  }
  return state;
}
