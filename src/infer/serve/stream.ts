/** One request on its way: what was asked, what is made, and who listens. */
import { OptionError } from "../../errors.ts";
import type { LanguageModelSizes } from "../../models/model.ts";
import type { ChosenLogprob, FinishReason } from "../completion.ts";
import type { SlotLease } from "./adapter-slots.ts";
import { type ChooseOptions, checkChoice, TokenChooser } from "./choose.ts";
import type { Drawer } from "./draw.ts";
import { type ServedToken, type ServeHandle, TokenFeed } from "./feed.ts";
import type { PagedSequence } from "./pages.ts";
import type { Waiting } from "./queue.ts";

export interface ServeRequest extends ChooseOptions {
  /** Token ids, at least one. */
  readonly prompt: ArrayLike<number>;
  /** Tokens to make at most; default 64. */
  readonly maxNewTokens?: number;
  /** Name of a loaded adapter; default: the base model. */
  readonly adapter?: string;
  /** Whose request it is: keys get equal shares; default "". */
  readonly key?: string;
  /** Among requests of one key higher ones go first; from -100 to 100, default 0. */
  readonly priority?: number;
  /** Asked after each token; true ends the text, and the token stays. */
  readonly isEnd?: (token: number) => boolean;
  /** Told of each token at once, before the iteration gives it. */
  readonly onToken?: (token: ServedToken) => void;
}

const maxKey = 256;

/** @throws OptionError naming what is outside its range. */
export function checkRequest(request: ServeRequest, sizes: LanguageModelSizes): void {
  const { prompt, maxNewTokens = 64, key = "", priority = 0 } = request;
  const { vocabSize, maxPositions } = sizes;
  if (prompt.length < 1 || prompt.length >= maxPositions) {
    throw new OptionError(
      `serve: the prompt has ${prompt.length} tokens, the model takes 1 to ${maxPositions - 1} and the one to come.`,
    );
  }
  for (let i = 0; i < prompt.length; i++) {
    const id = prompt[i]!;
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new OptionError(
      `serve: token ${i} of the prompt is ${id}, tokens are 0 to ${vocabSize - 1}.`,
    );
  }
  if (!Number.isSafeInteger(maxNewTokens) || maxNewTokens < 1) {
    throw new OptionError(`maxNewTokens must be a whole number from 1, got ${maxNewTokens}.`);
  }
  if (key.length > maxKey) {
    throw new OptionError(`serve: a key has at most ${maxKey} characters, got ${key.length}.`);
  }
  if (!(Number.isInteger(priority) && priority >= -100 && priority <= 100)) {
    throw new OptionError(`priority must be a whole number from -100 to 100, got ${priority}.`);
  }
  checkChoice(request, vocabSize);
}

/** Times of a request in seconds. */
interface Moments {
  readonly submitted: number;
  lastToken: number | undefined;
}

/** A request inside the engine. */
export class Stream implements Waiting {
  readonly key: string;
  readonly priority: number;
  readonly cost: number;
  readonly request: ServeRequest;
  readonly lease: SlotLease;
  /** Prompt and tokens made, with room for those to come. */
  readonly #tokens: Int32Array<ArrayBuffer>;
  readonly promptLength: number;
  /** Tokens of prompt and answer at most. */
  readonly limit: number;
  length: number;
  /** Its pages, while it runs. */
  cache: PagedSequence | undefined;
  /** The order in which requests got a place: later ones give way. */
  serial = -1;
  isCancelled = false;
  cachedTokens = 0;
  /** Furthest that it was computed: what lies before is computed again after a preemption. */
  reached = 0;
  readonly chooser: TokenChooser;
  readonly moments: Moments;
  readonly handle: ServeHandle;
  readonly #logprobs: ChosenLogprob[] = [];
  readonly #feed: TokenFeed = new TokenFeed();

  /** @param cancel what `handle.cancel` does */
  constructor(
    request: ServeRequest,
    lease: SlotLease,
    maxPositions: number,
    drawer: Drawer,
    now: number,
    cancel: (stream: Stream) => void,
  ) {
    const { prompt, maxNewTokens = 64, key = "", priority = 0 } = request;
    this.request = request;
    this.lease = lease;
    this.key = key;
    this.priority = priority;
    this.promptLength = prompt.length;
    this.limit = Math.min(maxPositions, prompt.length + maxNewTokens);
    this.cost = this.limit;
    this.#tokens = new Int32Array(this.limit);
    this.#tokens.set(prompt);
    this.length = prompt.length;
    this.chooser = new TokenChooser(request, this.tokens, drawer);
    this.moments = { submitted: now, lastToken: undefined };
    this.handle = this.#feed.handle(() => cancel(this));
  }

  get isDone(): boolean {
    return this.#feed.isDone;
  }

  /** Prompt and tokens made so far. */
  get tokens(): Int32Array<ArrayBuffer> {
    return this.#tokens.subarray(0, this.length);
  }

  /** Whether tokens of its prompt are still to be read. */
  get isReading(): boolean {
    return this.cache!.length < this.promptLength;
  }

  /** Takes a new token; whether it was the last one, and why. */
  push(token: number, logprob: ChosenLogprob | undefined): FinishReason | undefined {
    this.#tokens[this.length++] = token;
    if (logprob) this.#logprobs.push(logprob);
    const served: ServedToken = logprob ? { token, logprob } : { token };
    this.#feed.push(served);
    this.request.onToken?.(served);
    if (this.request.isEnd?.(token) || this.chooser.isWhole) return "stop";
    return this.length >= this.limit ? "length" : undefined;
  }

  finish(finishReason: FinishReason): void {
    this.#feed.finish({
      tokens: this.tokens.slice(this.promptLength),
      finishReason,
      ...(this.request.logprobs !== undefined && { logprobs: this.#logprobs }),
      usage: {
        promptTokens: this.promptLength,
        cachedTokens: this.cachedTokens,
        newTokens: this.length - this.promptLength,
      },
    });
  }

  fail(error: unknown): void {
    this.#feed.fail(error);
  }
}
