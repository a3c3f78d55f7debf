import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { noisy, tiny } from "../../test/support/contract.ts";
import { fixture, type RawTensors, tensorOf } from "../../test/support/fixture.ts";
import { OptionError, UnsupportedError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { families } from "../models/families.ts";
import { loadModel } from "../models/folder.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { type Matrix, multiply } from "../tensor/linalg/index.ts";
import { Rng } from "../tensor/rng.ts";
import type { LoadedAdapter } from "./adapter.ts";
import { type CombineMethod, combineAdapters, combineEntries, combineMethods } from "./algebra.ts";
import { type LoraOptions, lora } from "./lora.ts";
import { factorsOf, plainLora } from "./lora-parts.ts";
import { withModules } from "./saved-modules.ts";

interface Case {
  readonly adapters: readonly ("a" | "b" | "c")[];
  readonly weights: readonly number[];
  readonly method: string;
  readonly density?: number;
  readonly svd_rank?: number;
  readonly majority_sign_method?: "total" | "frequency";
  readonly made: RawTensors;
}
interface Recorded {
  readonly adapters: Record<"a" | "b" | "c", { rank: number; alpha: number; params: RawTensors }>;
  readonly cases: readonly Case[];
}
const recorded = fixture<Recorded>("adapter-algebra");
const { model } = await loadModel(
  nodeHost().files,
  fileURLToPath(new URL("../../test/parity/hf-llama", import.meta.url)),
);

const paramsOf = (raw: RawTensors): TensorRecord =>
  Object.fromEntries(
    Object.entries(raw).map(([name, one]) => [`base_model.model.${name}`, tensorOf(one)]),
  );
const theirs = (name: "a" | "b" | "c"): LoadedAdapter => {
  const { rank, alpha, params } = recorded.adapters[name];
  const targets = Object.keys(params).map((one) => one.replace(/\.lora_[AB]\.weight$/, ""));
  return {
    adapter: lora(model, { rank, alpha, targetModules: [...new Set(targets)] }),
    params: paramsOf(params),
  };
};
/** s B A of every layer. */
function products(loaded: LoadedAdapter): Map<string, Matrix> {
  const { parts } = plainLora("test", loaded);
  return new Map(
    [...parts].map(([path, part]) => {
      const { a, b } = factorsOf(part, loaded.params);
      const product = multiply(b, a);
      product.data.forEach((x, i) => {
        product.data[i] = x * part.scale;
      });
      return [path, product];
    }),
  );
}
const furthest = (one: Matrix, two: Matrix): number =>
  Math.max(...one.data.map((x, i) => Math.abs(x - two.data[i]!)));

describe("adapters combined", () => {
  it.each(recorded.cases.map((one, i) => [`${one.method} (${i})`, one] as const))(
    "are peft's with %s",
    (_, one) => {
      const method = one.method.replaceAll("_", "-") as CombineMethod;
      const { adapter, params } = combineAdapters(model, one.adapters.map(theirs), {
        method,
        weights: one.weights,
        ...(one.density !== undefined && { density: one.density }),
        ...(one.svd_rank !== undefined && { rank: one.svd_rank }),
        ...(one.majority_sign_method && { majoritySign: one.majority_sign_method }),
      });
      expect(adapter.config()["lora_alpha"]).toBe(adapter.config()["r"]);
      const other = paramsOf(one.made);
      if (!method.endsWith("svd") && one.adapters.length === 2) {
        for (const [name, tensor] of Object.entries(other)) {
          expect([name, params[name]!.shape]).toEqual([name, tensor.shape]);
          const own = params[name]!.numbers();
          Array.from(tensor.numbers(), (x, i) => expect(x).toBeCloseTo(own[i]!, 5));
        }
      }
      const rank = Math.max(...Object.values(one.made).map(({ shape }) => Math.min(...shape)));
      const made = {
        adapter: lora(model, { ...optionsOf(one), rank, alpha: rank }),
        params: other,
      };
      const [ours, judge] = [products({ adapter, params }), products(made)];
      expect([...ours.keys()]).toEqual([...judge.keys()]);
      for (const [path, product] of ours) {
        expect(furthest(product, judge.get(path)!)).toBeLessThan(1e-5);
      }
    },
  );
  const optionsOf = (one: Case): LoraOptions => ({
    targetModules: [
      ...new Set(Object.keys(one.made).map((name) => name.replace(/\.lora_[AB]\.weight$/, ""))),
    ],
  });

  const drawn = (seed: number, options: LoraOptions = {}, on: PretrainedModel = tiny) => {
    const adapter = lora(on, { rank: 2, targetModules: ["q_proj", "down_proj"], ...options });
    return { adapter, params: noisy(adapter.init(new Rng(seed)), seed, 0.3) };
  };

  it("elects signs and means what agrees, worked by hand", () => {
    const stack = [
      [1, -3, 0, 2],
      [2, 1, 0, -2],
      [-1, 1, 5, 0],
    ].map((row) => Float64Array.from(row));
    const weights = [1, 1, 2];
    // Sums 2, -1, 5, 0: plus, minus, plus, plus (no sign wins).
    const total = combineEntries(stack, weights, { elects: true, majoritySign: "total" });
    expect([...total]).toEqual([1.5, -3, 10, 2]);
    // More adapters say plus of the second entry: (1 + 2 · 1) / 2.
    const frequency = combineEntries(stack, weights, { elects: true, majoritySign: "frequency" });
    expect([...frequency]).toEqual([1.5, 1.5, 10, 2]);
    const sum = combineEntries(stack, weights, { elects: false, majoritySign: "total" });
    expect([...sum]).toEqual([1, 0, 10, 0]);
  });

  it.each(["cat", "svd"] as const)("sum exactly by %s, with a weight below 0", (method) => {
    const [one, two] = [drawn(1), drawn(2, { rank: 3, targetModules: ["down_proj"], alpha: 7 })];
    const made = combineAdapters(tiny, [one, two], {
      method,
      weights: [0.5, -2],
      ...(method === "svd" && { rank: 5 }),
    });
    const [p, q, sum] = [products(one), products(two), products(made)];
    for (const [path, product] of sum) {
      product.data.forEach((x, i) => {
        const other = q.get(path)?.data[i] ?? 0;
        expect(x).toBeCloseTo(0.5 * p.get(path)!.data[i]! - 2 * other, 4);
      });
      expect(made.energy[path]).toBeCloseTo(1, 10);
    }
    if (method === "cat") expect(made.adapter.config()["rank_pattern"]).not.toEqual({});
  });

  it("take an adapter away from itself", () => {
    const one = drawn(1);
    const { adapter, params } = combineAdapters(tiny, [one, one], {
      method: "svd",
      weights: [1, -1],
    });
    for (const { data } of products({ adapter, params }).values()) {
      expect(Math.max(...data.map(Math.abs))).toBeLessThan(1e-6);
    }
  });

  it("tell how much a smaller rank holds", () => {
    const pair = [drawn(1), drawn(2)];
    const energyAt = (rank: number): number[] =>
      Object.values(combineAdapters(tiny, pair, { method: "svd", rank }).energy);
    const [less, more, all] = [energyAt(1), energyAt(3), energyAt(4)];
    less.forEach((share, i) => {
      expect(share).toBeLessThan(more[i]!);
      expect(more[i]).toBeLessThan(1);
      expect(all[i]).toBeCloseTo(1, 10);
    });
  });

  it.each(["dare-linear", "dare-ties", "dare-linear-svd", "dare-ties-svd"] as const)(
    "draw %s by the seed, and drop nothing at density 1",
    (method) => {
      const pair = [drawn(1), drawn(2)];
      const at = (density: number, seed = 0): number[] => {
        const { params } = combineAdapters(tiny, pair, { method, density, seed });
        return Object.values(params).flatMap((one) => Array.from(one.numbers()));
      };
      expect(at(0.5)).toEqual(at(0.5));
      expect(at(0.5)).not.toEqual(at(0.5, 1));
      const plain = method.replace("dare-", "").replace("linear-svd", "svd") as CombineMethod;
      const isSum = plain === "linear" || plain === "svd";
      const { params } = combineAdapters(tiny, pair, {
        method: plain,
        ...(!isSum && { density: 1 }),
      });
      const all = Object.values(params).flatMap((one) => Array.from(one.numbers()));
      at(1).forEach((x, i) => {
        expect(Math.abs(Math.abs(x) - Math.abs(all[i]!))).toBeLessThan(1e-5);
      });
    },
  );

  it("give by DARE the sum in the mean, as what is kept is scaled up", () => {
    const one = drawn(1);
    const name = Object.keys(one.params)[0]!;
    const wanted = combineAdapters(tiny, [one], { method: "linear" }).params[name]!.numbers();
    const sums = new Float64Array(wanted.length);
    const draws = 400;
    for (let seed = 0; seed < draws; seed++) {
      const { params } = combineAdapters(tiny, [one], {
        method: "dare-linear",
        density: 0.5,
        seed,
      });
      const own = params[name]!.numbers();
      let kept = 0;
      for (let i = 0; i < sums.length; i++) {
        sums[i]! += own[i]! / draws;
        if (own[i] !== 0) {
          kept++;
          expect(own[i]).toBeCloseTo(2 * wanted[i]!, 5);
        }
      }
      expect(kept).toBeGreaterThan(0);
      expect(kept).toBeLessThan(sums.length);
    }
    // Each entry is 0 or 2x: its mean has the error |x| / √400.
    sums.forEach((x, i) => {
      expect(Math.abs(x - wanted[i]!)).toBeLessThan((5 * Math.abs(wanted[i]!)) / 20 + 1e-6);
    });
  });

  it("keep exactly a share of the entries where they prune", () => {
    const made = combineAdapters(tiny, [drawn(1)], { method: "magnitude-prune", density: 0.3 });
    for (const tensor of Object.values(made.params)) {
      const kept = Array.from(tensor.numbers()).filter((x) => x !== 0).length;
      expect(kept).toBe(Math.floor(0.3 * tensor.size));
    }
  });

  it("are convolutions and embeddings too", () => {
    const vit = families["vit"]!({
      model_type: "vit",
      architectures: ["ViTModel"],
      ...{ hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 3 },
      ...{ intermediate_size: 48, image_size: 16, patch_size: 4 },
    });
    for (const [on, targetModules] of [
      [vit, ["projection"]],
      [tiny, ["embed_tokens"]],
    ] as const) {
      const pair = [drawn(1, { targetModules }, on), drawn(2, { targetModules, rank: 1 }, on)];
      const made = combineAdapters(on, pair, { method: "svd", weights: [1, 2], rank: 3 });
      const [p, q, sum] = [products(pair[0]!), products(pair[1]!), products(made)];
      expect(sum.size).toBe(1);
      for (const [path, { data }] of sum) {
        data.forEach((x, i) => {
          expect(x).toBeCloseTo(p.get(path)!.data[i]! + 2 * q.get(path)!.data[i]!, 4);
        });
      }
    }
  });

  it("refuse in a sentence what does not go together", () => {
    const pair = [drawn(1), drawn(2, { rank: 3 })];
    const combine =
      (options: object, adapters: readonly LoadedAdapter[] = pair) =>
      () =>
        combineAdapters(tiny, adapters, { method: "cat", ...options });
    const cases: [() => unknown, string][] = [
      [
        combine({ method: "linear" }),
        'combine: linear needs equal ranks, and "model.layers.0.self_attn.q_proj" has 2 and 3 — take cat, svd or a method that ends with -svd.',
      ],
      [combine({ weights: [1] }), "combine: needs one weight for each adapter, got 1 for 2."],
      [
        combine({ weights: [1, Number.NaN] }),
        "combine: weights must be numbers from -1e6 to 1e6, got NaN.",
      ],
      [
        combine({ method: "ties" }),
        "combine: ties needs a density, the share of entries that is kept — 0.2 is usual.",
      ],
      [
        combine({ method: "ties-svd", density: 0 }),
        "combine: density must be a number in (0, 1], got 0.",
      ],
      [combine({ density: 0.5 }), "combine: cat drops no entries — leave density out."],
      [
        combine({ rank: 4 }),
        "combine: cat makes the adapters' own rank — leave rank out, or take svd or a method that ends with -svd.",
      ],
      [
        combine({ method: "svd", rank: 0 }),
        "combine: rank must be a whole number from 1 to 65536, got 0.",
      ],
      [combine({}, []), "combine: needs from 1 to 256 adapters, got 0."],
      [
        combine({ method: "sum" }),
        `combine: method must be ${combineMethods.join(" or ")}, got "sum".`,
      ],
    ];
    for (const [act, sentence] of cases) expect(act).toThrow(new OptionError(sentence));
    const more: [LoadedAdapter, string][] = [
      [drawn(1, { useDora: true }), "combine: adapter 2: has DoRA's magnitudes"],
      [drawn(1, { loraBias: true }), "combine: adapter 2: has biases"],
      [
        {
          adapter: withModules(drawn(1).adapter, tiny, ["norm"]),
          params: withModules(drawn(1).adapter, tiny, ["norm"]).init(new Rng(1)),
        },
        'combine: adapter 2: has "base_model.model.model.norm.weight"',
      ],
    ];
    for (const [adapter, start] of more) {
      const act = combine({ method: "svd" }, [drawn(1), adapter]);
      expect(act).toThrow(UnsupportedError);
      expect(act).toThrow(
        `${start} beside LoRA's products, which is not taken — merge it into the model instead (plasticity merge-adapter).`,
      );
    }
  });
});
