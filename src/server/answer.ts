/** An answer on its way: tokens of the engine to pieces of text, calls of tools and log-probabilities. */
import {
  type AnswerDelta,
  type ChosenLogprob,
  callIds,
  Rng,
  type ServeHandle,
  type ServeUsage,
  TextStream,
  type Tokenizer,
  type ToolFormat,
  ToolStream,
} from "../index.ts";
import { UnavailableError } from "./errors.ts";
import { newSeed } from "./ids.ts";

export interface AnswerOptions {
  readonly tokenizer: Tokenizer;
  /** Tokens of the prompt. */
  readonly context: Int32Array;
  readonly stop: readonly string[];
  /** Calls are looked for, written so. */
  readonly tools?: ToolFormat | undefined;
  readonly toolNames?: ReadonlySet<string>;
  /** White space before the first word is left out. */
  readonly isTrimmed: boolean;
}

/** What is certain after a token; deltas joined are the answer. */
export interface AnswerPiece {
  readonly deltas: readonly AnswerDelta[];
  /** Of the tokens whose text came with this piece. */
  readonly logprobs: readonly ChosenLogprob[];
}

export interface AnswerEnd {
  readonly finishReason: "stop" | "length";
  readonly calls: number;
  readonly usage: ServeUsage;
}

/** Special tokens that are marks of calls: text does not show them. */
function marksOf(tokenizer: Tokenizer, { open, close }: ToolFormat): ReadonlyMap<number, string> {
  const marks = new Map<number, string>();
  for (const { id, text } of tokenizer.specialTokens) {
    if (text === open || text === close) marks.set(id, text);
  }
  return marks;
}

/**
 * Reads an answer piece by piece. Who leaves the loop early cancels the request.
 * @throws what made the request fail; UnavailableError where it was ended by the server.
 */
export async function* readAnswer(
  handle: ServeHandle,
  { tokenizer, context, stop, tools, toolNames, isTrimmed }: AnswerOptions,
): AsyncGenerator<AnswerPiece, AnswerEnd, undefined> {
  const text = new TextStream(tokenizer, { stop, context });
  const calls = tools && new ToolStream(tools, callIds(tools, new Rng(newSeed())), toolNames);
  const marks = tools ? marksOf(tokenizer, tools) : new Map<number, string>();
  let isBlank = isTrimmed;
  let waiting: ChosenLogprob[] = [];
  const deltasOf = (given: string): readonly AnswerDelta[] => {
    const piece = isBlank ? given.trimStart() : given;
    if (piece === "") return [];
    isBlank = false;
    return calls ? calls.push(piece) : [{ kind: "text", text: piece }];
  };
  for await (const { token, logprob } of handle) {
    if (logprob) waiting.push(logprob);
    const given = text.push(token) + (marks.get(token) ?? "");
    if (given === "") continue;
    const deltas = deltasOf(given);
    if (deltas.length === 0 && waiting.length === 0) continue;
    yield { deltas, logprobs: waiting };
    waiting = [];
  }
  const { finishReason, usage } = await handle.result;
  if (finishReason === "aborted") {
    throw new UnavailableError("The request was ended before its answer was whole.");
  }
  const last = [...deltasOf(text.end()), ...(calls?.end() ?? [])];
  // Tokens of a stop string are no part of the answer.
  const logprobs = text.stop === undefined ? waiting : [];
  if (last.length > 0 || logprobs.length > 0) yield { deltas: last, logprobs };
  return {
    finishReason: text.stop === undefined ? finishReason : "stop",
    calls: calls?.calls ?? 0,
    usage,
  };
}
