/** What every adapter is: named parameters beside a frozen model, and what they do at their sites. */
import type { PretrainedModel } from "../models/model.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** An adapter bound to a model: where it sits and what it computes. Its numbers come from outside. */
export interface Adapter {
  /** The kind as PEFT names it, `LORA`. */
  readonly kind: string;
  /** As people write it, `LoRA`. */
  readonly title: string;
  /** Paths of the layers it sits on. */
  readonly targets: readonly string[];
  /** Whether its effect can be written into the base weights. */
  readonly mergeable: "exact" | "approximate" | "no";
  /** New numbers for every parameter, by the name under which files keep it. */
  init(rng: Rng): TensorRecord;
  /** What the forward pass does with the parameters' values. */
  context(values: ValueRecord): ContextOptions;
  /** Base weights with the adapter written in; only those it changes. */
  merge(base: Readonly<Record<string, Tensor>>, params: TensorRecord): TensorRecord;
  /** The contents of adapter_config.json. */
  config(): Readonly<Record<string, unknown>>;
}

/** Paths of a model's linear layers that a target names: the whole path, or its last parts. */
export function matchTargets(model: PretrainedModel, targets: readonly string[]): string[] {
  return [...model.targets.keys()].filter((path) =>
    targets.some((target) => path === target || path.endsWith(`.${target}`)),
  );
}
