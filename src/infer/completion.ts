/** What is asked of a decoder, and what it gives back. */
import type { TokenConstraint } from "./constraint.ts";
import type { Drafter, VerifiedPass } from "./drafter.ts";
import type { PromptMemory } from "./memory.ts";
import type { SampleOptions, TokenLogprob } from "./sample.ts";

export interface GenerateOptions extends SampleOptions {
  /** Tokens to make at most; default 64. */
  readonly maxNewTokens?: number;
  /** Ends a row; the token itself is not returned. */
  readonly stopIds?: readonly number[];
  /** The n-th token of row i is drawn by the n-th number of a stream of (seed, i); default 0. */
  readonly seed?: number;
  /**
   * What each prompt's continuation may be; the call changes them. Stop tokens come only where a constraint is
   * complete. A row that `maxNewTokens` ends is not complete: its reason is "length".
   */
  readonly constraints?: readonly (TokenConstraint | undefined)[];
  /** Called with each new token of a row. */
  readonly onToken?: (row: number, token: number) => void;
  /** Asked after `onToken`; true ends the row, whose token stays. */
  readonly isEnd?: (row: number, token: number) => boolean;
  /**
   * Return the log-probability of each token, and those of so many likeliest ones, in [0, 20]; by the
   * model itself, before penalties, temperature and filters. Default: none.
   */
  readonly logprobs?: number;
  /**
   * Keys and values of an earlier call: what a single prompt shares with it is not read again. A memory is
   * for calls with a drafter or for calls without one.
   */
  readonly memory?: PromptMemory;
  /** The bank's slot for each prompt; default 0, the base model, for all. */
  readonly slots?: readonly number[];
  /** Ends all rows after the token that is being computed. */
  readonly signal?: AbortSignal;
  /**
   * Proposes tokens, of which the model checks many in one pass. The tokens are those made without it, save
   * where two logits, or a draw and the border of a token's share, are within rounding of each other. Prompts
   * are then continued one after another.
   */
  readonly drafter?: Drafter;
  /** Called after each pass over a drafter's proposal. */
  readonly onPass?: (row: number, pass: VerifiedPass) => void;
}

/**
 * Why a row ended: a stop token or `isEnd`; `maxNewTokens` or the model's last position; the signal.
 */
export type FinishReason = "stop" | "length" | "aborted";

/** A log-probability and those of the likeliest tokens in its place. */
export type ChosenLogprob = TokenLogprob & { readonly top: readonly TokenLogprob[] };

/** A prompt's continuation. */
export interface Completion {
  /** Without the stopping token. */
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly finishReason: FinishReason;
  /** One for each token, when they were asked for. */
  readonly logprobs?: readonly ChosenLogprob[];
}
