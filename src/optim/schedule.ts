/**
 * Learning-rate schedules: from the updates made so far, counted from 0, to a factor on the learning
 * rate. Names and numbers as in transformers (`get_scheduler`), so that the first step of a linear
 * warm-up has factor 0.
 *
 *   t = (step − warm-up) / (total − warm-up)       how far a decay has come
 */
import { OptionError } from "../errors.ts";
import { check, positive, share, suggest, wholeFromOne, wholeFromZero } from "./options.ts";

/** Factor on the learning rate of the update that follows `step` others. */
export type Schedule = (step: number) => number;

export interface WarmupOptions {
  /** Steps in which the factor rises from 0 to 1 along a line; default 0. */
  readonly warmupSteps?: number;
}

export interface DecayOptions extends WarmupOptions {
  /** Steps of the whole run, warm-up included. */
  readonly totalSteps: number;
}

export interface CosineOptions extends DecayOptions {
  /** Waves of the cosine; default 0.5, from 1 down to 0. */
  readonly cycles?: number;
  /** Factor at the lowest point, in [0, 1); default 0. */
  readonly minFactor?: number;
}

export interface RestartOptions extends DecayOptions {
  /** Times that the cosine falls from 1 to 0; default 1. */
  readonly cycles?: number;
}

export interface PolynomialOptions extends DecayOptions {
  /** Exponent of what remains; default 1, a line. */
  readonly power?: number;
  /** Factor at the end and after it, in [0, 1); default 0 (transformers: a rate of 1e-7). */
  readonly minFactor?: number;
}

export interface InverseSqrtOptions extends WarmupOptions {
  /** Steps after which the factor is 1/√2, less the warm-up; default the warm-up, or 10000 without. */
  readonly timescale?: number;
}

/** The shape of a rise or fall. */
export type Curve = "linear" | "cosine" | "1-sqrt";

export interface StableOptions extends DecayOptions {
  /** Steps of the fall at the end. */
  readonly decaySteps: number;
  /** Default "linear". */
  readonly warmupCurve?: Curve;
  /** Default "cosine"; Hägele et al. 2024, arXiv:2405.18392, find "1-sqrt" best. */
  readonly decayCurve?: Curve;
  /** Factor at the start and the end, in [0, 1); default 0. */
  readonly minFactor?: number;
}

/** A rise along a line, then what follows the warm-up, at steps counted from its end. */
function afterWarmup(where: string, warmupSteps: number, then: Schedule): Schedule {
  check(where, wholeFromZero, { warmupSteps });
  return (step) => (step < warmupSteps ? step / warmupSteps : then(step - warmupSteps));
}

/** Warm-up, then a curve of t in 0 … 1 and beyond. */
function decay(
  where: string,
  { warmupSteps = 0, totalSteps }: DecayOptions,
  curve: (t: number) => number,
): Schedule {
  check(where, wholeFromOne, { totalSteps });
  if (warmupSteps > totalSteps) {
    throw new OptionError(
      `${where}: warmupSteps must be at most totalSteps, got ${warmupSteps} of ${totalSteps}.`,
    );
  }
  const steps = Math.max(1, totalSteps - warmupSteps);
  return afterWarmup(where, warmupSteps, (step) => Math.max(0, curve(step / steps)));
}

const between = (low: number, factor: number): number => low + (1 - low) * factor;

export function constant(): Schedule {
  return () => 1;
}

export function constantWithWarmup({ warmupSteps = 0 }: WarmupOptions = {}): Schedule {
  return afterWarmup("constant_with_warmup", warmupSteps, () => 1);
}

/** Down to 0 along a line. */
export function linearDecay(options: DecayOptions): Schedule {
  return decay("linear", options, (t) => 1 - t);
}

/** Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983: ½(1 + cos 2π·cycles·t). */
export function cosineDecay(options: CosineOptions): Schedule {
  const { cycles = 0.5, minFactor = 0 } = options;
  check("cosine", positive, { cycles });
  check("cosine", share, { minFactor });
  return decay("cosine", options, (t) =>
    between(minFactor, 0.5 * (1 + Math.cos(2 * Math.PI * cycles * t))),
  );
}

/** The cosine's fall, repeated. */
export function cosineWithRestarts(options: RestartOptions): Schedule {
  const { cycles = 1 } = options;
  check("cosine_with_restarts", wholeFromOne, { cycles });
  return decay("cosine_with_restarts", options, (t) =>
    t >= 1 ? 0 : 0.5 * (1 + Math.cos(Math.PI * ((cycles * t) % 1))),
  );
}

/** (1 − t)^power, down to the least factor. */
export function polynomialDecay(options: PolynomialOptions): Schedule {
  const { power = 1, minFactor = 0 } = options;
  check("polynomial", positive, { power });
  check("polynomial", share, { minFactor });
  return decay("polynomial", options, (t) => between(minFactor, Math.max(0, 1 - t) ** power));
}

