import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { contextOf } from "../../../test/support/experiment-context.ts";
import { parityBackend } from "../../../test/support/fixture.ts";
import { MissingError } from "../../errors.ts";
import { Scorer } from "../../infer/score.ts";
import { Rng } from "../../tensor/rng.ts";
import { traineeOf } from "../../train/trainee.ts";
import { drawGlyphs, glyphStrokes, madeUp } from "../data/glyphs.ts";
import {
  answerExample,
  chooseAnswers,
  exactMatches,
  heldOutLoss,
  windowExamples,
} from "../language.ts";
import { accuracy, answers, visionTrainee } from "../vision.ts";
import { brownLm, tokensOf } from "./language-model.ts";
import { vitBase } from "./vit.ts";

const backend = await parityBackend();
const folder = mkdtempSync(join(tmpdir(), "plasticity-bases-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const scene = (signal?: AbortSignal) =>
  contextOf({
    budget: "quick",
    backend,
    folder,
    fetch: async () => {
      throw new MissingError("packages: no network");
    },
    ...(signal && { signal }),
  });

describe("a ViT base", () => {
  const rng = new Rng(7);
  const draw = (count: number, name: string) =>
    drawGlyphs(glyphStrokes(7, 4), count, 28, rng.fold(name), { rotate: 0, shift: 0, shear: 0 });
  const data = {
    train: draw(160, "train"),
    test: draw(40, "test"),
    record: madeUp("four glyphs", {}),
  };
  const options = { dModel: 32, nLayers: 1, epochs: 6, batchSize: 16 };

  it("learns, is kept under its hash, and is read again without training", async () => {
    const { context, bases } = scene();
    const base = await vitBase(context, "glyphVit", data, options);
    expect(base.accuracy).toBeGreaterThan(0.9);
    expect(readdirSync(folder)).toEqual([`glyphVit-${base.hash}`]);
    const trainee = visionTrainee(base.model, base.params);
    expect(await accuracy(trainee, data.test, backend)).toBe(base.accuracy);
    const said: string[] = [];
    const again = await vitBase(
      { ...context, progress: (text) => void said.push(text) },
      "glyphVit",
      data,
      options,
    );
    expect(said).toEqual([]);
    expect(again.params["classifier.weight"]!.data).toEqual(base.params["classifier.weight"]!.data);
    expect(bases).toHaveLength(2);
    expect(bases[0]).toEqual(bases[1]);
  });

  it("gives answers that agree with its logits", async () => {
    const base = await vitBase(scene().context, "glyphVit", data, options);
    const trainee = visionTrainee(base.model, base.params);
    const found = await answers(trainee, data.test, backend, { batchSize: 16 });
    expect(found.logits.length).toBe(160);
    expect(found.pooled.length).toBe(40 * 32);
    const right = found.predicted.filter((label, i) => label === data.test.labels[i]).length;
    expect(found.accuracy).toBe(right / 40);
    expect(found.loss).toBeGreaterThan(0);
    expect(found.loss).toBeLessThan(Math.log(4));
  });

  it("that was stopped leaves nothing behind", async () => {
    const abort = new AbortController();
    const { context } = scene(abort.signal);
    const stopping = { ...context, progress: () => abort.abort() };
    await expect(vitBase(stopping, "stoppedVit", data, { ...options, seed: 1 })).rejects.toThrow();
    expect(readdirSync(folder).some((name) => name.startsWith("stopped"))).toBe(false);
  });
});

describe("a language model on Brown", () => {
  const options = { dModel: 32, nLayers: 1, steps: 40, batchSize: 8, seqLen: 32 };

  it("learns, with a tokenizer that never saw held-out files", async () => {
    const base = await brownLm(scene().context, options);
    const { vocabSize } = base.model.sizes;
    expect(base.heldOutLoss).toBeLessThan(Math.log(vocabSize) - 1);
    const names = new Set(base.trainFiles.map(({ name }) => name));
    expect(base.heldOutFiles.some(({ name }) => names.has(name))).toBe(false);
    const tokens = tokensOf(base.tokenizer, base.documents.heldOut);
    const loss = await heldOutLoss(traineeOf(base.model, base.params), tokens, backend, {
      seqLen: 32,
      batchSize: 8,
    });
    expect(loss).toBeCloseTo(base.heldOutLoss, 5);
  });

  it("has documents in the tokens that its tokenizer gives whole texts", async () => {
    const { tokenizer } = await brownLm(scene().context, options);
    const texts = [
      "the  two\n\n three's, don't!  ",
      ' A (b) -- "c";\td 12.5\n',
      "un mot: été <|endoftext|> fin",
      "",
    ];
    for (const text of texts) {
      const expected = [...tokenizer.encode(text), tokenizer.eosId];
      expect([...tokensOf(tokenizer, [text])]).toEqual(expected);
    }
  });

  it("of half the files shares the tokenizer with that of the other half", async () => {
    const { context } = scene();
    const small = { ...options, steps: 2 };
    const one = await brownLm(context, { ...small, half: 0 });
    const two = await brownLm(context, { ...small, half: 1 });
    expect(one.hash).not.toBe(two.hash);
    expect(one.tokenizer.json).toEqual(two.tokenizer.json);
    expect(one.trainFiles.some((file) => two.trainFiles.includes(file))).toBe(false);
  });

  it("answers choices and matches by its likelihoods", async () => {
    const base = await brownLm(scene().context, options);
    const scorer = new Scorer(base.model, base.params, backend);
    const encode = (text: string) => base.tokenizer.encode(text);
    const question = { prompt: encode("the"), choices: [encode(" ."), encode(" the")], answer: 0 };
    const { logprobs, chosen, accuracy: share } = await chooseAnswers(scorer, [question]);
    const [a, b] = logprobs[0]!;
    expect(chosen).toEqual([a! >= b! ? 0 : 1]);
    expect(share).toBe(a! >= b! ? 1 : 0);
    const [scored] = await scorer.score([answerExample(question.prompt, question.choices[0]!)]);
    expect(a).toBeCloseTo(
      scored!.logprobs.reduce((x, y) => x + y, 0),
      5,
    );
    // Whatever is likeliest after a prompt is an exact match.
    const texts = Array.from({ length: base.model.sizes.vocabSize }, (_, id) =>
      answerExample(question.prompt, [id]),
    );
    const { isRight } = await exactMatches(scorer, texts);
    expect(isRight.filter(Boolean)).toHaveLength(1);
  });
});

describe("windows of a text", () => {
  it("predict every token but the first once", () => {
    const tokens = Int32Array.from({ length: 11 }, (_, i) => i);
    const examples = windowExamples(tokens, 4);
    const predicted = examples.flatMap(({ ids, mask }) => [...ids].filter((_, i) => mask[i]));
    expect(predicted).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(() => answerExample([], [1])).toThrow("needs a prompt and an answer, got 0 and 1");
  });
});
