/** Fields of an adapter_config.json that several kinds have. */
import { FormatError, UnsupportedError } from "../errors.ts";
import { isJsonObject, type JsonObject } from "../io/json.ts";
import type { PretrainedModel } from "../models/model.ts";
import { eitherForm } from "../models/peft-paths.ts";
import { loraLayers } from "./lora-targets.ts";
import { compilePattern } from "./pattern.ts";

/** EVA writes one a layer. */
const maxPatterns = 1024;

const show = (value: unknown): string => (JSON.stringify(value) ?? "nothing").slice(0, 80);

/**
 * @param harmless values of fields that change nothing; another one is refused
 * @throws UnsupportedError for a setting that is not carried here.
 */
export function checkHarmless(
  config: JsonObject,
  where: string,
  harmless: Readonly<Record<string, readonly unknown[]>>,
): void {
  for (const [field, allowed] of Object.entries(harmless)) {
    const value = config[field];
    if (value === undefined || allowed.includes(value)) continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw new UnsupportedError(`${where}: ${field} ${JSON.stringify(value)} is not supported.`);
  }
}

/** @throws FormatError for what is no number. */
export function numberIn(
  config: JsonObject,
  field: string,
  where: string,
  missing: number,
): number {
  const value = config[field] ?? missing;
  if (typeof value === "number") return value;
  throw new FormatError(`${where}: ${field} must be a number, got ${show(value)}.`);
}

/** @throws FormatError for what is no list of names. */
export function namesIn(
  config: JsonObject,
  field: string,
  where: string,
  missing: readonly string[] = [],
): readonly string[] {
  const value = config[field] ?? missing;
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
  throw new FormatError(`${where}: ${field} must be a list of names, got ${show(value)}.`);
}

/** target_modules, and the paths of the layers that it names in a model. */
export function targetsIn(
  config: JsonObject,
  where: string,
  model: PretrainedModel,
  excluded: readonly string[] = [],
): { readonly targetModules: readonly string[] | "all-linear"; readonly paths: readonly string[] } {
  const targets = config["target_modules"];
  const isList = Array.isArray(targets) && targets.every((item) => typeof item === "string");
  if (targets !== "all-linear" && !isList) {
    throw new FormatError(
      `${where}: target_modules must be a list of names or "all-linear", got ${show(targets)}.`,
    );
  }
  const targetModules = targets as readonly string[] | "all-linear";
  return { targetModules, paths: [...loraLayers(model, targetModules, excluded).keys()] };
}

/**
 * A table of numbers by pattern, without those that match no adapted layer, which PEFT lets pass.
 * @param paths of the adapted layers
 */
export function patternsIn(
  config: JsonObject,
  field: string,
  where: string,
  paths: readonly string[],
  model: PretrainedModel,
): Record<string, number> {
  const value = config[field] ?? {};
  const isTable =
    isJsonObject(value) && Object.values(value).every((item) => typeof item === "number");
  if (!isTable || Object.keys(value).length > maxPatterns) {
    throw new FormatError(
      `${where}: ${field} must map at most ${maxPatterns} patterns to numbers, got ${show(value)}.`,
    );
  }
  return Object.fromEntries(
    Object.entries(value as Record<string, number>).filter(([pattern]) =>
      paths.some(eitherForm(model, compilePattern(pattern, `${where}: ${field}`))),
    ),
  );
}
