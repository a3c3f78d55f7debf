/** Every drafter on a tiny model: the tokens of plain decoding, in fewer passes. */
import { describe, expect, it } from "vitest";
import { nodeOrt } from "../../backend/ort/node.ts";
import { OptionError } from "../../errors.ts";
import { Decoder } from "../../infer/decoder.ts";
import type { DraftTree, VerifiedPass } from "../../infer/drafter.ts";
import { PassCount } from "../../infer/speculative.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import { Rng } from "../../tensor/rng.ts";
import { methodsWith } from "../registry.ts";
import { aded } from "./aded.ts";
import { makeDrafter } from "./drafters.ts";
import { ngramStatic } from "./ngram-static.ts";
import { lookUp, promptLookup } from "./prompt-lookup.ts";
import { TableDrafter } from "./shared/table-drafter.ts";

const vocabSize = 31;
const rng = new Rng(0);
const backend = await nodeOrt({ threads: 1 });
const model = new Gpt2({ vocabSize, dModel: 16, nLayers: 2, nHeads: 4, maxPositions: 96 });
const { params } = model.init(new Rng(5));
for (const tensor of Object.values(params)) {
  if (tensor.shape.length < 2) continue;
  for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 20;
}
const prompt = Int32Array.of(1, 2, 3);

/** A pass of one token after a text, as a model gave it that is sure of the token `certain`. */
function passOf(draft: DraftTree, accepted: number[], tokens: number[], certain: number[]) {
  const logits = new Float32Array((draft.tokens.length + 1) * vocabSize);
  certain.forEach((token, i) => {
    logits[i * vocabSize + token] = 20;
  });
  const pass: VerifiedPass = {
    draft,
    logits,
    accepted,
    tokens: Int32Array.from(tokens),
    margins: [20],
  };
  return pass;
}

describe.each(methodsWith("decoder").map((method) => [method.id, method] as const))(
  "%s",
  (_, method) => {
    it("makes the tokens of plain decoding, again in a second session", async () => {
      const decoder = new Decoder(model, params, backend, { prepack: false });
      for (const options of [
        { maxNewTokens: 60 },
        { maxNewTokens: 60, temperature: 0.9, topP: 0.95, seed: 2 },
      ]) {
        const [plain] = await decoder.generate([prompt], options);
        const corpus = Int32Array.from([...prompt, ...plain!]);
        const scene = {
          vocabSize,
          rng,
          ...(method.roles.decoder!.corpus !== "unused" && { corpus }),
        };
        const counts: PassCount[] = [];
        for (let session = 0; session < 2; session++) {
          const drafter = makeDrafter(method, scene);
          const count = new PassCount();
          const onPass = (_: number, pass: VerifiedPass): void => count.add(pass);
          const [made] = await decoder.generate([prompt], { ...options, drafter, onPass });
          expect([...made!]).toEqual([...plain!]);
          counts.push(count);
        }
        expect(counts[0]).toEqual(counts[1]);
        if (method.roles.decoder!.corpus !== "unused") {
          expect(counts[0]!.tokensPerPass).toBeGreaterThan(1.5);
        }
      }
      await decoder.release();
    });
  },
);

