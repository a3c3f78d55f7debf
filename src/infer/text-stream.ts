/** Tokens to text as they come: whole characters only, and nothing that may belong to a stop string. */
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError } from "../errors.ts";

const maxStops = 64;
const maxStopLength = 4096;

/** @throws OptionError when there are too many stop strings, or one is empty or too long. */
export function checkStops(stops: readonly string[]): void {
  if (stops.length > maxStops) {
    throw new OptionError(`stop: at most ${maxStops} strings, got ${stops.length}.`);
  }
  for (const stop of stops) {
    if (stop.length >= 1 && stop.length <= maxStopLength) continue;
    throw new OptionError(
      `stop: a string must have 1 to ${maxStopLength} characters, got ${stop.length}.`,
    );
  }
}

/** A stop string in a text: the one that is complete first, the longest where several end together. */
export function findStop(
  text: string,
  stops: readonly string[],
): { readonly at: number; readonly stop: string } | undefined {
  let found: { at: number; stop: string } | undefined;
  for (const stop of stops) {
    const at = text.indexOf(stop);
    if (at < 0) continue;
    const [end, best] = [at + stop.length, found ? found.at + found.stop.length : Infinity];
    if (end < best || (end === best && at < found!.at)) found = { at, stop };
  }
  return found;
}

/** How many characters at the end of a text may be the beginning of a stop string. */
function openStop(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--) {
      if (text.endsWith(stop.slice(0, n))) most = n;
    }
  }
  return most;
}

export interface TextStreamOptions {
  /** Text from the first of these on is not given, nor the string itself. */
  readonly stop?: readonly string[];
  /** Tokens before the first: some tokenizers write a word differently at the start of a text. */
  readonly context?: ArrayLike<number>;
}

/**
 * The incremental detokenizer. The pieces that `push` and `end` give, joined, are the text of all tokens
 * up to the stop string, however tokens cut characters and stop strings.
 *
 * A token may end inside a character, which decodes to U+FFFD: such an end waits for more. Decoding
 * starts again a piece back and not at the beginning, so that a long text costs linear time; the piece
 * back is kept as some tokenizers treat the first token of a text differently.
 */
export class TextStream {
  readonly #tokenizer: Pick<Tokenizer, "decode">;
  readonly #stops: readonly string[];
  /** Tokens from the last but one border of whole characters on. */
  #tokens: number[];
  /** Where among them the last such border is. */
  #border: number;
  /** UTF-16 units of their text that are known to be final. */
  #taken: number;
  /** Final text that may belong to a stop string. */
  #held = "";
  #stop: string | undefined;
  #text = "";

  /** @throws OptionError for stop strings outside their range. */
  constructor(tokenizer: Pick<Tokenizer, "decode">, options: TextStreamOptions = {}) {
    checkStops(options.stop ?? []);
    this.#tokenizer = tokenizer;
    this.#stops = options.stop ?? [];
    this.#tokens = Array.from(options.context ?? []).slice(-8);
    this.#border = this.#tokens.length;
    this.#taken = this.#decode(this.#tokens).length;
  }

  /** The stop string that was found. */
  get stop(): string | undefined {
    return this.#stop;
  }

  /** All text given so far. */
  get text(): string {
    return this.#text;
  }

  /** Takes a token; gives the text that is now certain, often none. After a stop there is none. */
  push(token: number): string {
    if (this.#stop !== undefined) return "";
    this.#tokens.push(token);
    const whole = this.#decode(this.#tokens);
    const stable = whole.replace(/\ufffd+$/u, "");
    const fresh = stable.slice(this.#taken);
    this.#taken = Math.max(this.#taken, stable.length);
    if (stable.length === whole.length) {
      this.#tokens.splice(0, this.#border);
      this.#border = this.#tokens.length;
      this.#taken = this.#decode(this.#tokens).length;
    }
    return this.#give(fresh);
  }

  /** Gives what was held back: no more tokens come. */
  end(): string {
    if (this.#stop !== undefined) return "";
    const rest = this.#give(this.#decode(this.#tokens).slice(this.#taken));
    this.#tokens = [];
    this.#border = 0;
    this.#taken = 0;
    const held = this.#stop === undefined ? this.#held : "";
    this.#held = "";
    this.#text += held;
    return rest + held;
  }

  #give(fresh: string): string {
    const text = this.#held + fresh;
    const found = findStop(text, this.#stops);
    const open = found ? 0 : openStop(text, this.#stops);
    const given = text.slice(0, found ? found.at : text.length - open);
    this.#held = found ? "" : text.slice(text.length - open);
    this.#stop = found?.stop;
    this.#text += given;
    return given;
  }

  #decode(tokens: readonly number[]): string {
    return this.#tokenizer.decode(tokens, { skipSpecial: true });
  }
}
