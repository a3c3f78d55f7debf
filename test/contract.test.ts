/** What every method promises by its roles, tried on tiny models; none is known here by its name. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { adaptedContext, numbersOf } from "../src/adapters/adapted.ts";
import {
  type Adapter,
  type LoadedAdapter,
  type PrepareScene,
  weightsScene,
} from "../src/adapters/adapter.ts";
import { type LoraOptions, lora } from "../src/adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../src/adapters/peft.ts";
import { compile } from "../src/backend/compile.ts";
import { OptionError, PlasticityError } from "../src/errors.ts";
import { nodeHost } from "../src/host/node.ts";
import { compareLogits, probeInputs, probeLogits } from "../src/infer/verify.ts";
import type { Value } from "../src/ir/graph.ts";
import { firstNumbers, onWholeBase, takenFromBase } from "../src/methods/initialise.ts";
import type { AnyMethod } from "../src/methods/method.ts";
import { adapterKinds, methods, methodsWith } from "../src/methods/registry.ts";
import type {
  EncoderModel,
  PretrainedModel,
  Seq2SeqModel,
  VisionModel,
} from "../src/models/model.ts";
import type { TensorRecord, ValueRecord } from "../src/nn/module.ts";
import { parseNamed, readOptions } from "../src/options.ts";
import { Rng } from "../src/tensor/rng.ts";
import { Tensor } from "../src/tensor/tensor.ts";
import { Finetuner, type FinetuneState } from "../src/train/finetune.ts";
import { PolicyTrainer } from "../src/train/policy.ts";
import type { Trainee } from "../src/train/program.ts";
import { traineeOf, withObjective, withReference } from "../src/train/trainee.ts";
import * as support from "./support/contract.ts";
import { tolerance } from "./support/tolerance.ts";

const { backend, tiny, tinyParams, bits } = support;
const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-contract-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const named = <M extends AnyMethod>(list: readonly M[]): [string, M][] =>
  list.map((method) => [method.id, method]);

const ids = probeInputs(tiny.sizes, { length: 8 });
const plain = await probeLogits(backend, tiny, tinyParams, ids);
const logitsOf = (loaded: LoadedAdapter | undefined, base = tinyParams): Promise<Tensor> =>
  probeLogits(backend, tiny, base, ids, loaded);
const apart = (a: Tensor, b: Tensor): number => compareLogits(a, b).maxRelative;

const settings = { batchSize: 4, steps: 4, learningRate: 0.01, seed: 3 } as const;

/** Steps of a training, and where it stands after them. */
async function trainOn(
  trainee: Trainee,
  data: Parameters<typeof Finetuner.create>[1],
  steps: number,
  from?: FinetuneState,
): Promise<{ state: FinetuneState; losses: number[]; norms: number[] }> {
  const tuner = await Finetuner.create(trainee, data, backend, settings);
  const [losses, norms]: [number[], number[]] = [[], []];
  try {
    if (from) await tuner.load(from);
    for (let i = 0; i < steps; i++) {
      const step = await tuner.next();
      losses.push(step!.loss);
      norms.push(step!.gradientNorm);
    }
    const { params, optimizer, buffers = {}, tokens } = await tuner.state();
    const copy = (tensors: Readonly<Record<string, Tensor>>): TensorRecord =>
      Object.fromEntries(Object.entries(tensors).map(([name, one]) => [name, one.clone()]));
    const kept = { ...optimizer, tensors: copy(optimizer.tensors) };
    return {
      state: { params: copy(params), optimizer: kept, buffers: copy(buffers), tokens },
      losses,
      norms,
    };
  } finally {
    await tuner.release();
  }
}

const trainPlain = (trainee: Trainee, steps: number, from?: FinetuneState) =>
  trainOn(trainee, support.dataOf("any"), steps, from);

