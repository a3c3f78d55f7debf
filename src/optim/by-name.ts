/** Optimisers by the names that a command line or a configuration gives them. */
import { OptionError } from "../errors.ts";
import { type AdafactorOptions, adafactor } from "./adafactor.ts";
import { type AdamWOptions, adam, adamW } from "./adamw.ts";
import { type LionOptions, lion } from "./lion.ts";
import { type MuonOptions, muon } from "./muon.ts";
import type { Optimizer } from "./optimizer.ts";
import { suggest } from "./options.ts";
import { type SgdOptions, sgd } from "./sgd.ts";

export interface OptimizerOptions {
  readonly adam: AdamWOptions;
  readonly adamw: AdamWOptions;
  readonly sgd: SgdOptions;
  readonly lion: LionOptions;
  readonly adafactor: AdafactorOptions;
  readonly muon: MuonOptions;
}

export type OptimizerName = keyof OptimizerOptions;

const table: { readonly [N in OptimizerName]: (options: OptimizerOptions[N]) => Optimizer } = {
  adam,
  adamw: adamW,
  sgd,
  lion,
  adafactor,
  muon,
};

/** Names that `optimizerByName` takes. */
export const optimizerNames: readonly OptimizerName[] = Object.keys(table) as OptimizerName[];

/**
 * The optimiser of that name.
 * @throws OptionError for a name that is not in the list, or an option that the optimiser lacks.
 */
export function optimizerByName<N extends OptimizerName>(
  name: N,
  options?: OptimizerOptions[N],
): Optimizer;
export function optimizerByName(
  name: string,
  options?: Readonly<Record<string, unknown>>,
): Optimizer;
export function optimizerByName(name: string, options: object = {}): Optimizer {
  if (!Object.hasOwn(table, name)) {
    throw new OptionError(
      `unknown optimizer "${name}" — ${suggest(name, optimizerNames, "optimizers")}`,
    );
  }
  return table[name as OptimizerName](options);
}
