import { describe, expect, it } from "vitest";
import { backend, noisy, tiny, tinyParams } from "../../test/support/contract.ts";
import { type LoraOptions, lora } from "../adapters/lora.ts";
import { compareLogits, probeInputs, probeLogits } from "../infer/verify.ts";
import { Rng } from "../tensor/rng.ts";
import { onWholeBase, takenFromBase } from "./initialise.ts";

const ids = probeInputs(tiny.sizes, { length: 8 });

describe.each<[string, LoraOptions]>([
  ["plain", { rank: 2, targetModules: "all-linear" }],
  ["with an alpha of its own", { rank: 3, alpha: 5, targetModules: ["q_proj", "down_proj"] }],
  ["rank-stabilised", { rank: 3, alpha: 4, rankStabilized: true, targetModules: "all-linear" }],
  [
    "with other ranks and alphas in some layers",
    {
      rank: 2,
      targetModules: "all-linear",
      rankPattern: { q_proj: 4 },
      alphaPattern: { v_proj: 3 },
    },
  ],
])("a LoRA taken from its base, %s", (_, options) => {
  const adapter = lora(tiny, options);
  const first = noisy(adapter.init(new Rng(1)), 2, 0.2);
  const trained = noisy(first, 3, 0.1);
  const base = takenFromBase(tinyParams, adapter, first);

  it("leaves the model as it was at first", async () => {
    const was = await probeLogits(backend, tiny, tinyParams, ids);
    const now = await probeLogits(backend, tiny, base, ids, { adapter, params: first });
    expect(compareLogits(was, now).maxRelative).toBeLessThan(1e-5);
    const without = await probeLogits(backend, tiny, base, ids);
    expect(compareLogits(was, without).maxRelative).toBeGreaterThan(1e-2);
  });

  it("is one of twice the rank on the base as it was", async () => {
    const kept = onWholeBase(adapter, options, first, {
      ...trained,
      head: first[Object.keys(first)[0]!]!,
    });
    const whole = lora(tiny, kept.lora);
    const { head, ...params } = kept.params;
    expect(head).toBeDefined();
    for (const [path, layer] of adapter.layers) {
      const own = whole.layers.get(path)!;
      expect([path, own.rank]).toEqual([path, 2 * layer.rank]);
      expect(own.scale).toBeCloseTo(layer.scale, 12);
    }
    const was = await probeLogits(backend, tiny, base, ids, { adapter, params: trained });
    const now = await probeLogits(backend, tiny, tinyParams, ids, { adapter: whole, params });
    expect(compareLogits(was, now).maxRelative).toBeLessThan(1e-5);
  });
});
