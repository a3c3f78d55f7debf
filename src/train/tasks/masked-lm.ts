/**
 * Hidden words from those around them.
 *
 * Devlin et al., NAACL 2019, arXiv:1810.04805, section 3.1: of 15 % of the tokens, drawn anew in each
 * step, 80 % become the mask, 10 % any word and 10 % stay; the loss is theirs alone. Which ones is set by
 * the seed and the step; where a model is judged, by the text, so that judgements compare.
 */
import { splitHash } from "../../data/split.ts";
import type { MaskableExample } from "../../data/task-examples.ts";
import { OptionError } from "../../errors.ts";
import { cast, equal, mul } from "../../ir/elementwise.ts";
import { argMax, sum } from "../../ir/reduce.ts";
import type { EncoderModel } from "../../models/model.ts";
import { crossEntropy } from "../../nn/losses.ts";
import { Rng } from "../../tensor/rng.ts";
import type { Objective } from "../objective.ts";
import { headLogits, headOf } from "./sequence-classification.ts";
import { placedTargets, textBatch } from "./text-batch.ts";

export interface MaskedLmOptions {
  /** The token of the mask. */
  readonly maskId: number;
  /** Share of tokens that are hidden, above 0 below 1; default 0.15. */
  readonly share?: number;
}

export interface MaskedTokens {
  readonly ids: Int32Array<ArrayBuffer>;
  /** Places that were drawn, at least one, in order. */
  readonly places: readonly number[];
}

/**
 * Hides tokens of the text; what stands around it stays.
 * @param rng the only source of chance
 */
export function maskTokens(
  { ids, start, kept }: MaskableExample,
  rng: Rng,
  vocabSize: number,
  { maskId, share = 0.15 }: MaskedLmOptions,
): MaskedTokens {
  const made = ids.slice();
  if (kept === 0) return { ids: made, places: [] };
  const [drawn, kinds, words] = ["drawn", "kind", "word"].map((name) =>
    rng.fold(name).uniforms(kept),
  ) as [Float32Array, Float32Array, Float32Array];
  const places: number[] = [];
  for (let i = 0; i < kept; i++) if (drawn[i]! < share) places.push(i);
  // A short text may draw none, and would teach nothing: its smallest number is taken.
  if (places.length === 0) places.push(drawn.indexOf(Math.min(...drawn)));
  for (const i of places) {
    if (kinds[i]! < 0.8) made[start + i] = maskId;
    else if (kinds[i]! < 0.9) made[start + i] = Math.floor(words[i]! * vocabSize);
  }
  return { ids: made, places: places.map((i) => start + i) };
}

/**
 * A batch has `ids`, `mask`, `types` (B, T), and for the hidden tokens `rows` (R,) of (B·T), `targets` and
 * `weights` (R,).
 * @throws OptionError when the model has no such head, or the share is outside its range.
 */
export function maskedLm(
  model: EncoderModel,
  options: MaskedLmOptions,
): Objective<EncoderModel, MaskableExample> {
  headOf(model, "masked-lm");
  const { share = 0.15, maskId } = options;
  const { vocabSize } = model.sizes;
  if (!(share > 0 && share < 1)) {
    throw new OptionError(`masked-lm: share must be above 0 and below 1, got ${share}.`);
  }
  if (!(Number.isInteger(maskId) && maskId >= 0 && maskId < vocabSize)) {
    throw new OptionError(
      `masked-lm: maskId must be one of the model's ${vocabSize} tokens, got ${maskId}.`,
    );
  }
  return {
    name: "masked-lm",
    learningRate: { adapter: 1e-3, full: 5e-5 },
    batch: (examples, shape) => {
      const hidden = examples.map((example, row) => {
        const rng =
          shape.rng?.fold("mask", row) ??
          new Rng(Math.floor(splitHash(example.ids.join()) * 2 ** 32));
        return maskTokens(example, rng, vocabSize, options);
      });
      const texts = textBatch(
        examples.map((example, row) => ({ ...example, ids: hidden[row]!.ids })),
        shape.rows,
        shape,
      );
      const length = texts.ids.shape[1]!;
      const rows = hidden.flatMap(({ places }, row) => places.map((place) => row * length + place));
      const targets = hidden.flatMap(({ places }, row) =>
        places.map((place) => examples[row]!.ids[place]!),
      );
      return { ...texts, ...placedTargets(rows, targets, Math.max(16, shape.rows * 2)) };
    },
    loss: ({ model: m, context }, batch) => {
      const logits = headLogits(m, context, batch);
      const { targets, weights } = batch;
      const losses = crossEntropy(logits, targets!, { reduction: "none" });
      const hits = cast(equal(argMax(logits, 1), targets!), "float32");
      return { sum: sum(mul(losses, weights!)), metrics: { correct: sum(mul(hits, weights!)) } };
    },
  };
}
