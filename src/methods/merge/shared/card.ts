/** README.md of a merged model: from what it was made, and how. */
import type { MergeConfig } from "./config.ts";
import type { MergePlan } from "./plan.ts";
import type { Source } from "./source.ts";

/** A card in the hub's form; its settings are the configuration as JSON, which is YAML as well. */
export function cardOf(config: MergeConfig, plan: MergePlan, sources: readonly Source[]): string {
  const { method } = plan;
  const base = config.baseModel === undefined ? "" : ` with "${config.baseModel}" as the base`;
  const { defaults, isWhole, ...settings } = config;
  return [
    "---",
    "tags: [merge, plasticity]",
    "base_model:",
    ...sources.map(({ label }) => `  - ${JSON.stringify(label)}`),
    "---",
    "",
    `# Merged by ${method.title}`,
    "",
    `Made of ${sources.length} models${base}, by \`plasticity merge\`.`,
    ...(method.paper ? ["", `Method: [${method.paper.title}](${method.paper.url}).`] : []),
    "",
    "```json",
    JSON.stringify(settings, null, 2),
    "```",
    "",
  ].join("\n");
}
