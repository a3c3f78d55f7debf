/** Which layers of a model LoRA sits on. */
import { OptionError } from "../errors.ts";
import type { PretrainedModel } from "../models/model.ts";
import { isNamed } from "../models/peft-paths.ts";
import type { Module } from "../nn/module.ts";
import { isLoraBase, type LoraBase } from "./lora-layer.ts";

/**
 * The layers that names mean, by path: of "all-linear" those of the blocks, of names also heads, convolutions
 * and embeddings.
 * @throws OptionError for names that match no layer.
 */
export function loraLayers(
  model: PretrainedModel,
  wanted: readonly string[] | "all-linear" = model.defaultTargets,
  excluded: readonly string[] = [],
): ReadonlyMap<string, LoraBase> {
  const isLeftOut = (path: string): boolean => excluded.some((name) => isNamed(model, path, name));
  const all: readonly (readonly [string, Module])[] =
    wanted === "all-linear"
      ? [...model.targets]
      : [...model.modules()].filter(([path]) => wanted.some((name) => isNamed(model, path, name)));
  const found = all.filter(
    (entry): entry is readonly [string, LoraBase] =>
      isLoraBase(entry[1]) && !model.untargeted?.test(entry[0]),
  );
  const kept = found.filter(([path]) => !isLeftOut(path));
  if (kept.length > 0) return new Map(kept);
  if (found.length > 0) {
    throw new OptionError(`excludeModules [${excluded.join(", ")}] leave no layer to adapt.`);
  }
  const known = [...new Set([...model.targets.keys()].map((path) => path.split(".").at(-1)))];
  throw new OptionError(
    `targetModules [${(wanted as readonly string[]).join(", ")}] match no layer of this ${model.family} — it has ${known.join(", ")}.`,
  );
}