describe("options", () => {
  const described = methods.flatMap((method) =>
    Object.entries(method.options).map(([name, spec]) => [method.id, name, method, spec] as const),
  );

  it.each(described)("%s refuses wrong values of %s in a sentence", (id, name, method, spec) => {
    expect(spec.about).toMatch(/\S.{5,}[^.]$/);
    for (const value of support.badValues(spec)) {
      let message = "";
      try {
        readOptions(id, method.options as never, { [name]: value });
      } catch (error) {
        expect(error).toBeInstanceOf(OptionError);
        message = (error as OptionError).message;
      }
      expect([value, message]).toEqual([
        value,
        expect.stringMatching(new RegExp(`^${id}: ${name} must be .*, got .*\\.$`)),
      ]);
    }
  });

  it.each(described)("%s reads its own default of %s back from text", (id, name, method, spec) => {
    if (spec.default === undefined || spec.type === "list" || spec.type === "numbers") return;
    if (spec.type === "table") return;
    const { options } = parseNamed("test", `${id}:${name}=${String(spec.default)}`);
    const read = readOptions(id, method.options as never, options) as Record<string, unknown>;
    expect(read[name]).toEqual(spec.default);
  });

  it.each(named(methods))("%s refuses an option that it does not have", (id, method) => {
    expect(() => readOptions(id, method.options as never, { "no-option": 1 })).toThrow(
      `${id}: has no option "no-option" — it has `,
    );
  });
});

describe.each(named(methodsWith("adapter")))("adapter %s", (_, method) => {
  const bind = async (): Promise<Adapter> =>
    method.roles.adapter.bind(tiny, support.tinyOptions(method), support.binding);
  const opened = async (): Promise<LoadedAdapter> => {
    const adapter = await bind();
    return { adapter, ...(await firstNumbers(adapter, support.scene())) };
  };
  const loadedFrom = (
    { adapter, buffers = {} }: LoadedAdapter,
    state: FinetuneState,
  ): LoadedAdapter => ({
    adapter,
    params: { ...state.params } as TensorRecord,
    buffers: Object.fromEntries(
      Object.entries(buffers).map(([name, tensor]) => [name, state.buffers?.[name] ?? tensor]),
    ),
  });

  it("leaves the model as it is at first", async () => {
    const difference = apart(plain, await logitsOf(await opened()));
    if (method.isChangedAtFirst) expect(difference).toBeGreaterThan(tolerance.float32);
    else expect(difference).toBeLessThan(tolerance.float32);
  });

  it("learns, the same bits with the same seed", async () => {
    const first = await opened();
    const [one, two] = [
      await trainPlain(traineeOf(tiny, tinyParams, first), 4),
      await trainPlain(traineeOf(tiny, tinyParams, await opened()), 4),
    ];
    expect(one.losses.every(Number.isFinite)).toBe(true);
    expect(Math.max(...one.norms)).toBeGreaterThan(0);
    expect(bits(one.state.params as TensorRecord)).not.toEqual(bits(first.params));
    expect(bits(one.state.params as TensorRecord)).toEqual(bits(two.state.params as TensorRecord));
    expect(one.losses).toEqual(two.losses);
  });

  it("goes on from a saved state with the same bits", async () => {
    const whole = await trainPlain(traineeOf(tiny, tinyParams, await opened()), 4);
    const half = await trainPlain(traineeOf(tiny, tinyParams, await opened()), 2);
    const rest = await trainPlain(traineeOf(tiny, tinyParams, await opened()), 2, half.state);
    expect([...half.losses, ...rest.losses]).toEqual(whole.losses);
    expect(bits(rest.state.params as TensorRecord)).toEqual(
      bits(whole.state.params as TensorRecord),
    );
    expect(bits(rest.state.buffers as TensorRecord)).toEqual(
      bits(whole.state.buffers as TensorRecord),
    );
  });

  it("is the same after it was saved and loaded", async () => {
    const first = await opened();
    const { state } = await trainPlain(traineeOf(tiny, tinyParams, first), 3);
    const trained = loadedFrom(first, state);
    const folder = join(root, method.id);
    await saveAdapter(files, folder, trained.adapter, trained.params, {
      buffers: trained.buffers ?? {},
    });
    const again = await loadAdapter(files, folder, tiny, adapterKinds(), support.binding);
    expect(again.adapter.kind).toBe(trained.adapter.kind);
    expect(apart(await logitsOf(trained), await logitsOf(again))).toBeLessThan(tolerance.float32);
  });

  it("does as merged weights what it does beside them, where it says so", async () => {
    const first = await opened();
    const { state } = await trainPlain(traineeOf(tiny, tinyParams, first), 3);
    const trained = loadedFrom(first, state);
    const { adapter, params, buffers } = trained;
    if (adapter.mergeable === "no") return;
    const merged = adapter.merge(tinyParams, params, buffers);
    const difference = apart(
      await logitsOf(trained),
      await logitsOf(undefined, { ...tinyParams, ...merged }),
    );
    expect(difference).toBeLessThan(adapter.mergeable === "exact" ? 1e-4 : 0.5);
  });

  it("learns from preferences too", async () => {
    const dpo = methodsWith("objective").find(({ roles }) => roles.objective.isRecordable)!;
    const objective = dpo.roles.objective.make(
      { model: tiny, others: {} },
      support.tinyOptions(dpo),
    );
    const loaded = await opened();
    const plainly = withObjective(traineeOf(tiny, tinyParams, loaded), objective);
    const trainee = loaded.adapter.replaces?.length ? withReference(plainly, tinyParams) : plainly;
    const { losses, norms } = await trainOn(trainee, support.dataOf("preference"), 2);
    expect(losses.every(Number.isFinite)).toBe(true);
    expect(Math.max(...norms)).toBeGreaterThan(0);
  });

  it.each(support.kinds)("sits on a %s, or says why not", async (_family, model, params) => {
    let adapter: Adapter;
    try {
      adapter = await method.roles.adapter.bind(model, support.tinyOptions(method));
    } catch (error) {
      expect(error).toBeInstanceOf(PlasticityError);
      expect((error as Error).message).toMatch(/\S.*\.$/);
      return;
    }
    if (adapter.prepare) return;
    const loaded = {
      adapter,
      params: adapter.init(new Rng(3)),
      buffers: adapter.initBuffers?.() ?? {},
    };
    const [without, beside] = [
      await hidden(model, params, undefined),
      await hidden(model, params, loaded),
    ];
    if (method.isChangedAtFirst) expect(beside.numbers()[0]).not.toBeNaN();
    else expect(apart(without, beside)).toBeLessThan(tolerance.float32);
  });
});

