/** Text in, text out: prompts are encoded, answers decoded as they come, stop strings end them. */
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError } from "../errors.ts";
import type { Completion, Decoder, FinishReason, GenerateOptions } from "./decoder.ts";
import { TextStream } from "./text-stream.ts";

/**
 * A prompt as text, in which nothing becomes a special token and before which stands what the tokenizer
 * puts there; or as token ids, which are taken as they are.
 */
export type Prompt = string | Int32Array;

export interface TextOptions extends Omit<GenerateOptions, "isEnd"> {
  /** Strings that end a text; they are not part of it. */
  readonly stop?: readonly string[];
  /** Default: the tokenizer's end-of-text token. */
  readonly stopIds?: readonly number[];
  /** Called with each new piece of a row's text: whole characters, never part of a stop string. */
  readonly onText?: (text: string, row: number) => void;
}

export interface GeneratedText {
  readonly text: string;
  readonly finishReason: FinishReason;
  /** The stop string that ended it. */
  readonly stop?: string;
  /** All tokens that were made, those of a stop string included; a stop token is not. */
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly promptTokens: number;
  readonly logprobs?: NonNullable<Completion["logprobs"]>;
}

/**
 * Continues prompts together.
 * @throws OptionError when a prompt is empty or too long, or a setting is outside its range.
 */
export async function generateTexts(
  decoder: Decoder,
  tokenizer: Tokenizer,
  prompts: readonly Prompt[],
  options: TextOptions = {},
): Promise<GeneratedText[]> {
  const { stop = [], onText, onToken, ...rest } = options;
  const ids = prompts.map((prompt) =>
    typeof prompt === "string"
      ? Int32Array.from([...tokenizer.beginning, ...tokenizer.encode(prompt)])
      : prompt,
  );
  const streams = ids.map((context) => new TextStream(tokenizer, { stop, context }));
  const give = (row: number, text: string): void => {
    if (text !== "") onText?.(text, row);
  };
  const made = await decoder.complete(ids, {
    stopIds: tokenizer.eosId === undefined ? [] : [tokenizer.eosId],
    ...rest,
    onToken: (row, token) => {
      onToken?.(row, token);
      give(row, streams[row]!.push(token));
    },
    isEnd: (row) => streams[row]!.stop !== undefined,
  });
  return made.map(({ tokens, finishReason, logprobs }, row) => {
    const stream = streams[row]!;
    give(row, stream.end());
    const isStopped = stream.stop !== undefined;
    return {
      text: stream.text,
      finishReason: isStopped ? "stop" : finishReason,
      ...(isStopped && { stop: stream.stop! }),
      tokens,
      promptTokens: ids[row]!.length,
      ...(logprobs && { logprobs }),
    };
  });
}

/** Continues one prompt; see `generateTexts`. */
export async function generateText(
  decoder: Decoder,
  tokenizer: Tokenizer,
  prompt: Prompt,
  options: TextOptions = {},
): Promise<GeneratedText> {
  const [made] = await generateTexts(decoder, tokenizer, [prompt], options);
  return made!;
}

/**
 * The pieces of one continuation as they come, and the whole at the end as the return value. Leaving the
 * loop early ends the generation. Pieces wait until they are taken; the decoder does not wait.
 * @throws OptionError as `generateTexts`, at the first piece.
 */
export async function* streamText(
  decoder: Decoder,
  tokenizer: Tokenizer,
  prompt: Prompt,
  options: TextOptions = {},
): AsyncGenerator<string, GeneratedText, undefined> {
  if (options.onText) throw new OptionError("streamText: onText has no use here — use the loop.");
  const left = new AbortController();
  const waiting: string[] = [];
  let wake: (() => void) | undefined;
  let isDone = false;
  const notify = (): void => {
    wake?.();
    wake = undefined;
  };
  const whole = generateText(decoder, tokenizer, prompt, {
    ...options,
    signal: options.signal ? AbortSignal.any([options.signal, left.signal]) : left.signal,
    onText: (text) => {
      waiting.push(text);
      notify();
    },
  }).finally(() => {
    isDone = true;
    notify();
  });
  // Reported where it is awaited below; without this a loop left early could not.
  whole.catch(() => {});
  try {
    while (true) {
      for (let text = waiting.shift(); text !== undefined; text = waiting.shift()) yield text;
      if (isDone) return await whole;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  } finally {
    left.abort();
    await whole.catch(() => {});
  }
}
