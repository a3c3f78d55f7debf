/** Free text, and free text up to where something else begins. */
import { dead, type Lexeme } from "./dfa.ts";

/**
 * Text of any bytes in which a mark does not stand; what stands for it in a vocabulary may be a special token. The
 * search is that of Knuth, Morris and Pratt: a state is how much of the mark the text ends with.
 */
export class TextBefore implements Lexeme {
  readonly size: number;
  readonly bytes: number;
  readonly isFree = true;
  readonly #mark: readonly number[];
  readonly #fallback: readonly number[];
  readonly #includesMark: boolean;

  /**
   * @param mark as symbols of a vocabulary; not empty
   * @param includesMark whether the text ends with the mark, else it ends anywhere before
   */
  constructor(mark: readonly number[], includesMark: boolean) {
    this.#mark = mark;
    this.#includesMark = includesMark;
    this.size = mark.length + 1;
    this.bytes = 16 * this.size;
    const fallback = [0];
    for (let i = 1, length = 0; i < mark.length; i++) {
      while (length > 0 && mark[i] !== mark[length]) length = fallback[length - 1]!;
      if (mark[i] === mark[length]) length++;
      fallback.push(length);
    }
    this.#fallback = fallback;
  }

  step(state: number, symbol: number): number {
    const mark = this.#mark;
    if (state >= mark.length) return dead;
    let to = state;
    while (to > 0 && mark[to] !== symbol) to = this.#fallback[to - 1]!;
    if (mark[to] === symbol) to++;
    else if (symbol >= 256) return dead;
    if (to < mark.length) return to;
    return this.#includesMark ? to : dead;
  }

  accepts(state: number): boolean {
    return this.#includesMark ? state === this.#mark.length : true;
  }

  continues(state: number): boolean {
    return state < this.#mark.length;
  }
}

/** Text that begins, white space aside, with none of some bytes; also none. */
export class TextWithout implements Lexeme {
  readonly size = 2;
  readonly bytes = 64;
  readonly isFree = true;
  readonly #first: ReadonlySet<number>;

  constructor(first: Iterable<number>) {
    this.#first = new Set(first);
  }

  step(state: number, symbol: number): number {
    if (symbol >= 256) return dead;
    if (state === 1) return 1;
    if (this.#first.has(symbol)) return dead;
    const isSpace = symbol === 0x20 || (symbol >= 0x09 && symbol <= 0x0d);
    return isSpace ? 0 : 1;
  }

  accepts(): boolean {
    return true;
  }

  continues(): boolean {
    return true;
  }
}
