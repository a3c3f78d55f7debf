/** The tasks that turn texts into vectors, and texts into other texts. */
import {
  encodeSentences,
  encodeSourceTarget,
  type SentenceExample,
  type Seq2SeqExample,
  taskSet,
} from "../../data/task-examples.ts";
import {
  type SentenceGroup,
  type SourceTarget,
  taskFields,
  toSentenceGroup,
  toSourceTarget,
} from "../../data/tasks.ts";
import { textFrame } from "../../data/text-frame.ts";
import { OptionError } from "../../errors.ts";
import type { BeamOptions } from "../../infer/beam.ts";
import { asEncoder } from "../../infer/embed.ts";
import { EncoderRunner } from "../../infer/encoder-run.ts";
import { chrf } from "../../infer/metrics/chrf.ts";
import { pearson, spearman } from "../../infer/metrics/correlation.ts";
import { rankByProduct, retrievalScores } from "../../infer/metrics/retrieval.ts";
import { rouge } from "../../infer/metrics/rouge.ts";
import { Seq2SeqDecoder } from "../../infer/seq2seq.ts";
import type { Seq2SeqModel } from "../../models/model.ts";
import { normalized, type Pooling, poolTokens } from "../../models/pooling.ts";
import { sentenceFiles } from "../../models/sentence-folder.ts";
import { sentenceEmbedding } from "./sentence-embedding.ts";
import {
  contrastive,
  cosent,
  cosineLoss,
  matryoshka,
  multipleNegatives,
  type SentenceLoss,
  triplet,
} from "./sentence-loss.ts";
import { seq2seq } from "./seq2seq.ts";
import { lossOf, readSides, type TaskKind, type TaskOptions, weightsOf } from "./task.ts";

/** Losses on vectors by name; the scale of cosines where they have one. */
export const sentenceLosses: Readonly<Record<string, (scale: number | undefined) => SentenceLoss>> =
  {
    mnrl: (scale) => multipleNegatives(scale === undefined ? {} : { scale }),
    triplet: () => triplet(),
    cosine: () => cosineLoss(),
    contrastive: () => contrastive(),
    cosent: (scale) => cosent(scale),
  };

/** Scores say how near two texts are; without them, those that belong together are told. */
function lossFor(groups: readonly SentenceGroup[], options: TaskOptions): SentenceLoss {
  const scored = groups.filter(({ score }) => score !== undefined).length;
  const hasScores = scored === groups.length;
  const name = options.loss ?? (hasScores ? "cosent" : "mnrl");
  const make = Object.hasOwn(sentenceLosses, name) ? sentenceLosses[name] : undefined;
  if (!make) {
    throw new OptionError(
      `sentence-embedding: the loss "${name}" is not known — ${Object.keys(sentenceLosses).join(", ")} are.`,
    );
  }
  const loss = make(options.scale);
  if (loss.hasScore && !hasScores) {
    throw new OptionError(
      `sentence-embedding: ${name} needs a "score" in every example, ${groups.length - scored} of ${groups.length} have none.`,
    );
  }
  return options.dims ? matryoshka(loss, options.dims) : loss;
}

/** Places of texts among all, equal texts once. */
function indexed(texts: readonly string[]): { readonly unique: string[]; readonly at: number[] } {
  const places = new Map<string, number>();
  const at = texts.map((text) => {
    const known = places.get(text) ?? places.size;
    places.set(text, known);
    return known;
  });
  return { unique: [...places.keys()], at };
}

