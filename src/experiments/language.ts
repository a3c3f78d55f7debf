/** Language models in experiments: examples from token sequences, held-out loss, choices, exact matches. */
import type { Backend } from "../backend/backend.ts";
import type { Example } from "../data/example.ts";
import { OptionError } from "../errors.ts";
import type { Scorer } from "../infer/score.ts";
import type { LanguageModel } from "../models/model.ts";
import { causalLm } from "../train/causal-lm.ts";
import { meanNll } from "../train/pretrain.ts";
import { type Trainee, TrainProgram } from "../train/program.ts";

/** A prompt and its answer as one example: loss on the answer alone. */
export function answerExample(prompt: ArrayLike<number>, answer: ArrayLike<number>): Example {
  if (prompt.length === 0 || answer.length === 0) {
    throw new OptionError(
      `example: needs a prompt and an answer, got ${prompt.length} and ${answer.length} tokens.`,
    );
  }
  const ids = new Int32Array(prompt.length + answer.length);
  ids.set(Array.from(prompt));
  ids.set(Array.from(answer), prompt.length);
  return { ids, mask: Uint8Array.from(ids, (_, i) => (i >= prompt.length ? 1 : 0)) };
}

/** A long row of tokens cut into examples of `length` tokens with loss on all but the first of each. */
export function windowExamples(tokens: Int32Array, length: number): readonly Example[] {
  const examples: Example[] = [];
  // Each window begins with the last token of the one before, so that every token is predicted once.
  for (let start = 0; start + 1 < tokens.length; start += length - 1) {
    const ids = tokens.slice(start, start + length);
    examples.push({ ids, mask: Uint8Array.from(ids, (_, i) => (i > 0 ? 1 : 0)) });
  }
  return examples;
}

export interface HeldOutOptions {
  /** Tokens of a window; default 64, and the model's positions at most. */
  readonly seqLen?: number;
  /** Windows together; default 16. */
  readonly batchSize?: number;
}

/**
 * Mean -log p per token, in nats, over a row of tokens cut into windows.
 * @param trainee with its trained parameters; whatever it learnt, the next token is what is measured
 */
export async function heldOutLoss(
  trainee: Trainee<LanguageModel>,
  tokens: Int32Array,
  backend: Backend,
  options: HeldOutOptions = {},
): Promise<number> {
  const { batchSize = 16 } = options;
  const seqLen = Math.min(options.seqLen ?? 64, trainee.model.sizes.maxPositions);
  const program = new TrainProgram({ ...trainee, objective: causalLm }, backend);
  try {
    return await meanNll(
      (batch) => program.evaluate(batch, trainee.trained),
      tokens,
      batchSize,
      seqLen,
    );
  } finally {
    await program.release();
  }
}

/** A question in tokens. */
export interface TokenQuestion {
  readonly prompt: ArrayLike<number>;
  readonly choices: readonly ArrayLike<number>[];
  /** Place of the right choice. */
  readonly answer: number;
}

export interface ChoiceAnswers {
  readonly accuracy: number;
  /** Place of the likeliest choice of each question; the first among equals. */
  readonly chosen: readonly number[];
  /** log p(choice | prompt) of each. */
  readonly logprobs: readonly (readonly number[])[];
}

/**
 * Answers by likelihood: Σ log p of each choice's tokens after the prompt, divided by their number when
 * `perToken`.
 */
export async function chooseAnswers(
  scorer: Scorer,
  questions: readonly TokenQuestion[],
  options: { readonly perToken?: boolean; readonly signal?: AbortSignal } = {},
): Promise<ChoiceAnswers> {
  const { perToken = false, signal } = options;
  if (questions.length === 0) throw new OptionError("choices: there are no questions.");
  const examples = questions.flatMap(({ prompt, choices }) =>
    choices.map((choice) => answerExample(prompt, choice)),
  );
  const scores = await scorer.score(examples, { batchSize: 64, ...(signal && { signal }) });
  let next = 0;
  const logprobs = questions.map(({ choices }) =>
    choices.map(() => {
      const own = scores[next++]!.logprobs;
      return own.reduce((a, b) => a + b, 0) / (perToken ? own.length : 1);
    }),
  );
  const chosen = logprobs.map((values) => values.indexOf(Math.max(...values)));
  const right = questions.filter(({ answer }, i) => chosen[i] === answer).length;
  return { accuracy: right / questions.length, chosen, logprobs };
}

/**
 * Share of examples whose answer greedy decoding would give token by token: every token that carries loss is
 * the likeliest after the right ones before it.
 */
export async function exactMatches(
  scorer: Scorer,
  examples: readonly Example[],
  options: { readonly signal?: AbortSignal } = {},
): Promise<{ readonly share: number; readonly isRight: readonly boolean[] }> {
  const { signal } = options;
  const scores = await scorer.score(examples, { batchSize: 64, ...(signal && { signal }) });
  const isRight = scores.map(({ isTop }) => isTop.every((top) => top === 1));
  return { share: isRight.filter(Boolean).length / Math.max(1, examples.length), isRight };
}