/** What a model of whatever kind makes of an input. */
async function hidden(
  model: PretrainedModel,
  params: TensorRecord,
  loaded: LoadedAdapter | undefined,
): Promise<Tensor> {
  const tokens = Tensor.from([5, 9, 7, 8, 6, 10], [1, 6], "int32");
  const pixels = new Tensor("float32", [1, 3, 16, 16], new Rng(1).normals(768, 1));
  const input = model.kind === "vision" ? pixels : tokens;
  const own = numbersOf(loaded);
  const forward = (values: ValueRecord, base: ValueRecord, x: Value): Value => {
    const context = model.context(
      base,
      {},
      loaded ? adaptedContext(loaded.adapter, model, values) : {},
    );
    if (model.kind === "vision") return (model as VisionModel).forward(context, x).hidden;
    if (model.kind === "encoder") return (model as EncoderModel).forward(context, x).hidden;
    const t5 = model as Seq2SeqModel;
    const read = t5.encode(context, x);
    return t5.decode(context, x, t5.crossed(context, read, 1, 6)).logits;
  };
  const compiled = await compile<Tensor>(forward as never, [own, params, input], { backend });
  try {
    return await compiled.run(own, params, input);
  } finally {
    await compiled.release();
  }
}

describe.each(named(methodsWith("initialiser")))("initialiser %s", (_, method) => {
  const options: LoraOptions = { rank: 3, targetModules: "all-linear" };
  const { choosesBits = false } = method.roles.initialiser;
  const [model, base] = choosesBits ? [support.wide, support.wideParams] : [tiny, tinyParams];
  const scene = (): PrepareScene =>
    choosesBits ? { ...weightsScene(model, base, new Rng(0)), bits: 4 } : support.scene();
  const initialised = async () =>
    method.roles.initialiser.initialise(scene(), options, support.tinyOptions(method));

  it("gives a LoRA all its numbers, the same with the same seed", async () => {
    const [one, two] = [await initialised(), await initialised()];
    expect(bits(one.params)).toEqual(bits(two.params));
    const adapter = lora(model, one.lora);
    const wanted = adapter.init(new Rng(0));
    expect(Object.keys(one.params).sort()).toEqual(Object.keys(wanted).sort());
    for (const [name, { shape }] of Object.entries(wanted)) {
      expect([name, one.params[name]!.shape]).toEqual([name, shape]);
    }
    expect(JSON.stringify(one.report)).not.toBe("{}");
  });

  it("leaves the model as it is at first, and is kept on the base as it was", async () => {
    const { lora: made, params, isTakenFromBase = false, quantized } = await initialised();
    const adapter = lora(model, made);
    const beside = isTakenFromBase ? takenFromBase(base, adapter, params) : base;
    const logits = (loaded: LoadedAdapter | undefined, weights = base): Promise<Tensor> =>
      probeLogits(backend, model, weights, ids, loaded);
    const whole = await logits(undefined);
    const difference = apart(
      whole,
      await logits({ adapter, params }, quantized ? { ...base, ...quantized } : beside),
    );
    if (method.isChangedAtFirst) expect(difference).toBeGreaterThan(tolerance.float32);
    else expect(difference).toBeLessThan(10 * tolerance.float32);
    const trained = support.noisy(params, 8);
    if (!isTakenFromBase) return;
    const kept = onWholeBase(adapter, made, params, trained);
    const again = { adapter: lora(model, kept.lora), params: kept.params };
    expect(
      apart(await logits({ adapter, params: trained }, beside), await logits(again)),
    ).toBeLessThan(1e-4);
  });
});

