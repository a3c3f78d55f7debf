/** Names of tensors: which layer they are of, and how another folder of the same architecture calls them. */
import type { Source } from "./source.ts";

/** A tensor of a layer: `prefix.index.rest`. */
export interface LayerName {
  /** What stands before the layer's number, as `model.layers`. */
  readonly stack: string;
  readonly index: number;
  readonly rest: string;
}

/** The layer that a tensor is of, by the first number in its name. */
export function layerOf(name: string): LayerName | undefined {
  const found = /^(.+?)\.(\d{1,5})\.(.+)$/.exec(name);
  return found ? { stack: found[1], index: Number(found[2]), rest: found[3] } : undefined;
}

export function layerName(stack: string, index: number, rest: string): string {
  return `${stack}.${index}.${rest}`;
}

/** Layers of each stack. */
export function stacksOf(names: Iterable<string>): Map<string, number> {
  const stacks = new Map<string, number>();
  for (const name of names) {
    const layer = layerOf(name);
    if (layer) stacks.set(layer.stack, Math.max(stacks.get(layer.stack) ?? 0, layer.index + 1));
  }
  return stacks;
}

/** Tensors outside the layers that stand before them; the others stand behind. */
export function isEarly(name: string): boolean {
  return /embed|(^|\.)(wte|wpe|shared)\./.test(name);
}

/** Buffers that older checkpoints hold, which models compute themselves. */
const buffers = /(^|\.)(attn\.(masked_bias|bias)|rotary_emb\.inv_freq|position_ids)$/;

export function isBuffer(name: string, source: Source): boolean {
  return buffers.test(name) || (source.model?.ignored?.test(name) ?? false);
}

/** The part before the first dot that most names have. */
function prefixOf(names: Iterable<string>): string {
  const counts = new Map<string, number>();
  for (const name of names) {
    const first = name.split(".", 1)[0];
    counts.set(first, (counts.get(first) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";
}

/**
 * How a source calls the tensors of another: some folders leave out the name of the inner model.
 * @returns the source's own name by the base's; names that the base has no like for stand under their own
 */
export function ownNames(base: Source, source: Source): ReadonlyMap<string, string> {
  const [known, prefix] = [base.entries, prefixOf(base.entries.keys())];
  const own = prefixOf(source.entries.keys());
  const names = new Map<string, string>();
  for (const name of source.entries.keys()) {
    const longer = `${prefix}.${name}`;
    const shorter = name.startsWith(`${own}.`) ? name.slice(own.length + 1) : name;
    const fits = [name, longer, shorter].find((item) => known.has(item));
    const like = layerOf(name);
    // A layer that the base does not have is named as those it has.
    const stem =
      like &&
      [`${prefix}.`, ""].find((start) =>
        known.has(`${start}${layerName(like.stack, 0, like.rest)}`),
      );
    names.set(fits ?? (stem !== undefined ? `${stem}${name}` : name), name);
  }
  return names;
}
