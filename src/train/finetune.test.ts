import { describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../data/bpe.ts";
import { type Example, encodeExamples, epochBatches } from "../data/examples.ts";
import { Tokenizer } from "../data/tokenizer.ts";
import { OptionError, StateError } from "../errors.ts";
import { Decoder } from "../infer/decoder.ts";
import { answerAll } from "../infer/exact-match.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { optimizerNames } from "../optim/by-name.ts";
import { scheduleNames } from "../optim/schedule.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type FinetuneOptions, type FinetuneStep, finetune, scoreExamples } from "./finetune.ts";
import type { Trainee } from "./program.ts";
import { traineeOf } from "./trainee.ts";

const backend = await nodeOrt({ threads: 1 });

const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
const tokenizer = new Tokenizer(
  {
    tokenizer: toTokenizerJson(bpe),
    config: toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
  },
  "tiny",
);

const model = new Llama({
  vocabSize: tokenizer.vocabSize,
  dModel: 16,
  dFeedForward: 32,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 20,
  initializerRange: 0.2,
});
const base = model.init(new Rng(1)).params;
const full = traineeOf(model, base, undefined);

const pairs = ["red", "sea", "oak", "ink", "tin", "elm", "ash", "fog"].map((prompt, i) => ({
  kind: "pair" as const,
  prompt,
  completion: ["warm", "wide", "tall", "dark", "soft", "old", "grey", "wet"][i]!,
}));
const { examples } = encodeExamples(pairs, tokenizer, { maxLength: 21 });

function copied(params: Readonly<Record<string, Tensor>>): TensorRecord {
  return Object.fromEntries(Object.entries(params).map(([name, t]) => [name, t.clone()]));
}

/** LoRA as it starts, or with B other than zero so that its input has a say. */
function loraTrainee(dropout = 0, isTrained = false): Trainee {
  const adapter = lora(model, { rank: 4, dropout, targetModules: "all-linear" });
  const params = adapter.init(new Rng(2));
  const rng = new Rng(3);
  for (const tensor of isTrained ? Object.values(params) : []) {
    (tensor.data as Float32Array).set(rng.normals(tensor.size, 0.3));
  }
  return traineeOf(model, base, { adapter, params });
}

/** A run of constant rate, so that its steps do not depend on how many there are. */
const steady: FinetuneOptions = {
  schedule: "constant",
  warmup: 0,
  batchSize: 4,
  learningRate: 1e-2,
};

describe("finetune", () => {
  it("makes a tiny Llama answer eight pairs letter for letter", async () => {
    const options = { steps: 60, batchSize: 8, learningRate: 1e-2 };
    const result = await finetune(full, examples, backend, options);
    expect(result.steps).toBe(60);
    const decoder = new Decoder(model, result.params, backend);
    const answers = await answerAll(decoder, tokenizer, pairs);
    await decoder.release();
    expect(answers.map(({ answer }) => answer)).toEqual(pairs.map((pair) => pair.completion));
  });

  it("lowers the loss through LoRA and leaves every byte of the base as it was", async () => {
    const before = copied(base);
    const trainee = loraTrainee();
    const start = copied(trainee.trained);
    const result = await finetune(trainee, examples, backend, {
      steps: 30,
      batchSize: 8,
      learningRate: 2e-2,
    });
    expect(base).toEqual(before);
    // Not even the first numbers of the adapter are written to.
    expect(trainee.trained).toEqual(start);
    expect(Object.keys(result.params)).toEqual(Object.keys(start));
    const [then, now] = [
      await scoreExamples(trainee, examples, backend),
      await scoreExamples({ ...trainee, trained: result.params }, examples, backend),
    ];
    expect(Math.abs(result.losses[0]! - then.nll)).toBeLessThan(1e-5 * then.nll);
    expect(now.nll).toBeLessThan(0.6 * then.nll);
    expect(now.accuracy).toBeGreaterThan(then.accuracy);
  });

  it("has the same bits with the same seed, dropout included, and others with another", async () => {
    const run = (seed: number) =>
      finetune(loraTrainee(0.1), examples, backend, { ...steady, steps: 4, seed });
    const [first, again, other] = [await run(1), await run(1), await run(2)];
    expect(again.losses).toEqual(first.losses);
    expect(copied(again.params)).toEqual(copied(first.params));
    expect(other.losses).not.toEqual(first.losses);
  });

  it("draws other noise at each step", async () => {
    // One example and a rate of 0: only noise can change the loss.
    const run = (dropout: number) =>
      finetune(loraTrainee(dropout, true), examples.slice(0, 1), backend, {
        ...steady,
        batchSize: 1,
        steps: 3,
        learningRate: 0,
      });
    expect(new Set((await run(0.5)).losses).size).toBe(3);
    expect(new Set((await run(0)).losses).size).toBe(1);
  });

  it("sees every example once an epoch, and reports steps, epochs and tokens", async () => {
    const steps: FinetuneStep[] = [];
    const result = await finetune(full, examples.slice(0, 6), backend, {
      ...steady,
      epochs: 2,
      onStep: (step) => steps.push(step),
    });
    // 6 examples in batches of 4: two steps an epoch.
    expect(steps.map(({ step, steps: all, epoch }) => [step, all, epoch])).toEqual([
      [1, 4, 0],
      [2, 4, 0],
      [3, 4, 1],
      [4, 4, 1],
    ]);
    const tokens = examples.slice(0, 6).reduce((sum, { ids }) => sum + ids.length, 0);
    expect([steps[1]!.tokens, steps[3]!.tokens, result.tokens]).toEqual([
      tokens,
      2 * tokens,
      2 * tokens,
    ]);
    expect(steps.map(({ loss }) => loss)).toEqual(result.losses);
    expect(result).toMatchObject({ steps: 4, isStopped: false });
  });

  it("takes a share of an epoch as whole steps", async () => {
    const result = await finetune(full, examples, backend, { epochs: 0.3, batchSize: 4 });
    expect(result.steps).toBe(1);
  });

  it("stops after the step in which its signal comes, with what that step made", async () => {
    const controller = new AbortController();
    const stopped = await finetune(full, examples, backend, {
      ...steady,
      steps: 1000,
      signal: controller.signal,
      onStep: ({ step }) => {
        if (step === 3) controller.abort();
      },
    });
    expect(stopped).toMatchObject({ steps: 3, isStopped: true });
    const short = await finetune(full, examples, backend, { ...steady, steps: 3 });
    expect(short).toMatchObject({ steps: 3, isStopped: false });
    expect(stopped.losses).toEqual(short.losses);
    expect(copied(stopped.params)).toEqual(copied(short.params));
  });

  it("makes no step when its signal came before", async () => {
    const options = { ...steady, steps: 5, signal: AbortSignal.abort() };
    const result = await finetune(full, examples, backend, options);
    expect(result).toMatchObject({ steps: 0, losses: [], tokens: 0, isStopped: true });
    expect(copied(result.params)).toEqual(copied(base));
  });

  it("names the step and the examples when weights hold NaN", async () => {
    const broken = copied(base);
    (broken["model.norm.weight"]!.data as Float32Array)[3] = Number.NaN;
    const first = epochBatches(
      examples.map(({ ids }) => ids.length),
      4,
      new Rng(0).fold("epoch", 0),
    )[0]!;
    await expect(
      finetune(traineeOf(model, broken, undefined), examples, backend, { ...steady, steps: 5 }),
    ).rejects.toThrow(
      new StateError(
        `finetune: the loss at step 1 is NaN, on examples ${first.join(", ")} — lower the learning rate (0.01), or look at these examples.`,
        { step: 1, examples: first },
      ),
    );
  });

  it("names the step at which a learning rate far too high breaks the loss", async () => {
    const steps: number[] = [];
    await expect(
      finetune(full, examples, backend, {
        ...steady,
        steps: 20,
        learningRate: 1e30,
        onStep: ({ step }) => steps.push(step),
      }),
    ).rejects.toThrow(
      /^finetune: the norm of the gradient at step 2 is (NaN|Infinity), on examples (\d, ){3}\d — lower the learning rate \(1e\+30\), or look at these examples\.$/,
    );
    expect(steps).toEqual([1]);
  });

  it("takes the same steps when gradients are accumulated over parts", async () => {
    const run = (accumulate: number) =>
      finetune(full, examples, backend, { ...steady, batchSize: 8, steps: 3, accumulate });
    const [whole, parts] = [await run(1), await run(4)];
    parts.losses.forEach((loss, i) => {
      expect(Math.abs(loss - whole.losses[i]!)).toBeLessThan(1e-4 * loss);
    });
    const squares: Record<string, number> = {};
    for (const [path, tensor] of Object.entries(whole.params)) {
      allclose(parts.params[path]!, tensor, 1e-3, path);
      squares[path] = (tensor.data as Float32Array).reduce((sum, x, i) => {
        return sum + (x - (base[path]!.data as Float32Array)[i]!) ** 2;
      }, 0);
    }
    expect(Math.min(...Object.values(squares))).toBeGreaterThan(0);
  });

  it("takes sequences up to the last position of a model with a table of positions", async () => {
    const gpt = new Gpt2({ vocabSize: 257, dModel: 8, nLayers: 1, nHeads: 1, maxPositions: 20 });
    const trainee = traineeOf(gpt, gpt.init(new Rng(1)).params, undefined);
    const long: Example = {
      ids: Int32Array.from({ length: 21 }, (_, i) => i),
      mask: Uint8Array.from({ length: 21 }, (_, i) => Math.min(i, 1)),
    };
    const { losses } = await finetune(trainee, [long], backend, { steps: 1, batchSize: 1 });
    const { nll } = await scoreExamples(trainee, [long], backend, { batchSize: 2 });
    expect(Math.abs(losses[0]! - nll)).toBeLessThan(1e-5 * nll);
  });

  it.each<[FinetuneOptions, string]>([
    [{ batchSize: 6, accumulate: 4 }, "finetune: batchSize 6 must be a multiple of accumulate 4."],
    [{ batchSize: 0, steps: 1 }, "finetune: batchSize must be a whole number from 1, got 0."],
    [{ batchSize: 2.5 }, "finetune: batchSize must be a whole number from 1, got 2.5."],
    [
      { batchSize: 8, accumulate: -2 },
      "finetune: accumulate must be a whole number from 1, got -2.",
    ],
    [
      { optimizer: "lionn" },
      'unknown optimizer "lionn" — did you mean "lion"? optimizers are adam, adamw, sgd, lion, adafactor, muon.',
    ],
    [
      { optimizer: "shampoo" },
      'unknown optimizer "shampoo" — optimizers are adam, adamw, sgd, lion, adafactor, muon.',
    ],
    [
      { schedule: "cosin" },
      `unknown schedule "cosin" — did you mean "cosine"? schedules are ${scheduleNames.join(", ")}.`,
    ],
    [{ steps: 0 }, "finetune: steps must be a whole number from 1, got 0."],
    [{ clipNorm: 0 }, "updater: clipNorm must be above 0, got 0."],
  ])("refuses %j", async (options, sentence) => {
    await expect(finetune(full, examples, backend, options)).rejects.toThrow(
      new OptionError(sentence),
    );
  });

  it("refuses to train on nothing", async () => {
    await expect(finetune(full, [], backend)).rejects.toThrow(
      new OptionError("finetune: there are no examples."),
    );
  });

  it.each(optimizerNames)("lowers LoRA's loss with the optimizer %s", async (optimizer) => {
    const learningRate = {
      adam: 2e-2,
      adamw: 2e-2,
      sgd: 1,
      lion: 5e-3,
      adafactor: 0.5,
      muon: 2e-2,
    }[optimizer];
    const options = { ...steady, batchSize: 8, steps: 6, optimizer, learningRate };
    const { losses } = await finetune(loraTrainee(), examples, backend, options);
    expect(losses.at(-1)).toBeLessThan(losses[0]! - 0.05);
  });

  it.each<[schedule: string, warmup: number, factors: readonly number[]]>([
    ["linear", 0, [1, 0.75, 0.5, 0.25]],
    // One step of four rises from 0, three fall.
    ["linear", 0.25, [0, 1, 2 / 3, 1 / 3]],
    ["cosine", 0, [1, 0.5 + Math.SQRT1_2 / 2, 0.5, 0.5 - Math.SQRT1_2 / 2]],
    ["constant_with_warmup", 0.5, [0, 0.5, 1, 1]],
  ])("follows the schedule %s with warm-up %f", async (schedule, warmup, factors) => {
    const rates: number[] = [];
    const options = { batchSize: 4, steps: 4, learningRate: 0.08, schedule, warmup };
    await finetune(loraTrainee(), examples, backend, {
      ...options,
      onStep: ({ learningRate }) => rates.push(learningRate),
    });
    rates.forEach((rate, i) => {
      expect(rate).toBeCloseTo(0.08 * factors[i]!, 12);
    });
  });

  it("decays matrices and no others", async () => {
    // A learning rate as high as 1 / λ takes all of a weight away, whatever its gradient.
    const options = { ...steady, steps: 1, optimizer: "sgd", learningRate: 1e-3 };
    const [plain, decayed] = [
      await finetune(full, examples, backend, { ...options, weightDecay: 0 }),
      await finetune(full, examples, backend, { ...options, weightDecay: 1e3 }),
    ];
    const norm = "model.norm.weight";
    expect(copied({ norm: decayed.params[norm]! })).toEqual(copied({ norm: plain.params[norm]! }));
    const matrix = "model.layers.0.mlp.up_proj.weight";
    const largest = (tensor: Tensor): number =>
      Math.max(...(tensor.data as Float32Array).map(Math.abs));
    expect(largest(decayed.params[matrix]!)).toBeLessThan(0.05 * largest(plain.params[matrix]!));
  });
});

describe("scoreExamples", () => {
  // The last norm gives (1, 0) everywhere, so that logits are the first column of the embedding: ln p.
  const probabilities = [0.5, 0.25, 0.125, 0.125];
  const gpt = new Gpt2({ vocabSize: 4, dModel: 2, nLayers: 1, nHeads: 1, maxPositions: 16 });
  const params = gpt.init(new Rng(1)).params;
  params["transformer.ln_f.weight"] = Tensor.from([0, 0]);
  params["transformer.ln_f.bias"] = Tensor.from([1, 0]);
  params["transformer.wte.weight"] = Tensor.from(
    probabilities.flatMap((p) => [Math.log(p), 1]),
    [4, 2],
  );
  const trainee = traineeOf(gpt, params, undefined);
  const example = (ids: number[], mask: number[]): Example => ({
    ids: Int32Array.from(ids),
    mask: Uint8Array.from(mask),
  });

  it("gives the mean over tokens with loss, and how many the likeliest token gets right", async () => {
    const data = [
      example([3, 1, 0], [0, 1, 1]),
      example([0, 2, 2, 2, 0], [0, 0, 0, 1, 0]),
      example([1, 0], [0, 1]),
    ];
    // Tokens 1, 0, 2, 0: -ln(1/4 · 1/2 · 1/8 · 1/2) / 4 = 7 ln 2 / 4; token 0 is the likeliest, so 2 of 4.
    for (const batchSize of [1, 2, 32]) {
      const { nll, accuracy } = await scoreExamples(trainee, data, backend, { batchSize });
      expect(nll).toBeCloseTo((7 * Math.LN2) / 4, 6);
      expect(accuracy).toBe(0.5);
    }
  });
});
