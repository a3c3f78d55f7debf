/**
 * X-LoRA against other ways to use several finished LoRA adapters together, on small skills and on texts that need
 * two of them.
 *
 * Buehler & Buehler, arXiv:2402.07148. A language model of signs learns Brown, sequences of residues and sums that
 * say nothing of their result; five experts learn a skill each. All gates see the same mixture for the same steps,
 * which holds texts without a word for the skill and texts of two skills; the experts never saw those. Tests draw
 * other sequences. A gate for whole texts reads the mean of the base's hidden states of all of it, which favours
 * it. The mean of the experts' changes of weights is the uniform average, so "weight-merge" averages factors.
 */

import type { LoadedAdapter } from "../adapters/adapter.ts";
import { type LoraOptions, lora } from "../adapters/lora.ts";
import type { Example } from "../data/example.ts";
import { cast, div, mul, notEqual } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { expand, reshape } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { type Experts, mixExperts, type XLoraAdapter } from "../methods/adapt/x-lora.ts";
import type { XLoraOptions } from "../methods/adapt/x-lora-options.ts";
import { effectiveExperts, tokenScalings } from "../methods/adapt/x-lora-scalings.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { finetune } from "../train/finetune.ts";
import { pretrain } from "../train/pretrain.ts";
import { traineeOf } from "../train/trainee.ts";
import { loadBrown, splitBrown, textOf } from "./data/brown.ts";
import type { Arm, Budget, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import {
  drawCycle,
  drawItem,
  drawSequence,
  drawSum,
  encodeSigns,
  rowOf,
  type Skill,
  signCount,
  skills,
  type TaggedWord,
  taggedRuns,
} from "./protein-tasks.ts";
import { length, measureSkills, type Reader, unnamed } from "./skill-measures.ts";

const sizes = {
  full: { base: 1200, expert: 500, gate: 600, joint: 1000, batchSize: 16, test: 64, rows: 2000 },
  quick: { base: 20, expert: 6, gate: 3, joint: 6, batchSize: 8, test: 6, rows: 60 },
} as const;

const rank = 4;
const rate = { base: 3e-3, expert: 5e-3 } as const;
const gateRates = { full: [1e-3, 3e-3, 1e-2], quick: [3e-3] } as const;

const gates: Readonly<Record<string, XLoraOptions>> = {
  "sequence-gate": { layerwise: true },
  "x-lora-shared": {},
  "x-lora": { layerwise: true },
  "x-lora-top1": { layerwise: true, topK: 1 },
  "x-lora-top2": { layerwise: true, topK: 2 },
};

const arms: Readonly<Record<string, string>> = {
  base: "the model without experts",
  ...Object.fromEntries(skills.map((skill) => [`only-${skill}`, `the expert of ${skill} alone`])),
  uniform: "all experts, each a fifth",
  "weight-merge": "one LoRA of the mean factors",
  oracle: "for each answer the expert of its skill",
  "sequence-gate": "X-LoRA whose gate reads the mean of the whole text",
  "x-lora-shared": "X-LoRA, one set of scalings for all layers",
  "x-lora": "X-LoRA, scalings for each layer",
  "x-lora-top1": "X-LoRA, the best expert of each token and layer",
  "x-lora-top2": "X-LoRA, the best two",
  "joint-lora": "one LoRA of five times the rank, trained on everything together",
};

interface Shared {
  readonly model: Llama;
  readonly base: TensorRecord;
  readonly experts: Experts & Readonly<Record<Skill, LoadedAdapter>>;
  readonly joint: LoadedAdapter;
  readonly mixture: readonly Example[];
  readonly runs: readonly (readonly TaggedWord[])[];
}

type Runs = Shared["runs"];

const loraOf = (model: Llama, options: LoraOptions): ReturnType<typeof lora> =>
  lora(model, { alpha: 2 * (options.rank ?? rank), targetModules: "all-linear", ...options });

/** A text of Brown, sequences and sums without results, a line each. */
function baseText(texts: readonly string[], rng: Rng): string {
  const lines: string[] = [];
  for (const line of texts.flatMap((text) => text.split("\n"))) {
    const plain = line.toLowerCase().replace(/[^a-z0-9 ?.,;'-]/g, "");
    if (plain.length > 0) lines.push(plain);
    const draw = rng.uniform();
    if (draw < 0.5) lines.push(`<${drawSequence(rng)}>[${drawSequence(rng)}]`);
    else if (draw < 0.8) lines.push(`<${10 * rng.integer(10)}+${10 * rng.integer(10)}>`);
    else lines.push(`[${10 * rng.integer(20)}]`);
  }
  return lines.join("\n");
}

/** Rows of two items of a skill, with its word or without. */
function skillRows(skill: Skill, count: number, rng: Rng, runs: Runs, named = true): Example[] {
  return Array.from({ length: count }, () =>
    rowOf([drawItem(skill, rng, runs), drawItem(skill, rng, runs)], named, length),
  );
}

/** What gates learn from: skills with their words, skills without, sums of forces, cycles. */
function mixtureRows(count: number, rng: Rng, runs: Runs): Example[] {
  return Array.from({ length: count }, (_, i) => {
    switch (i % 4) {
      case 0:
        return skillRows(skills[rng.integer(skills.length)]!, 1, rng, runs)[0]!;
      case 1:
        return skillRows(unnamed[rng.integer(unnamed.length)]!, 1, rng, runs, false)[0]!;
      case 2:
        return rowOf(drawSum(rng, runs), false, length);
      default:
        return rowOf(drawCycle(rng, runs), false, length);
    }
  });
}

async function train(
  context: ExperimentContext,
  { model, base }: Pick<Shared, "model" | "base">,
  loaded: LoadedAdapter,
  rows: readonly Example[],
  options: { name: string; steps: number; learningRate: number; seed: number },
): Promise<LoadedAdapter> {
  const { name, ...rest } = options;
  const { batchSize } = sizes[context.budget];
  const { params } = await finetune(traineeOf(model, base, loaded), rows, context.backend, {
    ...{ batchSize, schedule: "cosine", weightDecay: 0, ...rest, signal: context.signal },
    onStep: ({ step, steps, loss }) => {
      if (step % 10 === 0) context.progress(`${name}: ${step}/${steps}, loss ${loss.toFixed(3)}`);
    },
  });
  context.signal.throwIfAborted();
  return { ...loaded, params };
}

/** The gate of an arm, new. */
function gateOf(arm: string, { model, experts }: Shared, seed: number): LoadedAdapter {
  const pool = (hidden: Value, ids: Value): Value => {
    const [rows, tokens] = ids.shape as [number, number];
    const width = model.sizes.dModel;
    const there = reshape(cast(notEqual(ids, 0), "float32"), [rows, tokens, 1]);
    const all = reshape(hidden, [rows, tokens, width]);
    const mean = div(
      sum(mul(all, there), 1, { keepDims: true }),
      sum(there, 1, { keepDims: true }),
    );
    return reshape(expand(mean, [rows, tokens, width]), [-1, width]);
  };
  const adapter = mixExperts(
    model,
    experts,
    { depth: 2, size: 64, dropout: 0, ...gates[arm] },
    arm === "sequence-gate" ? { pool } : {},
  );
  const params = adapter.init(new Rng(seed).fold("gate"));
  return { adapter, params, buffers: adapter.initBuffers!() };
}

/** Every expert a fifth: a gate of zeros under a softmax. */
function uniformOf({ model, experts }: Shared): LoadedAdapter {
  const adapter = mixExperts(model, experts, {});
  const params = Object.entries(adapter.init(new Rng(0))).map(([name, { shape }]) => [
    name,
    Tensor.zeros(shape, "float32"),
  ]);
  return { adapter, params: Object.fromEntries(params), buffers: adapter.initBuffers!() };
}

function meanFactors({ experts }: Shared): LoadedAdapter {
  const { adapter, params } = experts.force;
  const mean = Object.entries(params).map(([name, { shape, size }]) => {
    const numbers = new Float32Array(size);
    for (const skill of skills) {
      const own = experts[skill].params[name]!.numbers();
      for (let i = 0; i < size; i++) numbers[i]! += own[i]! / skills.length;
    }
    return [name, new Tensor("float32", shape, numbers)];
  });
  return { adapter, params: Object.fromEntries(mean) };
}

const sizeOf = (params: TensorRecord): number =>
  Object.values(params).reduce((total, { size }) => total + size, 0);

export const experiment: Experiment<Shared> = {
  id: "x-lora",
  title: "X-LoRA",
  version: "2",
  metrics: {
    singles: "exact answers to force, energy, tag and add with the skill's word, mean of the four",
    forceExact: "exact answers to force",
    energyExact: "exact answers to energy",
    tagExact: "exact answers to tag",
    addExact: "exact answers to add",
    forceError:
      "mean distance of the written force, in the unit of force; 0.8 where none is written",
    t1: "exact answers to single skills without their word",
    t2: "texts of two forces and their sum that are right in all three",
    valid: "share of designs that are sequences",
    designError:
      "mean distance of the design's force by the rule from what was asked; 0.8 if invalid",
    t3: "share of designs whose own force is then said right",
    experts: "effective number of experts of a token and layer, exp of the entropy; 0 without gate",
    parameters: "numbers trained for the arm beside base and experts",
  },
  needs: { data: ["brown"] },
  plan: (budget: Budget) => {
    const { gate, joint, batchSize } = sizes[budget];
    const costOf = (name: string): Arm["cost"] => {
      const steps = name in gates ? gate : name === "joint-lora" ? joint : 0;
      return { steps, examples: steps * batchSize };
    };
    return {
      arms: Object.entries(arms).map(([name, about]): Arm => ({ name, about, cost: costOf(name) })),
      tuning: {
        metric: "singles",
        direction: "higher",
        grid: Object.fromEntries(
          Object.keys(gates).map((name) => [
            name,
            gateRates[budget].map((learningRate) => ({ learningRate })),
          ]),
        ),
      },
      ...(budget === "quick" && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const own = sizes[context.budget];
    const { files } = await loadBrown(context);
    const { train: trainFiles, heldOut } = splitBrown(files);
    const rng = new Rng(54);
    const runs = taggedRuns(trainFiles);
    const model = new Llama({
      ...{ vocabSize: signCount, dModel: 64, nLayers: 4, nHeads: 4, nKvHeads: 4 },
      ...{ dFeedForward: 192, maxPositions: length, tieEmbeddings: true },
    });
    const learnt = { steps: own.base, batchSize: own.batchSize };
    const base = await context.remember({ part: "base", ...learnt }, async () => {
      const text = (some: typeof files, most: number): Int32Array<ArrayBuffer> =>
        encodeSigns(baseText(some.map(textOf), rng.fold("text")).slice(0, most));
      const { params } = await pretrain(
        model,
        text(trainFiles, 2e6),
        text(heldOut, 2e4),
        context.backend,
        {
          ...{ ...learnt, seqLen: length, learningRate: rate.base, seed: 54 },
          signal: context.signal,
          onStep: ({ step, loss }) => {
            if (step % 10 === 0)
              context.progress(`base: ${step}/${own.base}, loss ${loss.toFixed(3)}`);
          },
        },
      );
      context.signal.throwIfAborted();
      return params;
    });
    const adapter = loraOf(model, { rank });
    const experts: Record<string, LoadedAdapter> = {};
    for (const skill of skills) {
      const params = await context.remember(
        { part: skill, steps: own.expert, ...rate },
        async () => {
          const first = { adapter, params: adapter.init(rng.fold(skill)) };
          const rows = skillRows(skill, own.rows, rng.fold("rows", skill), runs);
          const how = { name: skill, steps: own.expert, learningRate: rate.expert, seed: 54 };
          return (await train(context, { model, base }, first, rows, how)).params;
        },
      );
      experts[skill] = { adapter, params };
    }
    const mixture = mixtureRows(own.rows, rng.fold("mixture"), runs);
    const wide = loraOf(model, { rank: rank * skills.length });
    const joint = await context.remember({ part: "joint", steps: own.joint, ...rate }, async () => {
      const first = { adapter: wide, params: wide.init(rng.fold("joint")) };
      const rows = [
        ...skills.flatMap((skill) => skillRows(skill, own.rows / 4, rng.fold("rows", skill), runs)),
        ...mixture,
      ];
      const how = { name: "joint", steps: own.joint, learningRate: rate.expert / 2, seed: 54 };
      return (await train(context, { model, base }, first, rows, how)).params;
    });
    return {
      model,
      base,
      experts: experts as Shared["experts"],
      joint: { adapter: wide, params: joint },
      mixture,
      runs,
    };
  },
  run: async (cell, shared, context): Promise<Metrics> => {
    const { model, base, experts, joint, mixture } = shared;
    let loaded: LoadedAdapter | undefined;
    let [effective, parameters] = [0, 0];
    const only = skills.find((skill) => cell.arm === `only-${skill}`);
    if (only) [loaded, effective] = [experts[only], 1];
    else if (cell.arm === "uniform") [loaded, effective] = [uniformOf(shared), skills.length];
    else if (cell.arm === "weight-merge") loaded = meanFactors(shared);
    else if (cell.arm === "joint-lora") [loaded, parameters] = [joint, sizeOf(joint.params)];
    else if (cell.arm in gates) {
      loaded = await train(context, shared, gateOf(cell.arm, shared, cell.seed), mixture, {
        ...{ name: cell.arm, steps: sizes[context.budget].gate },
        ...{ learningRate: cell.settings["learningRate"] as number, seed: cell.seed },
      });
      parameters = sizeOf(loaded.params);
      const gated = loaded as LoadedAdapter & { readonly adapter: XLoraAdapter };
      const items = drawSum(new Rng(cell.seed).fold("entropy"), shared.runs);
      const { ids } = rowOf(items, false, length);
      const used = ids.slice(
        0,
        ids.findIndex((id, i) => i > 0 && id === 0),
      );
      const scalings = await tokenScalings(
        context.backend,
        model,
        base,
        gated,
        new Tensor("int32", [used.length], used),
      );
      const counts = effectiveExperts(scalings).flat();
      effective = counts.reduce((total, one) => total + one, 0) / counts.length;
    }
    const reader: Reader = cell.arm === "oracle" ? (skill) => experts[skill] : () => loaded;
    const found = await measureSkills(
      context,
      { ...shared, test: sizes[context.budget].test },
      reader,
      cell.seed,
    );
    return { ...found, experts: cell.arm === "oracle" ? 1 : effective, parameters };
  },
};
