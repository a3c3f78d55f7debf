/**
 * Where the modules of `transformers` (version 5) have other paths than the published checkpoints: PEFT
 * writes and reads adapters by the modules' paths and converts none of these.
 */
import type { PretrainedModel } from "./model.ts";

/** One path for the other; a path that is already in the other form stays as it is. */
export interface PeftPaths {
  /** Of a module or parameter in our tree → as PEFT's files have it. */
  toPeft(path: string): string;
  /** The way back; takes paths of files that older versions wrote too. */
  fromPeft(path: string): string;
}

/** `part` wherever it stands as whole words of a path. */
function replaced(path: string, part: string, other: string): string {
  return `.${path}.`.replaceAll(`.${part}.`, `.${other}.`).slice(1, -1);
}

/** Parts of paths that are named otherwise, one after another. */
export function renamedParts(
  parts: readonly (readonly [ours: string, theirs: string])[],
): PeftPaths {
  return {
    toPeft: (path) => parts.reduce((p, [ours, theirs]) => replaced(p, ours, theirs), path),
    fromPeft: (path) => parts.reduce((p, [ours, theirs]) => replaced(p, theirs, ours), path),
  };
}

/** A model all of whose paths begin with a part that is left out. */
export function withoutFirstPart(part: string): PeftPaths {
  const prefix = `${part}.`;
  return {
    toPeft: (path) => (path.startsWith(prefix) ? path.slice(prefix.length) : path),
    fromPeft: (path) => (path.startsWith(prefix) ? path : prefix + path),
  };
}

/** What names in PEFT's files begin with: the model inside the model that holds the adapter. */
export const peftPrefix = "base_model.model.";

/** A path as PEFT's files have it. */
export function peftPath(model: PretrainedModel, path: string): string {
  return model.peftPaths?.toPeft(path) ?? path;
}

/** The name of a parameter or of an adapter's tensor in PEFT's files: `base_model.model.` and the path. */
export function peftName(model: PretrainedModel, path: string): string {
  return peftPrefix + peftPath(model, path);
}

/** The present form of a tensor's name in a file, which an older version may have written. */
export function currentPeftName(model: PretrainedModel, name: string): string {
  const paths = model.peftPaths;
  if (!paths || !name.startsWith(peftPrefix)) return name;
  return peftPrefix + paths.toPeft(paths.fromPeft(name.slice(peftPrefix.length)));
}

/** A test of paths that holds for either form of one. */
export function eitherForm(
  model: PretrainedModel,
  test: (path: string) => boolean,
): (path: string) => boolean {
  return (path) => test(path) || (model.peftPaths !== undefined && test(peftPath(model, path)));
}

/** Whether a name of `target_modules` or `modules_to_save` means a path: the whole of it or its last parts. */
export function isNamed(model: PretrainedModel, path: string, name: string): boolean {
  return eitherForm(model, (form) => form === name || form.endsWith(`.${name}`))(path);
}

/**
 * `rank_pattern` or `alpha_pattern` as PEFT must read them: the patterns as they were given, or every layer
 * that one names by its path.
 * @param numberOf what a pattern says of a layer
 */
export function peftPatterns(
  model: PretrainedModel,
  patterns: Readonly<Record<string, number>>,
  targets: readonly string[],
  numberOf: (path: string) => number | undefined,
): Readonly<Record<string, number>> {
  if (!model.peftPaths) return patterns;
  return Object.fromEntries(
    targets.flatMap((path): [string, number][] => {
      const value = numberOf(path);
      return value === undefined ? [] : [[peftPath(model, path), value]];
    }),
  );
}

/**
 * `target_modules` as PEFT must read them to find these layers.
 * @param wanted names as they were given
 * @param targets paths of the layers that they mean
 */
export function peftTargets(
  model: PretrainedModel,
  wanted: readonly string[],
  targets: readonly string[],
): readonly string[] {
  if (!model.peftPaths) return wanted;
  const last = (path: string): string => peftPath(model, path).split(".").at(-1)!;
  const names = new Set(targets.map(last));
  const meant = [...model.targets.keys()].filter((path) => names.has(last(path)));
  return meant.length === targets.length
    ? [...names]
    : targets.map((path) => peftPath(model, path));
}
