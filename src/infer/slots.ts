/** Which adapter of a bank each row of a batch takes. */
import type { LoraBank } from "../adapters/bank.ts";
import { OptionError, StateError } from "../errors.ts";
import type { TensorRecord } from "../nn/module.ts";

/** The slots that the rows of one call take, and what was in them when it began. */
export class SlotsOfRows {
  readonly #bank: LoraBank;
  readonly #slots: readonly number[];
  readonly #contents: readonly object[];
  readonly #rows: readonly number[];

  /** Rows beyond the prompts take the last one's slot. */
  constructor(bank: LoraBank, slots: readonly number[], rows: number) {
    this.#bank = bank;
    this.#slots = slots;
    this.#contents = slots.map((slot) => bank.contentOf(slot));
    const last = slots.length - 1;
    this.#rows = Array.from({ length: rows }, (_, row) => slots[Math.min(row, last)]!);
  }

  /** @throws StateError when a slot changed since the call began: its cache is another adapter's. */
  inputs(): TensorRecord {
    this.#slots.forEach((slot, i) => {
      if (this.#bank.contentOf(slot) === this.#contents[i]) return;
      throw new StateError(
        `generate: slot ${slot} was filled or cleared while a call used it — wait for the call's end.`,
      );
    });
    return this.#bank.inputs(this.#rows);
  }
}

/**
 * The slot of each prompt; without a bank none.
 * @throws OptionError when there is no bank, or a slot is not in it, or their number is another one.
 */
export function readSlots(
  bank: LoraBank | undefined,
  slots: readonly number[] | undefined,
  prompts: number,
): readonly number[] | undefined {
  if (!bank) {
    if (slots) throw new OptionError("generate: slots need a decoder with a bank.");
    return undefined;
  }
  if (slots && slots.length !== prompts) {
    throw new OptionError(
      `generate: slots must have one number for each prompt, got ${slots.length} for ${prompts}.`,
    );
  }
  bank.check(slots ?? []);
  return slots ?? new Array<number>(prompts).fill(0);
}