/** √(timescale / (timescale + steps after the warm-up)). */
export function inverseSqrt({ warmupSteps = 0, timescale }: InverseSqrtOptions = {}): Schedule {
  const scale = timescale ?? (warmupSteps || 10_000);
  check("inverse_sqrt", positive, { timescale: scale });
  return afterWarmup("inverse_sqrt", warmupSteps, (step) => 1 / Math.sqrt(1 + step / scale));
}

const rise: Readonly<Record<Curve, (t: number) => number>> = {
  linear: (t) => t,
  cosine: (t) => 0.5 * (1 - Math.cos(Math.PI * t)),
  "1-sqrt": (t) => 1 - Math.sqrt(1 - t),
};

const fall: Readonly<Record<Curve, (t: number) => number>> = {
  linear: (t) => 1 - t,
  cosine: (t) => 0.5 * (1 + Math.cos(Math.PI * t)),
  "1-sqrt": (t) => 1 - Math.sqrt(t),
};

/** Hu et al., "MiniCPM", 2024, arXiv:2404.06395: a rise, a plateau, a fall at the end. */
export function warmupStableDecay(options: StableOptions): Schedule {
  const where = "warmup_stable_decay";
  const { warmupSteps = 0, totalSteps, decaySteps, minFactor = 0 } = options;
  const { warmupCurve = "linear", decayCurve = "cosine" } = options;
  check(where, wholeFromZero, { warmupSteps, decaySteps });
  check(where, wholeFromOne, { totalSteps });
  check(where, share, { minFactor });
  for (const [name, curve] of Object.entries({ warmupCurve, decayCurve })) {
    if (Object.hasOwn(rise, curve)) continue;
    throw new OptionError(
      `${where}: ${name} must be one of ${Object.keys(rise).join(", ")}, got "${curve}".`,
    );
  }
  const stable = totalSteps - warmupSteps - decaySteps;
  if (stable < 0) {
    throw new OptionError(
      `${where}: warmupSteps and decaySteps must fit into totalSteps, got ${warmupSteps} and ${decaySteps} of ${totalSteps}.`,
    );
  }
  return (step) => {
    if (step < warmupSteps) return between(minFactor, rise[warmupCurve](step / warmupSteps));
    const past = step - warmupSteps - stable;
    if (past < 0) return 1;
    return past < decaySteps ? between(minFactor, fall[decayCurve](past / decaySteps)) : minFactor;
  };
}

/** All options of all schedules; each takes `totalSteps` and `warmupSteps`, and its own. */
export type ScheduleOptions = Partial<
  CosineOptions & RestartOptions & PolynomialOptions & InverseSqrtOptions & StableOptions
>;

interface Row {
  readonly make: (options: never) => Schedule;
  /** Options besides `totalSteps` and `warmupSteps`. */
  readonly own: readonly (keyof ScheduleOptions)[];
}

const table: Readonly<Record<string, Row>> = {
  constant: { make: constant, own: [] },
  constant_with_warmup: { make: constantWithWarmup, own: [] },
  linear: { make: linearDecay, own: [] },
  cosine: { make: cosineDecay, own: ["cycles", "minFactor"] },
  cosine_with_min_lr: { make: cosineDecay, own: ["cycles", "minFactor"] },
  cosine_with_restarts: { make: cosineWithRestarts, own: ["cycles"] },
  polynomial: { make: polynomialDecay, own: ["power", "minFactor"] },
  inverse_sqrt: { make: inverseSqrt, own: ["timescale"] },
  warmup_stable_decay: {
    make: warmupStableDecay,
    own: ["decaySteps", "warmupCurve", "decayCurve", "minFactor"],
  },
};

/** Names that `scheduleByName` takes. */
export const scheduleNames: readonly string[] = Object.keys(table);

/**
 * The schedule of that name.
 * @throws OptionError for a name that is not in the list, or an option that the schedule lacks.
 */
export function scheduleByName(name: string, options: ScheduleOptions = {}): Schedule {
  if (!Object.hasOwn(table, name)) {
    throw new OptionError(
      `unknown schedule "${name}" — ${suggest(name, scheduleNames, "schedules")}`,
    );
  }
  const { make, own } = table[name]!;
  const taken: readonly string[] = ["totalSteps", "warmupSteps", ...own];
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [option] of given) {
    if (taken.includes(option)) continue;
    throw new OptionError(
      `${name}: unknown option "${option}" — ${suggest(option, taken, "its options")}`,
    );
  }
  if (name === "constant" && options.warmupSteps) {
    throw new OptionError(
      `constant: has no warm-up, got ${options.warmupSteps} steps — use constant_with_warmup.`,
    );
  }
  return make(Object.fromEntries(given) as never);
}
