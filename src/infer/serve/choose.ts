/** Choosing the tokens of one request: options, biases, a grammar, and random numbers of its own. */
import { OptionError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import type { ChosenLogprob } from "../completion.ts";
import { constrain, type TokenConstraint } from "../constraint.ts";
import { checkSampling, logprobsOf, type SampleOptions, TokenHistory } from "../sample.ts";
import type { Drawer } from "./draw.ts";

export interface ChooseOptions extends SampleOptions {
  /** Added to the logits of tokens, in [-100, 100], before everything else. */
  readonly logitBias?: ReadonlyMap<number, number>;
  /** What may come next; the request has it for itself. */
  readonly constraint?: TokenConstraint;
  /** The n-th token is drawn by the n-th number of this stream, whatever else runs; default 0. */
  readonly seed?: number;
  /** Ends the text; the token itself is not part of it. */
  readonly stopIds?: readonly number[];
  /** Log-probabilities of each token and of so many likeliest ones, in [0, 20]; default none. */
  readonly logprobs?: number;
}

/** A token and, if they were asked for, log-probabilities; or none, where the text ends. */
export interface Chosen {
  readonly token: number | undefined;
  readonly logprob?: ChosenLogprob;
}

const maxStopIds = 1024;

/** @throws OptionError naming the setting outside its range. */
export function checkChoice(options: ChooseOptions, vocabSize: number): void {
  checkSampling(options);
  const { logitBias, logprobs, seed = 0, stopIds = [] } = options;
  const isToken = (id: number): boolean => Number.isInteger(id) && id >= 0 && id < vocabSize;
  for (const [id, bias] of logitBias ?? []) {
    if (!isToken(id)) {
      throw new OptionError(`logitBias: ${id} is no token, they are 0 to ${vocabSize - 1}.`);
    }
    if (!(bias >= -100 && bias <= 100)) {
      throw new OptionError(`logitBias of token ${id} must be in [-100, 100], got ${bias}.`);
    }
  }
  if (logprobs !== undefined && !(Number.isInteger(logprobs) && logprobs >= 0 && logprobs <= 20)) {
    throw new OptionError(`logprobs must be a whole number from 0 to 20, got ${logprobs}.`);
  }
  if (!(Number.isSafeInteger(seed) && seed >= 0)) {
    throw new OptionError(`seed must be a whole number from 0 to 2^53 - 1, got ${seed}.`);
  }
  if (stopIds.length > maxStopIds) {
    throw new OptionError(`stopIds: at most ${maxStopIds} are taken, got ${stopIds.length}.`);
  }
}

export class TokenChooser {
  readonly #options: ChooseOptions;
  readonly #drawer: Drawer;
  readonly #rng: Rng;
  readonly #history: TokenHistory;
  readonly #stop: ReadonlySet<number>;

  constructor(options: ChooseOptions, prompt: Iterable<number>, drawer: Drawer) {
    this.#options = options;
    this.#drawer = drawer;
    this.#rng = new Rng(options.seed ?? 0).fold("sample", 0);
    this.#history = new TokenHistory(prompt);
    this.#stop = new Set(options.stopIds);
  }

  /**
   * The next token by the logits after the last one; they stay as they are.
   * @param logits (V,)
   * @throws StateError when they are no numbers, or the constraint leaves nothing to choose.
   */
  choose(logits: Float32Array): Chosen {
    const { logitBias, constraint, logprobs } = this.#options;
    if (constraint?.isFinished) return { token: undefined };
    let own = logits;
    if (logitBias && logitBias.size > 0) {
      own = logits.slice();
      for (const [id, bias] of logitBias) own[id]! += bias;
    }
    if (constraint) own = constrain(own, constraint, this.#stop);
    const token = this.#drawer.draw(own, this.#options, this.#rng, this.#history);
    if (this.#stop.has(token)) return { token: undefined };
    this.#history.add(token);
    constraint?.accept(token);
    if (logprobs === undefined) return { token };
    return { token, logprob: logprobsOf(logits, token, logprobs) };
  }

  /** Whether nothing may follow, by the constraint. */
  get isWhole(): boolean {
    return this.#options.constraint?.isFinished ?? false;
  }
}
