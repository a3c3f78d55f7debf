import { applyTemplate, defaultTemplate } from "../data/examples.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Decoder } from "./decoder.ts";

export interface Answer {
  readonly prompt: string;
  readonly expected: string;
  readonly answer: string;
  readonly isExact: boolean;
}

export interface ExactMatchOptions {
  readonly template?: string;
  /** Rows decoded together; default 50. */
  readonly batchSize?: number;
  /** Default: the longest expected completion in tokens, and 8 more. */
  readonly maxNewTokens?: number;
  readonly onProgress?: (done: number) => void;
}

/** Greedy completions of prompts, and whether each is the expected one letter for letter. */
export async function answerAll(
  decoder: Decoder,
  tokenizer: Tokenizer,
  pairs: readonly { readonly prompt: string; readonly completion: string }[],
  options: ExactMatchOptions = {},
): Promise<Answer[]> {
  const { template = defaultTemplate, batchSize = 50 } = options;
  const prompts = pairs.map(({ prompt }) => tokenizer.encode(applyTemplate(template, prompt)));
  const maxNewTokens =
    options.maxNewTokens ??
    8 + Math.max(...pairs.map(({ completion }) => tokenizer.encode(completion).length));
  const order = pairs.map((_, i) => i);
  order.sort((a, b) => prompts[a]!.length - prompts[b]!.length);
  const answers: Answer[] = new Array<Answer>(pairs.length);
  for (let start = 0; start < order.length; start += batchSize) {
    const chosen = order.slice(start, start + batchSize);
    const made = await decoder.generate(
      chosen.map((i) => prompts[i]!),
      {
        maxNewTokens,
        stopIds: tokenizer.eosId === undefined ? [] : [tokenizer.eosId],
      },
    );
    chosen.forEach((i, row) => {
      const { prompt, completion } = pairs[i]!;
      const answer = tokenizer.decode(made[row]!, { skipSpecial: true });
      const isExact = answer.trim() === completion.trim();
      answers[i] = { prompt, expected: completion, answer, isExact };
    });
    options.onProgress?.(start + chosen.length);
  }
  return answers;
}
