/** Multiple choice by likelihood: the choice that the model finds likeliest after the prompt. */
import type { Example } from "../data/example.ts";
import { applyTemplate, defaultTemplate } from "../data/examples.ts";
import { type LocatedRecord, shownKeys } from "../data/records.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { FormatError, OptionError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import { brierScore } from "./metrics/calibration.ts";
import {
  type Calibration,
  calibrationOf,
  estimateMean,
  type LikelihoodOptions,
  type Measurement,
} from "./metrics/likelihood.ts";
import type { ScoreOptions, Scorer } from "./score.ts";

/** A question, its choices, and which is right. */
export interface ChoiceQuestion {
  readonly prompt: string;
  readonly choices: readonly string[];
  /** Place among the choices, from 0. */
  readonly answer: number;
}

const maxChoices = 256;

/** Whether a record has the layout of `toQuestion`. */
export function isChoiceRecord({ record }: LocatedRecord): boolean {
  return Object.hasOwn(record, "choices");
}

/**
 * Reads `{ prompt, choices: [text, …], answer }`, in which `answer` is a place from 0 or the text of a
 * choice.
 * @throws FormatError naming the line.
 */
export function toQuestion({ record, where }: LocatedRecord): ChoiceQuestion {
  const { prompt, choices, answer } = record;
  if (typeof prompt !== "string" || !Array.isArray(choices) || answer === undefined) {
    throw new FormatError(
      `${where}: a question needs "prompt", "choices" (a list of texts) and "answer", got ${shownKeys(record)}.`,
    );
  }
  if (choices.length < 2 || choices.length > maxChoices) {
    throw new FormatError(
      `${where}: "choices" must hold 2 to ${maxChoices} texts, got ${choices.length}.`,
    );
  }
  const texts = choices.map((choice) => {
    if (typeof choice === "string" && choice !== "") return choice;
    throw new FormatError(
      `${where}: "choices" must hold texts that are not empty, got ${JSON.stringify(choice)}.`,
    );
  });
  if (new Set(texts).size < texts.length) {
    throw new FormatError(`${where}: "choices" holds the same text twice.`);
  }
  const place = typeof answer === "string" ? texts.indexOf(answer) : answer;
  if (typeof place !== "number" || !Number.isInteger(place) || !(place in texts)) {
    throw new FormatError(
      `${where}: "answer" must be a choice or its place from 0 to ${texts.length - 1}, got ${JSON.stringify(answer)}.`,
    );
  }
  return { prompt, choices: texts, answer: place };
}

/** What a choice's log-probability is divided by, so that long ones are not at a disadvantage. */
export type Normalization = "none" | "tokens" | "bytes";

export interface ChoiceResult {
  /** The likeliest choice; the first among equals. */
  readonly chosen: number;
  readonly isRight: boolean;
  /** softmax over the choices' scores. */
  readonly probabilities: readonly number[];
}

export interface ChoiceReport {
  readonly questions: number;
  readonly accuracy: Measurement;
  /** What answering by chance gets: the mean of 1 / choices. */
  readonly chance: number;
  /** Of the chosen answer, by softmax over the choices. */
  readonly calibration: Calibration;
  readonly results: readonly ChoiceResult[];
}

export interface ChoiceOptions extends ScoreOptions, LikelihoodOptions {
  readonly template?: string;
  /** Default "none". */
  readonly normalize?: Normalization;
}

/**
 * Scores log p(choice | prompt) = Σ log p of its tokens, after the prompt in the template; each choice's
 * tokens are its own, and no token for the end is counted. Division by bytes is what lm-evaluation-harness
 * calls `acc_norm`.
 * @throws OptionError when there are no questions, or a prompt has no tokens for a choice to follow.
 */
export async function answerChoices(
  scorer: Scorer,
  tokenizer: Tokenizer,
  questions: readonly ChoiceQuestion[],
  options: ChoiceOptions = {},
): Promise<ChoiceReport> {
  const { template = defaultTemplate, normalize = "none" } = options;
  if (questions.length === 0) throw new OptionError("choices: there are no questions.");
  const examples = questions.flatMap(({ prompt, choices }, i): Example[] => {
    const text = applyTemplate(template, prompt);
    const before = [...tokenizer.beginning, ...tokenizer.encode(text)];
    if (before.length === 0)
      throw new OptionError(`choices: the prompt of question ${i} is empty.`);
    return choices.map((choice) => {
      const ids = Int32Array.from([...before, ...tokenizer.encodeAfter(text, choice)]);
      return { ids, mask: Uint8Array.from(ids, (_, at) => (at >= before.length ? 1 : 0)) };
    });
  });
  const scores = await scorer.score(examples, options);
  let next = 0;
  const results = questions.map(({ choices, answer }): ChoiceResult => {
    const values = choices.map((choice) => {
      const { logprobs } = scores[next++]!;
      const total = logprobs.reduce((a, b) => a + b, 0);
      if (normalize === "tokens") return total / Math.max(1, logprobs.length);
      return normalize === "bytes" ? total / new TextEncoder().encode(choice).length : total;
    });
    const top = Math.max(...values);
    const weights = values.map((value) => Math.exp(value - top));
    const sum = weights.reduce((a, b) => a + b, 0);
    const chosen = values.indexOf(top);
    return { chosen, isRight: chosen === answer, probabilities: weights.map((w) => w / sum) };
  });
  const correct = results.map(({ isRight }) => (isRight ? 1 : 0));
  const confidences = results.map(({ probabilities, chosen }) => probabilities[chosen]!);
  const brier = results.map(({ probabilities }, i) =>
    brierScore(probabilities, questions[i]!.answer),
  );
  const mean = (values: readonly number[]): number =>
    values.reduce((a, b) => a + b, 0) / values.length;
  const rng = new Rng(options.seed ?? 0).fold("choices");
  return {
    questions: questions.length,
    accuracy: estimateMean(correct, rng, options),
    chance: mean(questions.map(({ choices }) => 1 / choices.length)),
    calibration: {
      ...calibrationOf({ confidences, correct }, options.bins ?? 10),
      brier: mean(brier),
    },
    results,
  };
}
