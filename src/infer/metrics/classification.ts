/** How well classes are told: accuracy, F1, Matthews' coefficient, and the table behind them. */
import { OptionError } from "../../errors.ts";

export interface ClassScore {
  readonly precision: number;
  readonly recall: number;
  readonly f1: number;
  /** Examples that are of the class. */
  readonly support: number;
}

export interface ClassificationScores {
  readonly accuracy: number;
  /** Mean of the classes' F1 over all that occur, in answers or in truth. */
  readonly macroF1: number;
  /** Over all answers together: with one class each it is the accuracy. */
  readonly microF1: number;
  /** The classes' F1 by how often they are right. */
  readonly weightedF1: number;
  /** Matthews' correlation coefficient, for any number of classes (Gorodkin 2004). */
  readonly matthews: number;
  readonly classes: readonly ClassScore[];
  /** Counts by truth (rows) and answer (columns). */
  readonly confusion: readonly (readonly number[])[];
}

/** Classes of a table of counts: a square of 2^24 cells. */
const maxClasses = 4096;

function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}

function scoreOf(hits: number, made: number, wanted: number): ClassScore {
  const [precision, recall] = [ratio(hits, made), ratio(hits, wanted)];
  return { precision, recall, f1: ratio(2 * hits, made + wanted), support: wanted };
}

/**
 * Counts by truth and answer, and what follows from them.
 * @param count of classes, 1 to 4096
 * @throws OptionError for lists of different lengths, none at all, or a class outside the range.
 */
export function classificationScores(
  truth: ArrayLike<number>,
  answers: ArrayLike<number>,
  count: number,
): ClassificationScores {
  if (!(Number.isInteger(count) && count >= 1 && count <= maxClasses)) {
    throw new OptionError(`scores: classes must be 1 to ${maxClasses}, got ${count}.`);
  }
  if (truth.length !== answers.length || truth.length === 0) {
    throw new OptionError(
      `scores: needs as many answers as truths and at least one, got ${answers.length} and ${truth.length}.`,
    );
  }
  const confusion = Array.from({ length: count }, () => new Array<number>(count).fill(0));
  for (let i = 0; i < truth.length; i++) {
    const [t, a] = [truth[i]!, answers[i]!];
    if (!(confusion[t] && confusion[a])) {
      throw new OptionError(`scores: class ${confusion[t] ? a : t} is not one of ${count}.`);
    }
    confusion[t][a]!++;
  }
  const wanted = confusion.map((row) => row.reduce((x, y) => x + y, 0));
  const made = wanted.map((_, j) => confusion.reduce((total, row) => total + row[j]!, 0));
  const hits = confusion.map((row, i) => row[i]!);
  const classes = wanted.map((n, i) => scoreOf(hits[i]!, made[i]!, n));
  const seen = classes.filter((_, i) => wanted[i]! + made[i]! > 0);
  const all = truth.length;
  const right = hits.reduce((x, y) => x + y, 0);
  const cross = (x: readonly number[], y: readonly number[]): number =>
    x.reduce((total, value, i) => total + value * y[i]!, 0);
  const spread = Math.sqrt((all ** 2 - cross(made, made)) * (all ** 2 - cross(wanted, wanted)));
  return {
    accuracy: right / all,
    macroF1: seen.reduce((total, { f1 }) => total + f1, 0) / seen.length,
    microF1: right / all,
    weightedF1: classes.reduce((total, { f1, support }) => total + f1 * support, 0) / all,
    matthews: ratio(right * all - cross(made, wanted), spread),
    classes,
    confusion,
  };
}

export interface MultiLabelScores {
  /** Share of texts of which every label is right. */
  readonly exact: number;
  readonly macroF1: number;
  readonly microF1: number;
  readonly classes: readonly ClassScore[];
}

/**
 * Several labels at once: one list of 0 and 1 for each text.
 * @throws OptionError for lists of different lengths, or none.
 */
export function multiLabelScores(
  truth: readonly ArrayLike<number>[],
  answers: readonly ArrayLike<number>[],
): MultiLabelScores {
  const count = truth[0]?.length ?? 0;
  const fits = [...truth, ...answers].every(({ length }) => length === count);
  if (truth.length !== answers.length || count === 0 || !fits) {
    throw new OptionError(
      `scores: needs lists of one length for as many answers (${answers.length}) as truths (${truth.length}).`,
    );
  }
  const sums = Array.from({ length: count }, () => ({ hits: 0, made: 0, wanted: 0 }));
  let exact = 0;
  truth.forEach((row, i) => {
    const answer = answers[i]!;
    let isRight = true;
    sums.forEach((sum, j) => {
      if (row[j]) sum.wanted++;
      if (answer[j]) sum.made++;
      if (row[j] && answer[j]) sum.hits++;
      if (Boolean(row[j]) !== Boolean(answer[j])) isRight = false;
    });
    if (isRight) exact++;
  });
  const classes = sums.map(({ hits, made, wanted }) => scoreOf(hits, made, wanted));
  const total = (key: "hits" | "made" | "wanted"): number => sums.reduce((n, s) => n + s[key], 0);
  return {
    exact: exact / truth.length,
    macroF1: classes.reduce((n, { f1 }) => n + f1, 0) / count,
    microF1: scoreOf(total("hits"), total("made"), total("wanted")).f1,
    classes,
  };
}
