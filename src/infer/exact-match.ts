import { type Question, questionOf } from "../data/encode.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Decoder } from "./decoder.ts";

export interface Answer {
  readonly prompt: string;
  readonly expected: string;
  readonly answer: string;
  readonly isExact: boolean;
}

export interface ExactMatchOptions {
  /** How the prompt of a pair stands before its completion. */
  readonly template?: string;
  /** Rows decoded together; default 50. */
  readonly batchSize?: number;
  /** Default: the longest expected completion in tokens, and 8 more. */
  readonly maxNewTokens?: number;
  /** Tokens that end an answer; default: the tokenizer's end of text. */
  readonly stopIds?: readonly number[];
  readonly onProgress?: (done: number) => void;
  /** Ends it; the answers so far are returned. */
  readonly signal?: AbortSignal;
}

type Pair = { readonly prompt: string; readonly completion: string };

/** Greedy answers to questions, and whether each is the expected one letter for letter. */
export async function answerAll(
  decoder: Decoder,
  tokenizer: Tokenizer,
  questions: readonly (Question | Pair)[],
  options: ExactMatchOptions = {},
): Promise<Answer[]> {
  const { template, batchSize = 50, signal } = options;
  const how = template === undefined ? {} : { template };
  const asked = questions.map((item) =>
    "ids" in item ? item : questionOf({ kind: "pair", ...item }, tokenizer, how)!,
  );
  const maxNewTokens =
    options.maxNewTokens ??
    8 + Math.max(...asked.map(({ expected }) => tokenizer.encode(expected).length));
  const order = asked.map((_, i) => i);
  order.sort((a, b) => asked[a]!.ids.length - asked[b]!.ids.length);
  const answers: Answer[] = [];
  for (let start = 0; start < order.length && !signal?.aborted; start += batchSize) {
    const chosen = order.slice(start, start + batchSize);
    const made = await decoder.generate(
      chosen.map((i) => asked[i]!.ids),
      {
        maxNewTokens,
        stopIds: options.stopIds ?? (tokenizer.eosId === undefined ? [] : [tokenizer.eosId]),
        ...(signal && { signal }),
      },
    );
    if (signal?.aborted) break;
    chosen.forEach((i, row) => {
      const { prompt, expected } = asked[i]!;
      const answer = tokenizer.decode(made[row]!, { skipSpecial: true });
      answers[i] = { prompt, expected, answer, isExact: answer.trim() === expected.trim() };
    });
    options.onProgress?.(start + chosen.length);
  }
  return answers.filter((answer) => answer !== undefined);
}