const lorad = (): Trainee => {
  const adapter = lora(tiny, { rank: 2, targetModules: "all-linear" });
  return traineeOf(tiny, tinyParams, { adapter, params: adapter.init(new Rng(7)) });
};
const othersOf = (names: readonly string[] = []) =>
  Object.fromEntries(names.map((name, i) => [name, support.other(i)]));

describe.each(named(methodsWith("objective")))("objective %s", (_, method) => {
  const { objective: role } = method.roles;
  const made = (trainee: Trainee): Trainee =>
    withObjective(
      trainee,
      role.make({ model: tiny, others: othersOf(role.models) }, support.tinyOptions(method)),
      new Rng(2),
    );
  const data = support.dataOf(role.data);

  it("teaches an adapter, the same bits with the same seed, and after a rest", async () => {
    const [one, two] = [
      await trainOn(made(lorad()), data, 4),
      await trainOn(made(lorad()), data, 2),
    ];
    expect(one.losses.every(Number.isFinite)).toBe(true);
    expect(Math.min(...one.norms)).toBeGreaterThan(0);
    expect(two.losses).toEqual(one.losses.slice(0, 2));
    const rest = await trainOn(made(lorad()), data, 2, two.state);
    expect(rest.losses).toEqual(one.losses.slice(2));
    expect(bits(rest.state.params as TensorRecord)).toEqual(bits(one.state.params as TensorRecord));
    expect(bits(rest.state.buffers as TensorRecord)).toEqual(
      bits(one.state.buffers as TensorRecord),
    );
  });

  it("teaches all parameters", async () => {
    const full = traineeOf(tiny, tinyParams);
    const { hasReference = false } = role;
    const { losses, norms } = await trainOn(
      made(hasReference ? withReference(full, tinyParams) : full),
      data,
      1,
    );
    expect(losses.every(Number.isFinite)).toBe(true);
    expect(norms[0]).toBeGreaterThan(0);
  });
});

describe.each(named(methodsWith("policy")))("policy %s", (_, method) => {
  const { policy: role } = method.roles;
  const letters = "abcdefghijklmnopqrst";
  const run = async (): Promise<{ losses: number[]; params: TensorRecord }> => {
    const made = role.make(
      { model: tiny, others: othersOf(role.models) },
      support.tinyOptions(method),
    );
    const tuner = await PolicyTrainer.create(lorad(), support.prompts, backend, {
      ...made,
      batchSize: 3,
      steps: 4,
      seed: 2,
      decode: (tokens) => Array.from(tokens, (id) => letters[id]!).join(""),
      ...(role.usesReward && { reward: ({ answer }) => answer.charCodeAt(0) % 7 }),
    });
    const losses: number[] = [];
    try {
      for (let step = await tuner.next(); step; step = await tuner.next()) losses.push(step.loss);
      const params = await tuner.params();
      return {
        losses,
        params: Object.fromEntries(
          Object.entries(params).map(([name, one]) => [name, one.clone()]),
        ),
      };
    } finally {
      await tuner.release();
    }
  };

  it("teaches from own answers, the same bits with the same seed", async () => {
    const [one, two] = [await run(), await run()];
    expect(one.losses).toHaveLength(4);
    expect(one.losses.every(Number.isFinite)).toBe(true);
    expect(bits(one.params)).toEqual(bits(two.params));
    const start = lorad().trained;
    expect(
      bits(Object.fromEntries(Object.keys(start).map((name) => [name, one.params[name]!]))),
    ).not.toEqual(bits(start));
  });
});