describe("aded", () => {
  it("needs fewer passes for a text that it saw the model write", async () => {
    const decoder = new Decoder(model, params, backend, { prepack: false });
    const drafter = makeDrafter(aded, { vocabSize, rng });
    const passes: number[] = [];
    for (let i = 0; i < 3; i++) {
      let count = 0;
      const onPass = (): void => void count++;
      await decoder.generate([prompt], { maxNewTokens: 40, drafter, onPass });
      passes.push(count);
    }
    expect(passes[1]).toBeLessThan(passes[0]!);
    expect(passes[1]).toBeLessThan(20);
    await decoder.release();
  });

  it("learns what the model would say on rejected paths, and not what the draft said there", () => {
    const drafter = makeDrafter(aded, { vocabSize, rng }, { rate: 1, top: 1 }) as TableDrafter;
    drafter.begin(Int32Array.of(1, 2));
    // The draft said 3 and then 4; the model says 7 after 1 2, 8 after 1 2 3, and 9 after 1 2 3 4.
    const draft = { tokens: Int32Array.of(3, 4), parents: Int32Array.of(-1, 0) };
    drafter.learn(passOf(draft, [], [7], [7, 8, 9]));
    const best = (u: number, v: number): number =>
      drafter.model.rows.tokenAt(drafter.model.find(u, v), 0);
    expect([best(1, 2), best(2, 3), best(3, 4)]).toEqual([7, 8, 9]);
    // What comes next stands after 2 7, where nothing is known.
    expect(drafter.propose(9).tokens.length).toBe(0);
    drafter.learn(passOf({ tokens: new Int32Array(0), parents: new Int32Array(0) }, [], [1], [1]));
    expect(best(2, 7)).toBe(1);
  });

  it("says what it is: options in their ranges, memory within its bound", () => {
    expect(() => makeDrafter(aded, { vocabSize, rng }, { rate: 0 })).toThrow(
      "aded: rate must be a number in (0, 1], got 0.",
    );
    expect(() => makeDrafter(aded, { vocabSize, rng }, { breadth: 3 })).toThrow(OptionError);
    expect(() => makeDrafter(aded, { vocabSize, rng }, { draft: "tree" })).toThrow(
      'aded: draft must be search or beam, got "tree".',
    );
    const corpus = Int32Array.from({ length: 200_000 }, () => rng.integer(400));
    const drafter = makeDrafter(aded, { vocabSize: 400, rng, corpus }, { memory: 2 });
    expect(drafter.bytes).toBeGreaterThan(2 ** 20 / 2);
    expect(drafter.bytes).toBeLessThanOrEqual(2 ** 21);
  });
});

describe("ngram-static", () => {
  it("stays as its corpus made it", () => {
    const corpus = Int32Array.of(1, 2, 3, 1, 2, 3, 1, 2, 4);
    const drafter = makeDrafter(ngramStatic, { vocabSize, rng, corpus }) as TableDrafter;
    drafter.begin(Int32Array.of(1, 2));
    const first = drafter.propose(31);
    drafter.learn(passOf(first, [], [7], [7]));
    drafter.begin(Int32Array.of(1, 2));
    expect(drafter.propose(31)).toEqual(first);
    expect(drafter).toBeInstanceOf(TableDrafter);
  });

  it("asks for the corpus that it needs", () => {
    expect(() => makeDrafter(ngramStatic, { vocabSize, rng })).toThrow(
      "ngram-static: needs a corpus — give a text whose n-grams it takes.",
    );
  });
});

describe("prompt-lookup", () => {
  it("finds the longest end of the text that stood before, the last place of several", () => {
    expect(lookUp([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 3)).toBe(3);
    expect(lookUp([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2)).toBe(6);
    expect(lookUp([5, 1, 5, 2, 5], 3)).toBe(3);
    expect(lookUp([1, 2, 3], 3)).toBe(-1);
    expect(lookUp([4, 4, 4], 3)).toBe(2);
    expect(lookUp([4], 3)).toBe(-1);
  });

  it("proposes what followed, as a chain", () => {
    const drafter = makeDrafter(promptLookup, { vocabSize, rng }, { tokens: 3 });
    drafter.begin(Int32Array.of(1, 2, 3, 4, 5, 1, 2));
    expect(drafter.propose(31)).toEqual({
      tokens: Int32Array.of(3, 4, 5),
      parents: Int32Array.of(-1, 0, 1),
    });
    expect(drafter.propose(2).tokens.length).toBe(2);
    const empty = { tokens: new Int32Array(0), parents: new Int32Array(0) };
    drafter.learn(passOf(empty, [], [9], [9]));
    expect(drafter.propose(31).tokens.length).toBe(0);
  });
});
