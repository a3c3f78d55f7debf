/** config.json of merged models: what must be alike, what is told, and the number of layers. */
import { FormatError, UnsupportedError } from "../../../errors.ts";
import type { Source } from "./source.ts";

type Json = Readonly<Record<string, unknown>>;

/** Fields that say nothing of how a model computes. */
const silent =
  /^(_|torch_dtype$|dtype$|transformers_version$|use_cache$|architectures$|model_type$|auto_map$|name_or_path$|id2label$|label2id$)/;

const layerFields = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"] as const;

/**
 * Refuses models of another architecture, and tells in which settings the others differ from the one whose
 * config.json is written.
 * @throws FormatError when model_type is another.
 */
export function compareConfigs(
  where: string,
  home: Source,
  sources: readonly Source[],
  isWhole: boolean,
): string[] {
  const warnings: string[] = [];
  for (const source of sources) {
    if (source === home) continue;
    const [a, b] = [home.config, source.config] as [Json, Json];
    if (a["model_type"] !== b["model_type"]) {
      throw new FormatError(
        `${where}: "${source.label}" is of the architecture ${JSON.stringify(b["model_type"] ?? null)}, "${home.label}" of ${JSON.stringify(a["model_type"] ?? null)} — models must be of one.`,
      );
    }
    const fields = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((field) => {
      if (silent.test(field) || a[field] === undefined || b[field] === undefined) return false;
      if (!isWhole && (layerFields as readonly string[]).includes(field)) return false;
      return JSON.stringify(a[field]) !== JSON.stringify(b[field]);
    });
    for (const field of fields.slice(0, 8)) {
      const show = (value: unknown): string => JSON.stringify(value).slice(0, 40);
      warnings.push(
        `"${source.label}" has ${field} ${show(b[field])}, the merged model ${show(a[field])} as "${home.label}".`,
      );
    }
  }
  return warnings;
}

/**
 * The config of a model with so many layers.
 * @throws UnsupportedError where the number is not known, or settings are given layer by layer.
 */
export function withLayers(where: string, home: Source, layers: number): Json {
  const config = home.config as Json;
  const field = layerFields.find((name) => typeof config[name] === "number");
  if (field === undefined) {
    throw new UnsupportedError(
      `${where}: ${home.path}/config.json does not say how many layers there are (${layerFields.join(", ")}) — merge whole models.`,
    );
  }
  if (config[field] === layers) return config;
  const listed = Object.entries(config).find(
    ([, value]) => Array.isArray(value) && value.length === config[field],
  );
  if (listed) {
    throw new UnsupportedError(
      `${where}: ${home.path}/config.json lists "${listed[0]}" layer by layer, and the slices give ${layers} layers in place of ${config[field]} — keep the number of layers.`,
    );
  }
  return { ...config, [field]: layers };
}
