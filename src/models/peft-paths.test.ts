import { describe, expect, it } from "vitest";
import { clipTextFromConfig, clipVisionFromConfig } from "./clip.ts";
import type { PretrainedModel } from "./model.ts";
import { currentPeftName, isNamed, peftName, peftPath, peftTargets } from "./peft-paths.ts";
import { Vit } from "./vit.ts";

const vit = new Vit({
  dModel: 8,
  nLayers: 2,
  nHeads: 2,
  dFeedForward: 12,
  imageSize: [4, 4],
  patchSize: [2, 2],
  head: {
    task: "sequence-classification",
    labels: ["a", "b"],
    problem: "single_label_classification",
  },
});
const clipText = (architecture: string): PretrainedModel =>
  clipTextFromConfig({
    ...{ architectures: [architecture], vocab_size: 9, hidden_size: 8, intermediate_size: 8 },
    ...{ num_hidden_layers: 1, num_attention_heads: 2, eos_token_id: 2 },
  });
const clipVision = clipVisionFromConfig({
  ...{ architectures: ["CLIPVisionModel"], hidden_size: 8, intermediate_size: 8, image_size: 4 },
  ...{ num_hidden_layers: 1, num_attention_heads: 2, patch_size: 2 },
});

describe.each([
  ["ViT", vit],
  ["CLIP's tower of texts", clipText("CLIPTextModel")],
  ["the same with a projection", clipText("CLIPTextModelWithProjection")],
  ["CLIP's tower of pictures", clipVision],
] as const)("%s", (_, model) => {
  it("gives every layer and parameter another path and takes it back", () => {
    const paths = [...model.targets.keys(), ...[...model.slots()].map(([path]) => path)];
    const theirs = paths.map((path) => peftPath(model, path));
    expect(new Set(theirs).size).toBe(paths.length);
    for (const [i, path] of paths.entries()) {
      expect(model.peftPaths?.fromPeft(theirs[i]!) ?? theirs[i]).toBe(path);
      // Both forms of a tensor's name in a file mean the present one.
      const name = peftName(model, path);
      expect(currentPeftName(model, name)).toBe(name);
      expect(currentPeftName(model, `base_model.model.${path}`)).toBe(name);
    }
  });
});

describe("peftTargets", () => {
  it("names layers as PEFT finds them", () => {
    const paths = (name: string): string[] =>
      [...vit.targets.keys()].filter((path) => isNamed(vit, path, name));
    expect(peftTargets(vit, ["query"], paths("query"))).toEqual(["q_proj"]);
    expect(paths("q_proj")).toEqual(paths("query"));
    expect(peftTargets(vit, ["dense"], paths("dense"))).toEqual(["o_proj", "fc1", "fc2"]);
    const one = "vit.encoder.layer.1.attention.attention.key";
    expect(peftTargets(vit, [one], paths(one))).toEqual(["vit.layers.1.attention.k_proj"]);
    expect(peftTargets(clipText("CLIPTextModelWithProjection"), ["q_proj"], [])).toEqual([
      "q_proj",
    ]);
  });
});
