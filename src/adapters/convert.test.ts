import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { noisy, tiny, tinyParams } from "../../test/support/contract.ts";
import { fixture, type RawTensors, tensorOf } from "../../test/support/fixture.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { OptionError, UnsupportedError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { compareLogits, probeInputs, probeLogits } from "../infer/verify.ts";
import { loadModel } from "../models/folder.ts";
import { multiply } from "../tensor/linalg/index.ts";
import { Rng } from "../tensor/rng.ts";
import type { Adapter, LoadedAdapter } from "./adapter.ts";
import { convertToLora } from "./convert.ts";
import { type LoraOptions, lora } from "./lora.ts";
import { factorsOf, plainLora } from "./lora-parts.ts";
import { withModules } from "./saved-modules.ts";

interface Recorded {
  readonly targets: readonly string[];
  readonly lora: {
    readonly params: RawTensors;
    readonly cases: readonly {
      readonly rank: number;
      readonly ranks: Readonly<Record<string, number>>;
      readonly made: RawTensors;
    }[];
  };
}
const recorded = fixture<Recorded>("adapter-algebra");
const backend = await nodeOrt({ threads: 1 });
const { model } = await loadModel(
  nodeHost().files,
  fileURLToPath(new URL("../../test/parity/hf-llama", import.meta.url)),
);
const prefix = "base_model.model.";

const drawn = (options: LoraOptions = {}): LoadedAdapter => {
  const adapter = lora(tiny, { rank: 3, targetModules: ["q_proj", "down_proj"], ...options });
  return { adapter, params: noisy(adapter.init(new Rng(1)), 2, 0.3) };
};

describe("an adapter converted to a plain LoRA", () => {
  it.each(recorded.lora.cases.map((one) => [one.rank, one] as const))(
    "is peft's for %s",
    (wanted, one) => {
      const adapter = lora(model, { rank: 4, alpha: 6, targetModules: recorded.targets });
      const params = Object.fromEntries(
        Object.entries(recorded.lora.params).map(([name, raw]) => [prefix + name, tensorOf(raw)]),
      );
      const options = wanted >= 1 ? { rank: wanted } : { energy: wanted };
      const found = convertToLora(model, { adapter, params }, options);
      expect(Object.fromEntries(found.layers.map(({ path, rank }) => [path, rank]))).toEqual(
        one.ranks,
      );
      for (const [path, part] of plainLora("test", found).parts) {
        const ours = factorsOf(part, found.params);
        const raw = (name: string) => tensorOf(one.made[`${path}.${name}.weight`]!);
        const theirs = factorsOf(part, { [part.a]: raw("lora_A"), [part.b]: raw("lora_B") });
        const [x, y] = [multiply(ours.b, ours.a), multiply(theirs.b, theirs.a)];
        x.data.forEach((value, i) => {
          expect(value).toBeCloseTo(y.data[i]!, 5);
        });
        // Directions are of length 1, up to the sign.
        ours.a.data.forEach((value, i) => {
          expect(Math.abs(value)).toBeCloseTo(Math.abs(theirs.a.data[i]!), 4);
        });
      }
    },
  );

  it("is the same model at full rank, and keeps less the lower the rank", async () => {
    const ids = probeInputs(tiny.sizes, { length: 8 });
    const judge = await probeLogits(backend, tiny, tinyParams, ids, drawn());
    const whole = convertToLora(tiny, drawn(), { energy: 1 });
    expect(whole.layers.every(({ rank, energy }) => rank === 3 && energy > 1 - 1e-9)).toBe(true);
    const logits = await probeLogits(backend, tiny, tinyParams, ids, whole);
    expect(compareLogits(judge, logits).maxRelative).toBeLessThan(1e-5);
    const [one, two] = [1, 2].map((rank) => convertToLora(tiny, drawn(), { rank }).energy);
    expect(one).toBeLessThan(two!);
    expect(two).toBeLessThan(1);
  });

  it("takes the least rank that holds the energy of each layer", () => {
    const { layers } = convertToLora(tiny, drawn({ rank: 8 }), { energy: 0.9 });
    for (const { path, rank, energy } of layers) {
      expect(energy).toBeGreaterThanOrEqual(0.9);
      const less = convertToLora(tiny, drawn({ rank: 8 }), { rank: rank - 1 }).layers;
      expect(less.find((one) => one.path === path)!.energy).toBeLessThan(0.9);
    }
  });

  it("leaves out layers that are not changed, and cuts ranks to what a layer has", () => {
    const { adapter, params } = drawn({ rank: 24, targetModules: ["k_proj", "down_proj"] });
    const still = Object.fromEntries(
      Object.entries(params).map(([name, tensor]) => [
        name,
        name.includes("layers.0") ? tensor.clone() : tensor,
      ]),
    );
    for (const [name, { data }] of Object.entries(still)) {
      if (name.includes("layers.0.mlp")) (data as Float32Array).fill(0);
    }
    const found = convertToLora(tiny, { adapter, params: still }, { rank: 24 });
    expect(found.layers.map(({ path, rank }) => [path, rank])).toEqual([
      ["model.layers.0.self_attn.k_proj", 16],
      ["model.layers.1.self_attn.k_proj", 16],
      ["model.layers.1.mlp.down_proj", 16],
    ]);
  });

  it("keeps modules that are saved beside it", () => {
    const { adapter, params } = drawn();
    const both = withModules(adapter, tiny, ["norm"]);
    const name = `${prefix}model.norm.weight`;
    const all = { ...both.init(new Rng(1)), ...params };
    const found = convertToLora(tiny, { adapter: both, params: all }, { rank: 2 });
    expect(found.adapter.config()["modules_to_save"]).toEqual(["norm"]);
    expect(found.params[name]).toBe(all[name]);
    expect(Object.keys(found.params).sort()).toEqual(
      Object.keys(found.adapter.init(new Rng(0))).sort(),
    );
  });

  it("refuses in a sentence what LoRA cannot hold", () => {
    const convert =
      (loaded: LoadedAdapter, options = {}) =>
      () =>
        convertToLora(tiny, loaded, { rank: 2, ...options });
    expect(convert(drawn({ useDora: true }))).toThrow(
      new UnsupportedError(
        "convert: what DoRA (LORA) does is no fixed change of weights, which LoRA could hold — merge it into the model instead (plasticity merge-adapter), where it can be.",
      ),
    );
    const other: Adapter = {
      ...drawn().adapter,
      title: "Norms",
      merge: (base) => ({ "model.norm.weight": noisy({ x: base["model.norm.weight"]! }, 1)["x"]! }),
    };
    expect(convert({ adapter: other, params: {} })).toThrow(
      new UnsupportedError(
        'convert: Norms changes "model.norm.weight", which is no weight that LoRA sits on — merge it into the model instead (plasticity merge-adapter).',
      ),
    );
    const { adapter } = drawn();
    expect(convert({ adapter, params: adapter.init(new Rng(1)) })).toThrow(
      new OptionError("convert: the adapter changes nothing, so there is nothing to convert."),
    );
    const wrong: [object, string][] = [
      [{ energy: 0.5 }, "convert: give either a rank, or the share of energy to keep."],
      [{ rank: 0 }, "convert: rank must be a whole number from 1 to 65536, got 0."],
      [{ rank: undefined, energy: 1.5 }, "convert: energy must be a number in (0, 1], got 1.5."],
    ];
    for (const [options, sentence] of wrong) {
      expect(convert(drawn(), options)).toThrow(new OptionError(sentence));
    }
  });
});
