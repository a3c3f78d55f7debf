/** Metrics of tasks against scikit-learn, scipy, seqeval and sacrebleu, and by hand. */
import { describe, expect, test } from "vitest";
import { fixture } from "../../../test/support/fixture.ts";
import { chrf } from "./chrf.ts";
import { classificationScores, multiLabelScores } from "./classification.ts";
import { pearson, ranks, spearman } from "./correlation.ts";
import { entitiesOf, entityScores } from "./entities.ts";
import { rankByProduct, retrievalScores } from "./retrieval.ts";

interface Record {
  readonly classification: {
    readonly truth: number[];
    readonly answers: number[];
    readonly confusion: number[][];
  } & { readonly [name: string]: number };
  readonly multiLabel: { truth: number[][]; answers: number[][] } & { [name: string]: number };
  readonly entities: { truth: string[][]; answers: string[][] } & { [name: string]: number };
  readonly retrieval: {
    queries: number[][];
    documents: number[][];
    wanted: number[][];
    k: number;
  } & { [name: string]: number };
  readonly correlation: { a: number[]; b: number[]; pearson: number; spearman: number };
  readonly chrf: { answers: string[]; references: string[]; score: number; first: number };
}

// biome-ignore lint/suspicious/noExplicitAny: lists and numbers side by side
const record = fixture<any>("task-metrics") as Record;
const near = (actual: number, expected: number): void => expect(actual).toBeCloseTo(expected, 10);

describe("classes", () => {
  test("are scored as scikit-learn scores them, with one that never is right", () => {
    const { truth, answers, confusion, ...expected } = record.classification;
    const scores = classificationScores(truth, answers, 4);
    expect(scores.confusion).toEqual(confusion);
    for (const name of ["accuracy", "macroF1", "microF1", "weightedF1", "matthews"] as const) {
      near(scores[name], expected[name]!);
    }
  });

  test("of a hand-worked table", () => {
    // truth 0 0 0 1, answers 0 0 1 1: precision of 0 is 2/2, recall 2/3; of 1 it is 1/2 and 1/1.
    const scores = classificationScores([0, 0, 0, 1], [0, 0, 1, 1], 2);
    expect(scores.confusion).toEqual([
      [2, 1],
      [0, 1],
    ]);
    near(scores.classes[0]!.f1, 4 / 5);
    near(scores.classes[1]!.f1, 2 / 3);
    // (2·1 - 1·0) / √(2·3·1·2)
    near(scores.matthews, 2 / Math.sqrt(12));
  });

  test("several at once", () => {
    const { truth, answers, exact, macroF1, microF1 } = record.multiLabel;
    const scores = multiLabelScores(truth, answers);
    near(scores.exact, exact!);
    near(scores.macroF1, macroF1!);
    near(scores.microF1, microF1!);
  });

  test("refuse lists that do not fit", () => {
    expect(() => classificationScores([0, 1], [0], 2)).toThrow(
      "scores: needs as many answers as truths and at least one, got 1 and 2.",
    );
    expect(() => classificationScores([0, 2], [0, 1], 2)).toThrow("class 2 is not one of 2.");
    expect(() => multiLabelScores([[1, 0]], [[1]])).toThrow("needs lists of one length");
  });
});

describe("entities", () => {
  test("begin with B and go on with I of the same kind", () => {
    expect(entitiesOf(["B-PER", "I-PER", "I-LOC", "B-LOC", "B-LOC", "O", "I-PER"])).toEqual([
      { kind: "PER", start: 0, end: 2 },
      { kind: "LOC", start: 3, end: 4 },
      { kind: "LOC", start: 4, end: 5 },
    ]);
    expect(() => entitiesOf(["S-PER"])).toThrow('the tag "S-PER" is neither O, B-… nor I-….');
  });

  test("are scored as seqeval's strict mode scores them", () => {
    const { truth, answers, precision, recall, f1, macroF1 } = record.entities;
    const scores = entityScores(truth, answers);
    near(scores.precision, precision!);
    near(scores.recall, recall!);
    near(scores.f1, f1!);
    near(scores.macroF1, macroF1!);
    expect(Object.keys(scores.kinds)).toEqual(["LOC", "PER"]);
  });
});

test("ranks are measured by their definitions, gain as in scikit-learn", () => {
  const { queries, documents, wanted, k, ...expected } = record.retrieval;
  const ranked = rankByProduct(queries, documents);
  const scores = retrievalScores(
    ranked,
    wanted.map((list) => new Set(list)),
    k,
  );
  for (const name of ["ndcg", "mrr", "recall", "precision", "map"] as const) {
    near(scores[name], expected[name]!);
  }
  expect(() => retrievalScores([[0]], [new Set()], 1)).toThrow("query 0 wants no document.");
  // The one that is wanted comes second: 1 / 2, and 1 / log2(3).
  const second = retrievalScores([[4, 7]], [new Set([7])], 2);
  near(second.mrr, 0.5);
  near(second.ndcg, 1 / Math.log2(3));
});

test("correlations are scipy's, equal numbers share ranks", () => {
  const { a, b, pearson: p, spearman: s } = record.correlation;
  near(pearson(a, b), p);
  near(spearman(a, b), s);
  expect([...ranks([3, 1, 3, 2])]).toEqual([3.5, 1, 3.5, 2]);
  expect(() => pearson([1], [2])).toThrow("needs two lists of one length from 2, got 1 and 1.");
});

test("chrF is sacrebleu's", () => {
  const { answers, references, score, first } = record.chrf;
  near(chrf(answers, references), score);
  near(chrf(answers.slice(0, 1), references.slice(0, 1)), first);
  expect(chrf(["ab"], ["cd"])).toBe(0);
  expect(() => chrf([], [])).toThrow("needs a reference for each answer");
});
