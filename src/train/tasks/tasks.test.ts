/** Every task trains a tiny model on a tiny file, and measures what it learnt. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parityBackend } from "../../../test/support/fixture.ts";
import { wordPieceConfig, wordPieceJson, writeTiny } from "../../../test/support/tiny-encoder.ts";
import { lora } from "../../adapters/lora.ts";
import { Tokenizer } from "../../data/tokenizer.ts";
import { nodeHost } from "../../host/node.ts";
import { loadAnyModel } from "../../models/folder.ts";
import type { EncoderModel } from "../../models/model.ts";
import { Rng } from "../../tensor/rng.ts";
import { finetune } from "../finetune.ts";
import { unpackedParams } from "../trainee.ts";
import {
  maskedLmKind,
  sequenceClassificationKind,
  tokenClassificationKind,
} from "./classify-kinds.ts";
import { maskedLm, maskTokens } from "./masked-lm.ts";
import { type OpenedTask, type TaskKind, taskAdapter, taskTrainee } from "./task.ts";
import { sentenceEmbeddingKind, seq2seqKind } from "./text-kinds.ts";

const { files } = nodeHost();
const kinds: readonly TaskKind[] = [
  sequenceClassificationKind,
  tokenClassificationKind,
  maskedLmKind,
  seq2seqKind,
  sentenceEmbeddingKind,
];
const tokenizer = new Tokenizer({ tokenizer: wordPieceJson(), config: wordPieceConfig }, "tiny");
const things = ["movie", "book", "film", "story"];
const [good, bad] = [
  ["good", "fine", "great"],
  ["bad", "poor", "awful"],
];

const lines = (records: readonly object[]): string =>
  records.map((x) => JSON.stringify(x)).join("\n");
const opinions = things.flatMap((thing) =>
  [...good!, ...bad!].flatMap((word) =>
    ["the # was *", "a very * #", "the # is * !"].map((form) => ({
      text: form.replace("#", thing).replace("*", word),
      label: good!.includes(word) ? "positive" : "negative",
    })),
  ),
);
const names = ["anna", "ben"].flatMap((person) =>
  ["paris", "london"].flatMap((place) =>
    ["lives in", "works at", "likes"].map((verb) => {
      const between = verb.split(" ");
      const outside = between.map(() => "O");
      return {
        tokens: [person, ...between, place],
        tags: ["B-PER", ...outside, "B-LOC"],
      };
    }),
  ),
);
const data: Readonly<Record<string, readonly object[]>> = {
  "sequence-classification": opinions,
  "token-classification": names,
  "masked-lm": opinions.map(({ text }) => ({ text })),
  seq2seq: things.flatMap((thing) =>
    [...good!, ...bad!].map((word) => ({ source: `the ${thing} was ${word}`, target: word })),
  ),
  "sentence-embedding": things.flatMap((thing) =>
    [...good!, ...bad!].map((word) => ({
      anchor: `the ${thing} was ${word}`,
      positive: `a ${word} ${thing}`,
    })),
  ),
};

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-kinds-"));
  for (const family of ["bert", "t5"]) await writeTiny(files, join(scratch, family), family);
  for (const [name, records] of Object.entries(data)) {
    await writeFile(join(scratch, `${name}.jsonl`), lines(records));
  }
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function opened(name: string, options: object = {}): Promise<OpenedTask> {
  const kind = kinds.find((one) => one.name === name)!;
  const loaded = await loadAnyModel(files, join(scratch, name === "seq2seq" ? "t5" : "bert"));
  const path = join(scratch, `${name}.jsonl`);
  // What is asked for are the texts that were learnt: so few say nothing of others.
  const how = { heldOutPath: path, rng: new Rng(5), ...options };
  return kind.open(files, loaded, tokenizer, path, how);
}

describe.each([
  ["sequence-classification", "accuracy", 0.95, 6],
  ["token-classification", "f1", 0.95, 30],
  ["masked-lm", "accuracy", 0.25, 10],
  ["seq2seq", "exactMatch", 0.9, 25],
  ["sentence-embedding", "recall@1", 0.95, 15],
] as const)("%s", (name, measure, least, epochs) => {
  test(`is learnt by all parameters: ${measure} above ${least}`, async () => {
    const task = await opened(name);
    const backend = await parityBackend();
    const trainee = taskTrainee(task);
    const before = await task.measure(trainee, backend);
    const { params } = await finetune(trainee, task.train, backend, {
      ...{ epochs, batchSize: 8, learningRate: 2e-3, seed: 1 },
    });
    const after = await task.measure({ ...trainee, trained: params }, backend);
    expect(after["loss"]!).toBeLessThan(before["loss"]!);
    expect(after[measure]!).toBeGreaterThan(least);
    expect(before[measure]!).toBeLessThanOrEqual(after[measure]!);
  });

  test("trains an adapter and what is new beside it, and leaves the base", async () => {
    const task = await opened(name);
    const adapter = taskAdapter(task, lora(task.model, { rank: 4, targetModules: "all-linear" }));
    const start = adapter.init(new Rng(2));
    const trainee = taskTrainee(task, { adapter, params: start });
    const base = Object.fromEntries(
      Object.entries(task.params).map(([path, tensor]) => [path, tensor.clone()]),
    );
    const backend = await parityBackend();
    const { params, losses } = await finetune(trainee, task.train, backend, {
      ...{ steps: 8, batchSize: 8, learningRate: 1e-2, schedule: "constant" },
    });
    expect(losses.at(-1)!).toBeLessThan(losses[0]! * 1.1);
    expect(task.params).toEqual(base);
    for (const module of task.modules) {
      const path = Object.keys(params).find((key) => key.includes(`.${module}.`))!;
      expect(params[path], path).not.toEqual(start[path]);
    }
    const again = await finetune(trainee, task.train, backend, {
      ...{ steps: 8, batchSize: 8, learningRate: 1e-2, schedule: "constant" },
    });
    expect(again.params).toEqual(params);
  });

  test("trains and is judged beside a base of 8 bits as beside the floats that it stands for", async () => {
    const task = await opened(name);
    const adapter = taskAdapter(task, lora(task.model, { rank: 4, targetModules: "all-linear" }));
    const start = adapter.init(new Rng(2));
    const packed = taskTrainee(task, { adapter, params: start }, { quantize: { bits: 8 } });
    const [path] = [...task.model.targets.keys()];
    expect(packed.frozen[`${path}.weight`]).toBeUndefined();
    expect(packed.frozen[`${path}.weight.packed`]!.dtype).toBe("uint8");
    const floats = unpackedParams(task.model, packed.frozen);
    expect(floats[`${path}.weight`]!.shape).toEqual(task.params[`${path}.weight`]!.shape);
    const plain = taskTrainee({ ...task, params: floats }, { adapter, params: start });
    const backend = await parityBackend();
    const how = { steps: 3, batchSize: 8, learningRate: 1e-2, schedule: "constant" } as const;
    const run = async (trainee: typeof packed) => {
      const { params, losses } = await finetune(trainee, task.train, backend, how);
      return { losses, scores: await task.measure({ ...trainee, trained: params }, backend) };
    };
    const [ours, theirs] = [await run(packed), await run(plain)];
    expect(ours.losses[0]!).toBeCloseTo(theirs.losses[0]!, 5);
    // AdamW turns the noise of tiny gradients into whole steps.
    for (const [i, loss] of ours.losses.entries()) expect(loss).toBeCloseTo(theirs.losses[i]!, 2);
    expect(ours.scores["loss"]).toBeCloseTo(theirs.scores["loss"]!, 2);
  });

  test("leaves parameters as they are that are to be frozen", async () => {
    const task = await opened(name);
    const parts = name === "seq2seq" ? ["encoder", "shared"] : ["embeddings", "layer.0"];
    const { trained, frozen } = taskTrainee(task, undefined, { freeze: parts });
    for (const path of Object.keys(task.params)) {
      const isFrozen = parts.some((part) => `.${path}.`.includes(`.${part}.`));
      expect(path in frozen, path).toBe(isFrozen);
      expect(path in trained, path).toBe(!isFrozen);
    }
    expect(() => taskTrainee(task, undefined, { freeze: ["nothing"] })).toThrow(
      'freeze: "nothing" is part of no parameter\'s path',
    );
  });
});

describe("tasks", () => {
  test("searches for answers with beams where they are asked for", async () => {
    const greedy = await opened("seq2seq");
    const beams = await opened("seq2seq", { numBeams: 3, lengthPenalty: 0.5 });
    expect(greedy.about).toBe("answers are written greedily to be measured");
    expect(beams.about).toBe("answers are searched for with 3 beams to be measured");
    const backend = await parityBackend();
    const { params } = await finetune(taskTrainee(greedy), greedy.train, backend, {
      ...{ steps: 40, batchSize: 8, learningRate: 2e-3, seed: 1 },
    });
    const trainee = { ...taskTrainee(greedy), trained: params };
    const [a, b] = [await greedy.measure(trainee, backend), await beams.measure(trainee, backend)];
    expect(b["loss"]).toBe(a["loss"]);
    expect(b["chrF"]).toBeGreaterThan(0);
    expect(b["chrF"]).not.toBe(a["chrF"]);
  });

  test("classify by the last token on a causal language model", async () => {
    const kind = kinds.find((one) => one.name === "sequence-classification")!;
    const { Llama } = await import("../../models/llama.ts");
    const model = new Llama({
      ...{ vocabSize: tokenizer.vocabSize, dModel: 32, dFeedForward: 64, nLayers: 2, nHeads: 4 },
      maxPositions: 64,
    });
    const { params } = model.init(new Rng(1));
    const path = join(scratch, "sequence-classification.jsonl");
    const options = { heldOutPath: path, rng: new Rng(5) };
    const task = await kind.open(files, { model, params }, tokenizer, path, options);
    const head = (task.model as EncoderModel).head!;
    expect([head.reads, head.modules, task.model.config["architectures"]]).toEqual([
      "last",
      ["score"],
      ["LlamaForSequenceClassification"],
    ]);
    const trainee = taskTrainee(task);
    const backend = await parityBackend();
    const result = await finetune(trainee, task.train, backend, {
      ...{ epochs: 8, batchSize: 8, learningRate: 2e-3 },
    });
    const after = await task.measure({ ...trainee, trained: result.params }, backend);
    expect(after["accuracy"]!).toBeGreaterThan(0.95);
  });

  test("learn numbers and several labels of one text", async () => {
    const kind = kinds.find((one) => one.name === "sequence-classification")!;
    const loaded = await loadAnyModel(files, join(scratch, "bert"));
    const backend = await parityBackend();
    for (const [label, measure] of [
      [(text: string) => (text.includes("very") ? 0.9 : 0.1), "pearson"],
      [(text: string) => (text.includes("very") ? ["strong", "short"] : ["plain"]), "microF1"],
    ] as const) {
      const path = join(scratch, `${measure}.jsonl`);
      await writeFile(path, lines(opinions.map(({ text }) => ({ text, label: label(text) }))));
      const options = { heldOutPath: path, rng: new Rng(5) };
      const task = await kind.open(files, loaded, tokenizer, path, options);
      const trainee = taskTrainee(task);
      const { params } = await finetune(trainee, task.train, backend, {
        ...{ epochs: 6, batchSize: 8, learningRate: 2e-3 },
      });
      const after = await task.measure({ ...trainee, trained: params }, backend);
      expect(after[measure]!, measure).toBeGreaterThan(0.9);
    }
  });

  test("refuse a model without the head when it is judged, and losses without their data", async () => {
    await expect(opened("sequence-classification", { judgeOnly: true })).rejects.toThrow(
      "sequence-classification: the bert has no head for it — fine-tune it with --task sequence-classification first.",
    );
    await expect(opened("sentence-embedding", { loss: "cosent" })).rejects.toThrow(
      'sentence-embedding: cosent needs a "score" in every example, 48 of 48 have none.',
    );
    await expect(opened("sentence-embedding", { loss: "angle" })).rejects.toThrow(
      'the loss "angle" is not known — mnrl, triplet, cosine, contrastive, cosent are.',
    );
    const seq2seq = kinds.find((one) => one.name === "seq2seq")!;
    const bert = await loadAnyModel(files, join(scratch, "bert"));
    const path = join(scratch, "seq2seq.jsonl");
    await expect(seq2seq.open(files, bert, tokenizer, path, { rng: new Rng(0) })).rejects.toThrow(
      "seq2seq: a bert has no encoder and decoder — take a T5.",
    );
  });
});

describe("masked tokens", () => {
  const ids = Int32Array.from({ length: 4002 }, (_, i) => (i === 0 ? 2 : i === 4001 ? 3 : 30));
  const example = { ids, isCut: false, start: 1, kept: 4000 };

  test("are 15 % of the text, 80 % of them the mask, 10 % another word, 10 % as they were", () => {
    const made = maskTokens(example, new Rng(3), 90, { maskId: 4 });
    const share = made.places.length / 4000;
    expect(Math.abs(share - 0.15)).toBeLessThan(0.02);
    const of = (pick: (id: number) => boolean): number =>
      made.places.filter((place) => pick(made.ids[place]!)).length / made.places.length;
    expect(Math.abs(of((id) => id === 4) - 0.8)).toBeLessThan(0.05);
    expect(Math.abs(of((id) => id === 30) - 0.1)).toBeLessThan(0.04);
    expect([made.ids[0], made.ids[4001]]).toEqual([2, 3]);
    const kept = new Set(made.places);
    expect(made.ids.every((id, i) => kept.has(i) || id === ids[i])).toBe(true);
  });

  test("follow from the seed and the step; of a judged text from itself", async () => {
    const { model } = await opened("masked-lm");
    const objective = maskedLm(model as EncoderModel, { maskId: 4 });
    const batch = (rng?: Rng) =>
      objective.batch([{ ...example, ids: ids.slice(0, 40), kept: 39 }], {
        rows: 2,
        ...(rng && { rng }),
      });
    expect(batch(new Rng(1))).toEqual(batch(new Rng(1)));
    expect(batch(new Rng(1))["rows"]).not.toEqual(batch(new Rng(2))["rows"]);
    expect(batch()).toEqual(batch());
  });

  test("are at least one", () => {
    const short = { ids: Int32Array.of(2, 30, 3), isCut: false, start: 1, kept: 1 };
    for (let seed = 0; seed < 20; seed++) {
      expect(maskTokens(short, new Rng(seed), 90, { maskId: 4 }).places).toEqual([1]);
    }
  });

  test("refuse a share and a mask outside their range", async () => {
    const { model } = await opened("masked-lm");
    const make = (options: { maskId: number; share?: number }) => () =>
      maskedLm(model as EncoderModel, options);
    expect(make({ maskId: 4, share: 1 })).toThrow("share must be above 0 and below 1, got 1.");
    expect(make({ maskId: 1e6 })).toThrow(
      "maskId must be one of the model's 97 tokens, got 1000000.",
    );
  });
});