export const sentenceEmbeddingKind: TaskKind = {
  name: "sentence-embedding",
  about: "vectors that are near where texts belong together",
  data: '"anchor", "positive" (and "negative"), or "sentence1", "sentence2" and "score"',
  async open(files, loaded, tokenizer, path, options) {
    const model = asEncoder(loaded.model);
    const of = ({ texts }: SentenceGroup): string => texts[0]!;
    const sides = await readSides(files, path, taskFields.sentences, toSentenceGroup, of, options);
    const loss = lossFor([...sides.train, ...sides.heldOut], options);
    const pooling: Pooling =
      options.pooling ??
      options.sentence?.pooling ??
      (loaded.model.kind === "causal-lm" ? "last" : "mean");
    const { maxPositions } = model.sizes;
    const known = options.sentence?.maxLength ?? maxPositions;
    const maxLength = Math.min(options.maxLength ?? 256, known, maxPositions);
    const encoding = { tokenizer, frame: textFrame(tokenizer), maxLength };
    const encode = (list: readonly SentenceGroup[]): SentenceExample[] =>
      list.map((group) => encodeSentences(group, encoding));
    const [train, heldOut] = [encode(sides.train), encode(sides.heldOut)];
    const set = (list: readonly SentenceExample[]) =>
      taskSet(list, ({ texts, score }) => ({
        length: texts.reduce((sum, { ids }) => sum + ids.length, 0),
        loss: 1,
        all: [...texts.map(({ ids }) => ids), [score]],
      }));
    const heldOutSet = set(heldOut);
    const scores = sides.heldOut.map(({ score }) => score);
    const areScored = scores.every((score) => score !== undefined) && new Set(scores).size > 1;
    return {
      model,
      params: loaded.params,
      modules: [],
      taskType: "FEATURE_EXTRACTION",
      objective: sentenceEmbedding({ loss, pooling }),
      train: set(train),
      heldOut: heldOutSet,
      cut: [...train, ...heldOut].flatMap(({ texts }) => texts).filter(({ isCut }) => isCut).length,
      about: `loss ${loss.name}, ${pooling} pooling`,
      files: sentenceFiles({ pooling, normalize: true, maxLength }, model.sizes.dModel),
      measure: async (trainee, backend, how = {}) => {
        const { loss: value } = await lossOf(trainee, heldOutSet, backend, how);
        const { params, adapter } = weightsOf(trainee);
        const runner = new EncoderRunner(
          model,
          params,
          backend,
          ({ hidden, mask }) => normalized(poolTokens(hidden, mask, pooling)),
          adapter,
        );
        try {
          const texts = sides.heldOut.flatMap((group) => group.texts);
          const encoded = heldOut.flatMap((example) => example.texts);
          const { unique, at } = indexed(texts);
          const inputs = unique.map((text) => encoded[texts.indexOf(text)]!);
          const vectors = await runner.run(inputs, {
            ...(how.batchSize !== undefined && { batchSize: how.batchSize }),
            ...(how.signal && { signal: how.signal }),
          });
          const measures = areScored
            ? similarityMeasures(sides.heldOut, at, vectors)
            : retrievalMeasures(sides.heldOut, at, vectors);
          return { ...measures, loss: value };
        } finally {
          await runner.release();
        }
      },
    };
  },
};

/** Correlation of cosines with the scores, over pairs. */
function similarityMeasures(
  groups: readonly SentenceGroup[],
  at: readonly number[],
  vectors: readonly Float32Array[],
): Record<string, number> {
  let next = 0;
  const cosines = groups.map(({ texts }) => {
    const [a, b] = [vectors[at[next]!]!, vectors[at[next + 1]!]!];
    next += texts.length;
    return a.reduce((sum, x, i) => sum + x * b[i]!, 0);
  });
  const scores = groups.map(({ score }) => score!);
  return { spearman: spearman(cosines, scores), pearson: pearson(cosines, scores) };
}

/** Each anchor looks for its positives among all positives and negatives. */
function retrievalMeasures(
  groups: readonly SentenceGroup[],
  at: readonly number[],
  vectors: readonly Float32Array[],
): Record<string, number> {
  const wanted = new Map<number, Set<number>>();
  const documents = new Set<number>();
  let next = 0;
  for (const { texts } of groups) {
    const [anchor, positive, ...negatives] = texts.map((_, i) => at[next + i]!);
    next += texts.length;
    const known = wanted.get(anchor!) ?? new Set();
    wanted.set(anchor!, known.add(positive!));
    for (const document of [positive!, ...negatives]) documents.add(document);
  }
  const places = [...documents];
  const numberOf = new Map(places.map((place, i) => [place, i]));
  const ranked = rankByProduct(
    [...wanted.keys()].map((anchor) => vectors[anchor]!),
    places.map((place) => vectors[place]!),
  );
  const right = [...wanted.values()].map(
    (set) => new Set([...set].map((place) => numberOf.get(place)!)),
  );
  const ten = retrievalScores(ranked, right, 10);
  return {
    "nDCG@10": ten.ndcg,
    "MRR@10": ten.mrr,
    "recall@1": retrievalScores(ranked, right, 1).recall,
    "recall@10": ten.recall,
    "MAP@100": retrievalScores(ranked, right, 100).map,
  };
}

