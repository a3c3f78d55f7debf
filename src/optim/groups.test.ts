import { describe, expect, it } from "vitest";
import { adamW } from "./adamw.ts";
import { decayGroups, isEmbedding, isHead, matrixGroups, type ParameterGroup } from "./groups.ts";
import { muon } from "./muon.ts";
import { sgd } from "./sgd.ts";

const params = {
  "transformer.wte.weight": { shape: [50, 8] },
  "transformer.wpe.weight": { shape: [16, 8] },
  "transformer.h.0.ln_1.weight": { shape: [8] },
  "transformer.h.0.attn.c_attn.weight": { shape: [8, 24] },
  "transformer.h.0.attn.c_attn.bias": { shape: [24] },
  "stem.conv.weight": { shape: [8, 3, 3, 3] },
  "lm_head.weight": { shape: [50, 8] },
  scale: { shape: [] },
};

describe("decay groups", () => {
  const split = (options: Partial<Parameters<typeof decayGroups>[1]> = {}) => {
    const asked: number[] = [];
    const groups = decayGroups(params, { weightDecay: 0.1, ...options }, (weightDecay) => {
      asked.push(weightDecay);
      return adamW({ weightDecay });
    });
    return { groups, asked, still: groups[1]!.paths };
  };
  const small = ["transformer.h.0.ln_1.weight", "transformer.h.0.attn.c_attn.bias", "scale"];

  it("leave out parameters of fewer than two dimensions", () => {
    const { still, asked, groups } = split();
    expect(asked).toEqual([0.1, 0]);
    expect(still).toEqual(small);
    expect(groups.flatMap(({ paths }) => paths).sort()).toEqual(Object.keys(params).sort());
  });

  it("leave out embeddings when asked", () => {
    expect(split({ decayEmbeddings: false }).still).toEqual([
      "transformer.wte.weight",
      "transformer.wpe.weight",
      ...small,
    ]);
  });

  it("leave out what a rule says", () => {
    const rule = (path: string, shape: readonly number[]): boolean =>
      path.startsWith("stem") && shape.length === 4;
    expect(split({ noDecay: rule }).still).toContain("stem.conv.weight");
  });

  it("are one where nothing is left for the other", () => {
    const make = (weightDecay: number) => adamW({ weightDecay });
    expect(decayGroups({ w: { shape: [2, 2] } }, { weightDecay: 0.1 }, make)).toHaveLength(1);
    expect(() => decayGroups({}, { weightDecay: 0.1 }, make)).toThrow(
      "groups: no parameters to split.",
    );
    expect(() => decayGroups(params, { weightDecay: -1 }, make)).toThrow(
      "decayGroups: weightDecay must be a number from 0, got -1.",
    );
  });
});

describe("matrix groups", () => {
  it("give inner matrices to one optimiser, the rest to another", () => {
    const [matrices, others] = [muon(), sgd()];
    const groups: readonly ParameterGroup[] = matrixGroups(params, { matrices, others });
    expect(groups[0]).toEqual({
      paths: ["transformer.h.0.attn.c_attn.weight"],
      optimizer: matrices,
    });
    expect(groups[1]!.optimizer).toBe(others);
    expect(groups[1]!.paths).toHaveLength(7);
    for (const path of groups[0]!.paths) {
      expect(muon().refusal?.(params[path as keyof typeof params].shape)).toBeUndefined();
    }
  });

  it("know embeddings and heads by their published names", () => {
    for (const path of [
      "model.embed_tokens.weight",
      "bert.embeddings.word_embeddings.weight",
      "vit.pos_embed",
      "wpe",
    ]) {
      expect(isEmbedding(path)).toBe(true);
    }
    expect(isEmbedding("transformer.h.0.mlp.c_fc.weight")).toBe(false);
    expect(isHead("lm_head.weight")).toBe(true);
    expect(isHead("model.layers.0.heads_mix.weight")).toBe(false);
  });
});