describe.each(named(methodsWith("dataPolicy")))("data policy %s", (_, method) => {
  const { dataPolicy: role } = method.roles;

  it("gives examples to learn from, in the same order with the same seed", async () => {
    const further = Object.fromEntries(
      (role.files ?? []).map((name) => [name, support.dataOf("any")]),
    );
    const made = async () =>
      role.apply(
        { train: support.dataOf("any"), files: further, rng: new Rng(1) },
        support.tinyOptions(method),
      );
    const [one, two] = [
      await trainOn(lorad(), await made(), 3),
      await trainOn(lorad(), await made(), 3),
    ];
    expect(one.losses.every(Number.isFinite)).toBe(true);
    expect(one.losses).toEqual(two.losses);
  });
});

describe.each(named(methodsWith("merge")))("merge %s", (_, method) => {
  const { merge: role } = method.roles;
  const options = support.tinyOptions(method);
  const tensor = (seed: number): Tensor<"float32"> =>
    new Tensor("float32", [6, 5], new Rng(seed).normals(30, 1));
  const count = Math.max(role.models.least, Math.min(3, role.models.most ?? 3));
  const base = tensor(0);
  const run = (tensors: readonly Tensor<"float32">[]): Tensor<"float32"> =>
    role.merge(
      { name: "layer.weight", base, tensors, rng: new Rng(9).fold("layer.weight") },
      tensors.map(() => options),
    );
  const models = Array.from({ length: count }, (_m, i) => tensor(i + 1));

  it("gives a tensor of the same shape, the same bits again, and leaves its inputs", () => {
    const before = models.map((one) => [...one.data]);
    const [one, two] = [run(models), run(models)];
    expect(one.shape).toEqual([6, 5]);
    expect([...one.data]).toEqual([...two.data]);
    expect([...one.data].every(Number.isFinite)).toBe(true);
    expect(models.map((model) => [...model.data])).toEqual(before);
    expect([...one.data]).not.toEqual([...base.data]);
  });

  it("gives back the base where no model differs from it", () => {
    const merged = run(models.map(() => base));
    merged.data.forEach((x, i) => {
      expect(Math.abs(x - base.data[i]!)).toBeLessThan(tolerance.float32);
    });
  });
});

describe.each(named(methodsWith("decoder")))("decoder %s", (_, method) => {
  it("proposes trees of known tokens within its limit, the same with the same seed", () => {
    const text = Int32Array.from({ length: 40 }, (_t, i) => [3, 5, 7, 9, 11][i % 5]!);
    const run = (): unknown[] => {
      const drafter = method.roles.decoder.make(
        { vocabSize: 20, rng: new Rng(1), corpus: text },
        support.tinyOptions(method),
      );
      drafter.begin(text.subarray(0, 12));
      const found = [];
      for (let i = 0; i < 3; i++) {
        const draft = drafter.propose(5);
        expect(draft.tokens.length).toBeLessThanOrEqual(5);
        expect(draft.parents.length).toBe(draft.tokens.length);
        expect([...draft.parents].every((parent, at) => parent < at)).toBe(true);
        for (const token of draft.tokens) expect(token >= 0 && token < 20).toBe(true);
        found.push([...draft.tokens], [...draft.parents]);
        const logits = new Rng(i).normals(20 * (1 + draft.tokens.length), 1);
        const tokens = Int32Array.of(text[12 + i]!);
        drafter.learn({ draft, logits, accepted: [], tokens, margins: [1] });
      }
      expect(drafter.bytes).toBeGreaterThanOrEqual(0);
      return found;
    };
    expect(run()).toEqual(run());
  });
});
