/**
 * Speculative decoding: a drafter proposes a tree of continuations, the model reads it in one pass, and at
 * each node the token is chosen as plain decoding chooses it there. Where a child carries that token, the walk
 * goes on; where none does, the pass ends. A pass gives between one token and one more than the tree is deep.
 *
 * Leviathan et al. 2023, arXiv:2211.17192; trees as in Miao et al. 2024, arXiv:2305.09781. Differs: nothing is
 * accepted by a ratio of probabilities. The n-th token is drawn by the n-th number of the row's stream from the
 * model's own distribution, with or without a draft, so that not only the distribution but the tokens are
 * those of plain decoding. A pass sums in another order than a step, so this holds save where the choice is
 * within rounding of another one: `PassCount.close` counts such places.
 */
import type { Rng } from "../tensor/rng.ts";
import type { ChosenLogprob, Completion, FinishReason, GenerateOptions } from "./completion.ts";
import { constrain } from "./constraint.ts";
import type { Drafter, DraftTree, VerifiedPass } from "./drafter.ts";
import { decide, logprobsOf, TokenHistory } from "./sample.ts";
import { emptyDraft, fitDraft, maxDraftNodes } from "./tree-pass.ts";

/** A choice with a smaller margin may be another one in another order of summation: see `Decision`. */
export const closeMargin = 1e-4;

/** Reads trees of tokens after a text: what the loop needs of a decoder. */
export interface TreeReader {
  readonly vocabSize: number;
  /** Tokens of a text at most. */
  readonly maxPositions: number;
  /** How deep a tree may be after a text of so many tokens. */
  deepest(length: number): number;
  /** Logits after the text's last token, then after each node of the draft: (1 + nodes, V). */
  read(text: readonly number[], draft: DraftTree): Promise<Float32Array>;
  /** Of the last pass keeps what these added, 0 the text's last token and 1 + i node i; forgets the rest. */
  keep(places: readonly number[]): void;
}

/** Sums over passes. */
export class PassCount {
  passes = 0;
  /** Tokens that texts gained. */
  tokens = 0;
  /** Nodes that were read. */
  drafted = 0;
  accepted = 0;
  /** Choices that rounding could have made otherwise. */
  close = 0;

  add({ draft, accepted, tokens, margins }: VerifiedPass): void {
    this.passes++;
    this.tokens += tokens.length;
    this.drafted += draft.tokens.length;
    this.accepted += accepted.length;
    this.close += margins.filter((margin) => margin < closeMargin).length;
  }

  /** NaN before the first pass. */
  get tokensPerPass(): number {
    return this.tokens / this.passes;
  }
}

/** The child of a node (-1: of the text's last token) that carries a token, or -1. */
function childOf({ tokens, parents }: DraftTree, node: number, token: number): number {
  for (let i = node + 1; i < tokens.length; i++) {
    if (parents[i] === node && tokens[i] === token) return i;
  }
  return -1;
}

/**
 * Continues one prompt; see `Decoder.complete`, whose options these are.
 * @param rng the row's stream
 * @param made receives the tokens as they come, so that the caller has them if a callback throws
 */
export async function speculate(
  reader: TreeReader,
  prompt: Int32Array,
  drafter: Drafter,
  row: number,
  rng: Rng,
  made: number[],
  options: GenerateOptions,
): Promise<Completion> {
  const { maxNewTokens = 64, logprobs, signal } = options;
  const { vocabSize, maxPositions } = reader;
  const stop = new Set(options.stopIds);
  const constraint = options.constraints?.[row];
  const history = new TokenHistory(prompt);
  const text = Array.from(prompt);
  const chosen: ChosenLogprob[] = [];
  let reason: FinishReason | undefined;
  drafter.begin(prompt);
  while (reason === undefined && !signal?.aborted) {
    const left = Math.min(maxNewTokens - made.length, maxPositions - text.length);
    const deepest = Math.min(left - 1, reader.deepest(text.length));
    const draft =
      deepest < 1
        ? emptyDraft
        : fitDraft(drafter.propose(maxDraftNodes), vocabSize, deepest, maxDraftNodes);
    const logits = await reader.read(text, draft);
    if (signal?.aborted) break;
    const accepted: number[] = [];
    const before = made.length;
    const margins: number[] = [];
    for (let node = -1; ; ) {
      const own = logits.subarray((node + 1) * vocabSize, (node + 2) * vocabSize);
      const open = constraint ? constrain(own, constraint, stop) : own;
      const { token, margin } = decide(open, options, rng, history);
      margins.push(margin);
      if (stop.has(token)) {
        reason = "stop";
        break;
      }
      constraint?.accept(token);
      made.push(token);
      text.push(token);
      history.add(token);
      if (logprobs !== undefined) chosen.push(logprobsOf(own, token, logprobs));
      options.onToken?.(row, token);
      if (options.isEnd?.(row, token) || constraint?.isFinished) reason = "stop";
      else if (made.length >= maxNewTokens || text.length >= maxPositions) reason = "length";
      if (reason !== undefined || signal?.aborted) break;
      node = childOf(draft, node, token);
      if (node < 0) break;
      accepted.push(node);
    }
    reader.keep([0, ...accepted.map((node) => node + 1)]);
    const tokens = Int32Array.from(made.slice(before));
    const pass = { draft, logits, accepted, tokens, margins };
    drafter.learn(pass);
    options.onPass?.(row, pass);
  }
  return {
    tokens: Int32Array.from(made),
    finishReason: reason ?? "aborted",
    ...(logprobs !== undefined && { logprobs: chosen }),
  };
}
