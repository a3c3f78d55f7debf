import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { backend, bits, dataOf, noisy, tiny, tinyParams } from "../../test/support/contract.ts";
import { OptionError, StateError, UnsupportedError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { Decoder } from "../infer/decoder.ts";
import { compareLogits, probeInputs, probeLogits } from "../infer/verify.ts";
import { firstNumbers } from "../methods/initialise.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Finetuner } from "../train/finetune.ts";
import { traineeOf } from "../train/trainee.ts";
import { type Adapter, type LoadedAdapter, weightsScene } from "./adapter.ts";
import { combineAdapters } from "./algebra.ts";
import { type LoraOptions, lora } from "./lora.ts";
import { mergeInto } from "./merged.ts";
import { withModules } from "./saved-modules.ts";
import { type AdapterSet, adapterSet, loadAdapterSet, saveAdapterSet } from "./set.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-set-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();
const ids = probeInputs(tiny.sizes, { length: 8 });
const logits = (loaded?: LoadedAdapter, base = tinyParams): Promise<Tensor> =>
  probeLogits(backend, tiny, base, ids, loaded);
const apart = (a: Tensor, b: Tensor): number => compareLogits(a, b).maxRelative;

const drawn = (seed: number, options: LoraOptions = {}): LoadedAdapter => {
  const adapter = lora(tiny, { rank: 2, targetModules: ["q_proj", "down_proj"], ...options });
  return { adapter, params: noisy(adapter.init(new Rng(seed)), seed, 0.3) };
};
const setOf = (members: Readonly<Record<string, LoadedAdapter>>): AdapterSet => {
  const set = adapterSet();
  for (const [name, loaded] of Object.entries(members)) set.add(name, loaded);
  return set;
};

describe("a set of adapters", () => {
  it("is the base, one of them, or their weighted sum", async () => {
    const [a, b] = [drawn(1), drawn(2, { rank: 3, targetModules: ["down_proj", "o_proj"] })];
    const set = setOf({ a, b });
    expect(set.loaded()).toBeUndefined();
    set.activate("a");
    expect(set.loaded()!.params).toBe(a.params);
    expect(apart(await logits(set.loaded()), await logits(a))).toBe(0);
    for (const weights of [{ a: 1, b: 1 }, { b: 0.5, a: -2 }, { a: 0.3 }]) {
      set.activate(weights);
      const sum = combineAdapters(tiny, Object.keys(weights).map(set.get), {
        method: "cat",
        weights: Object.values(weights),
      });
      expect(apart(await logits(set.loaded()), await logits(sum))).toBeLessThan(2e-5);
      // The same as written into the weights.
      const { adapter, params, buffers } = set.loaded()!;
      const merged = { ...tinyParams, ...adapter.merge(tinyParams, params, buffers) };
      expect(apart(await logits(set.loaded()), await logits(undefined, merged))).toBeLessThan(2e-5);
      expect([adapter.mergeable, adapter.isAdditive]).toEqual(["exact", true]);
    }
    set.disable();
    expect([set.loaded(), set.isEnabled]).toEqual([undefined, false]);
    set.enable();
    set.remove("a");
    expect([set.names, set.active, set.loaded()]).toEqual([["b"], [], undefined]);
  });

  it("goes through sites in order where adapters read the output of others", async () => {
    const prepared = async (seed: number): Promise<LoadedAdapter> => {
      const { adapter } = drawn(seed, { useDora: true });
      const scene = weightsScene(tiny, tinyParams, new Rng(seed));
      const { params } = await firstNumbers(adapter, scene);
      return { adapter, params: noisy(params, seed, 0.3) };
    };
    const set = setOf({ a: await prepared(1), b: await prepared(2) });
    set.activate(["a", "b"]);
    const one = await logits(set.loaded());
    expect(set.loaded()!.adapter.mergeable).toBe("approximate");
    set.activate(["b", "a"]);
    expect(apart(one, await logits(set.loaded()))).toBeGreaterThan(1e-4);
  });

  it("switches a live decoder between adapters of one form, and compiles nothing", async () => {
    const set = setOf({ a: drawn(1), b: drawn(2), c: drawn(3, { rank: 3 }) });
    const said = async (loaded: LoadedAdapter | undefined): Promise<number[][]> => {
      const decoder = new Decoder(tiny, tinyParams, backend, loaded ? { adapter: loaded } : {});
      try {
        return await answers(decoder);
      } finally {
        await decoder.release();
      }
    };
    const answers = async (decoder: Decoder): Promise<number[][]> =>
      (await decoder.generate([Int32Array.of(3, 5, 7)], { maxNewTokens: 6 })).map((one) => [
        ...one,
      ]);
    let loads = 0;
    const counting = {
      ...backend,
      name: backend.name,
      device: backend.device,
      binding: backend.binding,
      load: (...args: Parameters<typeof backend.load>) => {
        loads++;
        return backend.load(...args);
      },
    };
    set.activate("a");
    const live = new Decoder(tiny, tinyParams, counting as never, { adapter: set.live() });
    try {
      expect(await answers(live)).toEqual(await said(set.get("a")));
      const before = loads;
      expect(before).toBeGreaterThan(0);
      set.activate("b");
      expect(await answers(live)).toEqual(await said(set.get("b")));
      expect(loads).toBe(before);
      expect(await said(set.get("a"))).not.toEqual(await said(set.get("b")));
      set.activate("c");
      await expect(answers(live)).rejects.toThrow(
        new StateError(
          "set: what is active now has another form than what the program was opened with — open it again.",
        ),
      );
      set.activate({ a: 0.5, b: 0.25 });
      const both = new Decoder(tiny, tinyParams, counting as never, { adapter: set.live() });
      try {
        expect(await answers(both)).toEqual(await said(set.loaded()));
        const then = loads;
        set.activate({ b: -1, a: 1.5 });
        expect(await answers(both)).toEqual(await said(set.loaded()));
        expect(loads).toBe(then);
      } finally {
        await both.release();
      }
    } finally {
      await live.release();
    }
  });

  it("trains what is active together, takes the numbers back and saves a folder for each", async () => {
    const set = setOf({ task: drawn(1), style: drawn(2, { rank: 1 }), other: drawn(3) });
    set.activate(["task", "style"]);
    const loaded = set.loaded()!;
    const trainee = traineeOf(tiny, tinyParams, loaded);
    const tuner = await Finetuner.create(trainee, dataOf("any"), backend, {
      ...{ batchSize: 4, steps: 3, learningRate: 0.02, seed: 1 },
    });
    let params: TensorRecord;
    try {
      for (let i = 0; i < 3; i++) expect(Number.isFinite((await tuner.next())!.loss)).toBe(true);
      const state = (await tuner.state()).params;
      params = Object.fromEntries(
        Object.entries(state).map(([name, tensor]) => [name, tensor.clone()]),
      );
    } finally {
      await tuner.release();
    }
    const before = { task: set.get("task").params, other: set.get("other").params };
    set.put({ params });
    expect(bits(set.get("task").params)).not.toEqual(bits(before.task));
    expect(set.get("other").params).toBe(before.other);
    const trained = await logits({ ...loaded, params });
    expect(apart(trained, await logits(set.loaded()))).toBe(0);
    const folder = join(root, "saved");
    await saveAdapterSet(files, folder, set);
    const again = await loadAdapterSet(files, folder, tiny);
    expect([...again.names].sort()).toEqual(["other", "style", "task"]);
    again.activate(["task", "style"]);
    expect(apart(trained, await logits(again.loaded()))).toBe(0);
    expect(() => set.put({ params: {} })).toThrow(StateError);
    await expect(loadAdapterSet(files, join(folder, "task"), tiny)).rejects.toThrow(
      "has no folder with an adapter in it.",
    );
  });

  it("hands hooks, penalties and rates to the adapter that has them", () => {
    const seen: string[][] = [];
    const plain = drawn(1);
    const hooked: Adapter = {
      ...drawn(2, { rateRatio: 4 }).adapter,
      initBuffers: () => ({ mask: plain.params[Object.keys(plain.params)[0]!]! }),
      hook: {
        changes: ["mask"],
        reads: { params: true },
        after: ({ params, buffers }) => {
          seen.push([...Object.keys(params), ...Object.keys(buffers)]);
          return { buffers: { mask: buffers["mask"]! }, resetOptimizer: true };
        },
      },
    };
    const set = setOf({ plain, hooked: { adapter: hooked, params: drawn(2).params } });
    set.activate(["plain", "hooked"]);
    const { adapter } = set.loaded()!;
    expect(adapter.hook!.changes).toEqual(["1.mask"]);
    const params = adapter.init(new Rng(0));
    const mask = adapter.initBuffers!()["1.mask"]!;
    const names = Object.keys(drawn(2).params);
    const changes = adapter.hook!.after!({
      ...{ step: 1, steps: 2, rng: new Rng(0), loss: 1, gradients: {} },
      params,
      buffers: { "1.mask": mask },
    });
    expect(seen).toEqual([[...names, "mask"]]);
    expect(changes).toEqual({ buffers: { "1.mask": mask }, resetOptimizer: true });
    const b = names.find((name) => name.includes("lora_B"))!;
    expect([`0.${b}`, `1.${b}`].map((name) => adapter.learningRateScale!(name))).toEqual([1, 4]);
    expect(() => adapter.config()).toThrow(StateError);
  });

  it("refuses in a sentence", async () => {
    const a = drawn(1);
    const set = setOf({ a });
    const cases: [() => unknown, string][] = [
      [() => set.add("a", a), 'set: "a" is there already — remove it first.'],
      [
        () => set.add("../a", a),
        'set: a name must be letters, digits, ".", "_" and "-", 64 at most, got "../a".',
      ],
      [() => set.activate("b"), 'set: has no adapter "b" — it has a.'],
      [() => set.remove("b"), 'set: has no adapter "b" — it has a.'],
      [() => set.activate(["a", "a"]), 'set: "a" is named twice.'],
      [
        () => set.activate({ a: Number.NaN }),
        'set: the weight of "a" must be a number from -1e6 to 1e6, got NaN.',
      ],
    ];
    for (const [act, sentence] of cases) expect(act).toThrow(new OptionError(sentence));
    expect(() => set.live()).toThrow(
      new StateError("set: no adapter is active — activate one first."),
    );
    const hooked = (): LoadedAdapter => ({
      ...a,
      adapter: { ...a.adapter, hook: { changes: [] } },
    });
    set.add("b", hooked());
    set.add("c", hooked());
    set.activate("a");
    expect(() => set.activate(["b", "c"])).toThrow(
      new UnsupportedError(
        "set: LoRA and LoRA both act after steps, which one can do at a time — activate one of them.",
      ),
    );
    expect(set.active).toEqual([{ name: "a", weight: 1 }]);
    const headed = (seed: number): LoadedAdapter => {
      const adapter: Adapter = {
        ...withModules(drawn(seed).adapter, tiny, ["norm"]),
        isAdditive: false,
      };
      return { adapter, params: adapter.init(new Rng(seed)) };
    };
    set.add("d", headed(1));
    set.add("e", headed(2));
    set.activate(["d", "e"]);
    await expect(logits(set.loaded())).rejects.toThrow(
      "set: LoRA and LoRA change one parameter, and LoRA does not just add to it — activate one of them.",
    );
  });
});

describe("an adapter merged into parameters", () => {
  it("is taken out again with the same bits", async () => {
    const params = { ...tinyParams };
    const [a, b] = [drawn(1), drawn(2)];
    const first = mergeInto(params, a);
    expect(apart(await logits(a), await logits(undefined, params))).toBeLessThan(2e-5);
    const second = mergeInto(params, b);
    expect(() => first.unmerge()).toThrow(
      `unmerge: "${first.changed[0]}" was changed after this adapter was merged — take out what came later first.`,
    );
    second.unmerge();
    first.unmerge();
    for (const [name, tensor] of Object.entries(tinyParams)) expect(params[name]).toBe(tensor);
    expect(() => first.unmerge()).toThrow(new StateError("unmerge: the adapter is out already."));
    const stuck: LoadedAdapter = { ...a, adapter: { ...a.adapter, mergeable: "no" } };
    expect(() => mergeInto(params, stuck)).toThrow(UnsupportedError);
    expect(params).toEqual(tinyParams);
  });
});