export const seq2seqKind: TaskKind = {
  name: "seq2seq",
  about: "what a text becomes: a summary, a translation, an answer",
  data: '"source" and "target", "prompt" and "completion", or "document" and "summary"',
  async open(files, loaded, tokenizer, path, options) {
    if (loaded.model.kind !== "seq2seq") {
      throw new OptionError(
        `seq2seq: a ${loaded.model.family} has no encoder and decoder — take a T5.`,
      );
    }
    const model = loaded.model as Seq2SeqModel;
    const of = ({ source }: SourceTarget): string => source;
    const sides = await readSides(
      files,
      path,
      taskFields.sourceTarget,
      toSourceTarget,
      of,
      options,
    );
    const maxLength = Math.min(options.maxLength ?? 256, model.sizes.maxPositions);
    const encoding = { tokenizer, frame: textFrame(tokenizer), maxLength };
    const encode = (list: readonly SourceTarget[]): Seq2SeqExample[] =>
      list.map((example) => encodeSourceTarget(example, model.endId, encoding));
    const [train, heldOut] = [encode(sides.train), encode(sides.heldOut)];
    const set = (list: readonly Seq2SeqExample[]) =>
      taskSet(list, ({ source, target }) => ({
        length: source.length + target.length,
        loss: target.length,
        all: [source, target],
      }));
    const heldOutSet = set(heldOut);
    const asked = sides.heldOut.slice(0, options.answerLimit ?? 200);
    const { numBeams, lengthPenalty } = options;
    const beams: BeamOptions = {
      ...(numBeams !== undefined && { numBeams }),
      ...(lengthPenalty !== undefined && { lengthPenalty }),
    };
    return {
      model,
      params: loaded.params,
      modules: [],
      taskType: "SEQ_2_SEQ_LM",
      objective: seq2seq(model, {
        ...(options.labelSmoothing !== undefined && { labelSmoothing: options.labelSmoothing }),
      }),
      train: set(train),
      heldOut: heldOutSet,
      cut: [...train, ...heldOut].filter(({ isCut }) => isCut).length,
      about:
        beams.numBeams === undefined
          ? "answers are written greedily to be measured"
          : `answers are searched for with ${beams.numBeams} beams to be measured`,
      files: {},
      measure: async (trainee, backend, how = {}) => {
        const { loss, accuracy } = await lossOf(trainee, heldOutSet, backend, how);
        const { params, adapter } = weightsOf(trainee);
        const decoder = new Seq2SeqDecoder(model, params, backend, adapter);
        const answers: string[] = [];
        try {
          const { batchSize = 16, signal } = how;
          for (let start = 0; start < asked.length; start += batchSize) {
            const part = heldOut.slice(start, Math.min(asked.length, start + batchSize));
            const longest = Math.max(...part.map(({ target }) => target.length));
            const made = await decoder.generate(
              part.map(({ source }) => source),
              // A good answer is hardly twice as long as the longest that is wanted.
              { maxNewTokens: 2 * longest, ...beams, ...(signal && { signal }) },
            );
            answers.push(
              ...made.map(({ tokens }) => tokenizer.decode(tokens, { skipSpecial: true })),
            );
          }
        } finally {
          await decoder.release();
        }
        const references = asked.map(({ target }) => target);
        const exact = answers.filter((answer, i) => answer.trim() === references[i]!.trim()).length;
        const rougeL =
          answers.reduce((sum, answer, i) => sum + rouge(answer, references[i]!).rougeL.f1, 0) /
          answers.length;
        return {
          rougeL,
          chrF: chrf(answers, references),
          exactMatch: exact / answers.length,
          tokenAccuracy: accuracy,
          loss,
        };
      },
    };
  },
};
