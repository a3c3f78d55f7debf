/** What narrows the tokens that may come next, as a grammar does. */
import { StateError } from "../errors.ts";

/**
 * One text's way through a grammar. It keeps its place itself: each text needs one of its own. It never allows a
 * token after which the text could not be finished.
 */
export interface TokenConstraint {
  /**
   * Tokens that may come next: a bit for each (bit t mod 32 of word ⌊t / 32⌋, tokens beyond are not allowed), or
   * their ids, or undefined for all. Stop tokens need not be among them: they are allowed where the text may
   * end. What is given is read at once and never changed.
   */
  allowed(): Uint32Array | readonly number[] | undefined;
  /**
   * Takes the token that was chosen; never a stop token.
   * @throws StateError when it is not allowed.
   */
  accept(token: number): void;
  /** Whether the text may end here. */
  isComplete(): boolean;
  /** Whether it must: nothing can follow. */
  readonly isFinished: boolean;
  /** Another one at the same place; neither moves the other. */
  clone?(): TokenConstraint;
}

/** Bits of ids. */
function bitsOf(ids: readonly number[], size: number): Uint32Array {
  const bits = new Uint32Array((size + 31) >>> 5);
  for (const id of ids) bits[id >>> 5]! |= 1 << (id & 31);
  return bits;
}

/**
 * Logits of what may come next; others are -∞. Stop tokens are allowed exactly where the text may end.
 * @param logits (V,); they stay as they are
 * @throws StateError where nothing may come next.
 */
export function constrain(
  logits: Float32Array,
  constraint: TokenConstraint,
  stop: ReadonlySet<number>,
): Float32Array {
  const size = logits.length;
  const allowed = constraint.allowed();
  let bits: Uint32Array | undefined;
  if (allowed) bits = allowed instanceof Uint32Array ? allowed : bitsOf(allowed, size);
  const open = bits ? new Float32Array(size).fill(-Infinity) : logits.slice();
  let any = bits ? 0 : 1;
  for (let word = 0; bits && word < bits.length && word << 5 < size; word++) {
    const own = bits[word]!;
    if (own === 0) continue;
    any |= own;
    const from = word << 5;
    const to = Math.min(size, from + 32);
    for (let id = from; id < to; id++) if (((own >>> (id & 31)) & 1) === 1) open[id] = logits[id]!;
  }
  const mayEnd = constraint.isComplete();
  for (const id of stop) {
    if (id < 0 || id >= size) continue;
    open[id] = mayEnd ? logits[id]! : -Infinity;
    if (mayEnd) any = 1;
  }
  if (any !== 0 && open.some((logit) => logit > -Infinity)) return open;
  throw new StateError(
    "constraint: no token may come next, and none ends the text — give stop tokens, or check the grammar against the tokenizer.",
  );
}
