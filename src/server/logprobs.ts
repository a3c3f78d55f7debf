/** Log-probabilities as the two routes give them. */
import { type ChosenLogprob, type Tokenizer, type Vocabulary, vocabularyOf } from "../index.ts";
import type { LogprobsBody, TextLogprobsBody, TokenLogprobBody } from "./api-types.ts";

/** Texts and bytes of single tokens. */
export class TokenTexts {
  readonly #tokenizer: Tokenizer;
  readonly #vocabulary: Vocabulary | undefined;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    try {
      this.#vocabulary = vocabularyOf(tokenizer);
    } catch {
      // Tokens that are no pieces of text have no bytes of their own.
      this.#vocabulary = undefined;
    }
  }

  text(token: number): string {
    return this.#tokenizer.decode([token]);
  }

  bytes(token: number): readonly number[] | null {
    const symbols = this.#vocabulary?.symbolsOf(token);
    if (symbols?.every((symbol) => symbol < 256)) return [...symbols];
    return this.#vocabulary ? [...new TextEncoder().encode(this.text(token))] : null;
  }

  #one({ token, logprob }: { readonly token: number; readonly logprob: number }): TokenLogprobBody {
    return { token: this.text(token), logprob, bytes: this.bytes(token) };
  }

  chat(chosen: readonly ChosenLogprob[]): LogprobsBody {
    return {
      content: chosen.map((own) => ({
        ...this.#one(own),
        top_logprobs: own.top.map((other) => this.#one(other)),
      })),
      refusal: null,
    };
  }

  /** @param offset characters of the text before the first token */
  plain(chosen: readonly ChosenLogprob[], count: number, offset: number): TextLogprobsBody {
    const tokens = chosen.map(({ token }) => this.text(token));
    let at = offset;
    return {
      tokens,
      token_logprobs: chosen.map(({ logprob }) => logprob),
      top_logprobs:
        count === 0
          ? null
          : chosen.map(({ top }) =>
              Object.fromEntries(top.map(({ token, logprob }) => [this.text(token), logprob])),
            ),
      text_offset: tokens.map((token) => {
        const start = at;
        at += token.length;
        return start;
      }),
    };
  }
}
