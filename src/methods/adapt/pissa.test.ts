import { describe, expect, it } from "vitest";
import { backend, scene, tiny, tinyParams } from "../../../test/support/contract.ts";
import { directionsOf, started, starts } from "../../../test/support/lora-start.ts";
import { lora as bindLora } from "../../adapters/lora.ts";
import { OptionError } from "../../errors.ts";
import { compareLogits, probeInputs, probeLogits } from "../../infer/verify.ts";
import { matrix, multiply, svd } from "../../tensor/linalg/index.ts";
import { onWholeBase, takenFromBase } from "../initialise.ts";
import { olora, oloraFactors } from "./olora.ts";
import { pissa, pissaFactors } from "./pissa.ts";

describe("PiSSA", () => {
  it("begins with the largest direction, whatever the scale, worked by hand", () => {
    // diag(4, 1): the first direction is the first axis with 4, so √(4 / 2) on both sides at scale 2.
    const weight = matrix(2, 2, Float64Array.of(4, 0, 0, 1));
    const { a, b } = pissaFactors(svd(weight), 1, 2);
    expect(Math.abs(a.data[0]!)).toBeCloseTo(Math.SQRT2, 12);
    expect(Math.abs(b.data[0]!)).toBeCloseTo(Math.SQRT2, 12);
    expect(2 * multiply(b, a).data[0]!).toBeCloseTo(4, 12);
  });

  it("holds more of each weight than any other part of its rank", async () => {
    const lora = { rank: 3, targetModules: "all-linear" } as const;
    const held = async (method: typeof pissa | typeof olora): Promise<number[]> => {
      const { report } = await method.roles.initialiser!.initialise(scene(), lora, {});
      return Object.values(report["energy"] as Record<string, number>);
    };
    const [principal, orthonormal] = [await held(pissa), await held(olora)];
    principal.forEach((share, i) => {
      expect(share).toBeGreaterThan(orthonormal[i]!);
      expect(share).toBeLessThan(1);
    });
  });

  it("comes near the exact start by a drawn subspace, the nearer the more turns", async () => {
    const lora = { rank: 2, targetModules: "all-linear" } as const;
    const share = async (niter: number): Promise<number> => {
      const { report } = await pissa.roles.initialiser!.initialise(scene(), lora, { niter });
      return Object.values(report["energy"] as Record<string, number>).reduce((a, b) => a + b, 0);
    };
    const [exact, one, many] = [await share(0), await share(1), await share(16)];
    expect(one).toBeLessThan(exact);
    expect(many).toBeGreaterThan(one);
    expect(exact - many).toBeLessThan(1e-3 * exact);
  });

  it.each(
    starts.cases.filter(({ init }) => init === "pissa").map((one) => [one.base, one] as const),
  )("has peft's first numbers on %s", async (_, one) => {
    const { adapter, found } = await started(one, pissa, {});
    for (const [name, theirs, ours] of directionsOf(one, adapter, found.params)) {
      theirs.forEach((x, j) => {
        expect(Math.abs(x - ours[j]!), name).toBeLessThan(2e-5);
      });
    }
  });

  it("takes a bias beside B for no part of the base", async () => {
    const lora = { rank: 2, targetModules: ["v_proj"], loraBias: true } as const;
    const { params } = await pissa.roles.initialiser!.initialise(scene(), lora, {});
    const adapter = bindLora(tiny, lora);
    const all = { ...adapter.init(scene().rng), ...params };
    const base = takenFromBase(tinyParams, adapter, all);
    const biased = Object.keys(base).filter((name) => name.endsWith("v_proj.bias"));
    expect(biased).toEqual([]);
  });

  it("refuses a rank above a layer's directions, and other layers than linear ones", () => {
    const begin = (options: object) => () =>
      pissa.roles.initialiser!.initialise(scene(), options, {});
    expect(begin({ rank: 17, targetModules: ["q_proj"] })).toThrow(
      new OptionError(
        'pissa: rank 17 is more than the 16 directions of "model.layers.0.self_attn.q_proj" (16, 16) — take a lower rank, or rankPattern for that layer.',
      ),
    );
    expect(begin({ rank: 2, targetModules: ["embed_tokens", "q_proj"] })).toThrow(
      'pissa: "model.embed_tokens" is no linear layer, and has no first numbers here — leave it out of targetModules.',
    );
  });

  it("is kept on the whole base with alphas and ranks by pattern", async () => {
    const lora = {
      rank: 2,
      alpha: 3,
      targetModules: "all-linear",
      rankPattern: { down_proj: 3 },
      alphaPattern: { q_proj: 5 },
    } as const;
    const { params } = await pissa.roles.initialiser!.initialise(scene(), lora, {});
    const adapter = bindLora(tiny, lora);
    const kept = onWholeBase(adapter, lora, params, params);
    const whole = bindLora(tiny, kept.lora);
    const ids = probeInputs(tiny.sizes, { length: 8 });
    const logits = await probeLogits(backend, tiny, tinyParams, ids, {
      adapter: whole,
      params: kept.params,
    });
    const plain = await probeLogits(backend, tiny, tinyParams, ids);
    expect(compareLogits(plain, logits).maxRelative).toBeLessThan(1e-5);
  });
});

describe("OLoRA", () => {
  it("begins with the first column of Q and row of R, worked by hand", () => {
    // (3, 4) / 5 and (5, 11 / 5).
    const q = matrix(2, 2, Float64Array.of(0.6, -0.8, 0.8, 0.6));
    const r = matrix(2, 2, Float64Array.of(5, 2.2, 0, 0.4));
    const { a, b } = oloraFactors({ q, r }, 1);
    expect([...b.data, ...a.data]).toEqual([0.6, 0.8, 5, 2.2]);
  });

  it("has peft's first numbers", async () => {
    const one = starts.cases.find(({ init }) => init === "olora")!;
    const { adapter, found } = await started(one, olora, {});
    for (const [name, theirs, ours] of directionsOf(one, adapter, found.params)) {
      theirs.forEach((x, j) => {
        expect(Math.abs(x - ours[j]!), name).toBeLessThan(2e-5);
      });
    }
  });

  it("gives B orthonormal columns", async () => {
    const one = starts.cases.find(({ init }) => init === "olora")!;
    const { adapter, found } = await started(one, olora, {});
    for (const { b, rank } of adapter.layers.values()) {
      const columns = matrix(
        found.params[b]!.shape[0]!,
        rank,
        Float64Array.from(found.params[b]!.numbers()),
      );
      multiply(columns, columns, { transA: true }).data.forEach((x, i) => {
        expect(x).toBeCloseTo(i % (rank + 1) === 0 ? 1 : 0, 5);
      });
    }
  });
});
