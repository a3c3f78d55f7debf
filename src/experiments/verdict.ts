/**
 * The verdict of an experiment: by the rules of its claim file and the numbers of its cells, and nothing else.
 *
 *   headroom not all true        → undecided     the experiment could not have told
 *   some falsifier true          → doesNotHold
 *   all predicted true           → holds
 *   otherwise                    → undecided
 *
 * A rule is true, false, or unknown where there are too few pairs for its test; "not" of unknown is unknown.
 */
import { StateError } from "../errors.ts";
import { bootstrapRatio } from "../infer/metrics/bootstrap.ts";
import { Rng } from "../tensor/rng.ts";
import type { Claim, Comparison, Level, PairTest, Rule } from "./claim.ts";
import { mean, pairedT, standardDeviation, standardError } from "./statistics.ts";

export type Verdict = "holds" | "doesNotHold" | "undecided";

/** What of a cell a verdict reads. */
export interface VerdictCell {
  readonly arm: string;
  readonly seed: number;
  readonly task: string;
  readonly metrics: Readonly<Record<string, number>>;
}

export interface RuleOutcome {
  /** The rule in words. */
  readonly rule: string;
  /** null: unknown, too few pairs. */
  readonly passes: boolean | null;
  /** Of comparisons and levels: means, difference, spread, what the test found. */
  readonly numbers?: Readonly<Record<string, number>>;
  /** Of comparisons: the difference of each pair. */
  readonly differences?: readonly number[];
  /** Of rules made of others. */
  readonly parts?: readonly RuleOutcome[];
}

export interface Judgement {
  readonly verdict: Verdict;
  /** In a sentence, with numbers. */
  readonly why: string;
  readonly predicted: readonly RuleOutcome[];
  readonly falsifier: readonly RuleOutcome[];
  readonly headroom: readonly RuleOutcome[];
}

const show = (value: number): string => String(Number(value.toPrecision(4)));

function testWords(test: PairTest): string {
  switch (test.kind) {
    case "pairedT":
      return `, paired t p < ${test.p ?? 0.05}`;
    case "bootstrap":
      return `, bootstrap ${100 * (test.level ?? 0.95)} % interval above 0`;
    case "standardErrors":
      return `, by more than ${test.k} standard errors`;
    case "seeds":
      return `, in at least ${test.n} pairs`;
    case "none":
      return "";
  }
}

/** A rule in words. */
export function ruleWords(rule: Rule): string {
  if ("all" in rule) return `all of (${rule.all.map(ruleWords).join("; ")})`;
  if ("any" in rule) return `one of (${rule.any.map(ruleWords).join("; ")})`;
  if ("not" in rule) return `not (${ruleWords(rule.not)})`;
  const on = rule.tasks ? ` on ${rule.tasks.join(", ")}` : "";
  if ("arm" in rule) {
    const bounds = [
      ...(rule.atLeast === undefined ? [] : [`at least ${show(rule.atLeast)}`]),
      ...(rule.atMost === undefined ? [] : [`at most ${show(rule.atMost)}`]),
    ];
    return `${rule.metric} of ${rule.arm} ${bounds.join(" and ")}${on}`;
  }
  const other = rule.rightMetric === undefined ? "" : `${rule.rightMetric} of `;
  const size = rule.relative ? `${show(100 * rule.atLeast)} %` : show(rule.atLeast);
  return `${rule.metric} of ${rule.left} ${rule.direction} than ${other}${rule.right} by at least ${size}${testWords(rule.test)}${on}`;
}

function value(cell: VerdictCell, metric: string): number {
  const found = cell.metrics[metric];
  if (found !== undefined && Number.isFinite(found)) return found;
  throw new StateError(
    `verdict: ${cell.arm}, seed ${cell.seed}, task ${cell.task} has ${found === undefined ? "no" : `a ${found} as`} metric "${metric}" — the claim's rules need a finite number.`,
  );
}

function ofArm(
  cells: readonly VerdictCell[],
  arm: string,
  tasks: readonly string[] | undefined,
): readonly VerdictCell[] {
  return cells.filter((cell) => cell.arm === arm && (!tasks || tasks.includes(cell.task)));
}

/** Values by what makes a pair. */
function byPair(
  cells: readonly VerdictCell[],
  metric: string,
  pairs: Comparison["pairs"],
): ReadonlyMap<string, number> {
  const lists = new Map<string, number[]>();
  for (const cell of cells) {
    const key = pairs === "seed" ? String(cell.seed) : JSON.stringify([cell.seed, cell.task]);
    const list = lists.get(key);
    if (list) list.push(value(cell, metric));
    else lists.set(key, [value(cell, metric)]);
  }
  return new Map([...lists].map(([key, values]) => [key, mean(values)]));
}

function runTest(
  test: PairTest,
  differences: readonly number[],
): { readonly passes: boolean | null; readonly numbers: Record<string, number> } {
  switch (test.kind) {
    case "pairedT": {
      if (differences.length < 2) return { passes: null, numbers: {} };
      const { t, p, degreesOfFreedom } = pairedT(differences);
      // JSON has no infinity; differences without spread have no t.
      const numbers = { ...(Number.isFinite(t) && { t }), degreesOfFreedom, p };
      return { passes: p < (test.p ?? 0.05), numbers };
    }
    case "bootstrap": {
      if (differences.length < 2) return { passes: null, numbers: {} };
      const ones = new Float64Array(differences.length).fill(1);
      const { low, high } = bootstrapRatio(differences, ones, new Rng(0).fold("verdict"), {
        level: test.level ?? 0.95,
        resamples: 10_000,
      });
      return { passes: low > 0, numbers: { low, high } };
    }
    case "standardErrors":
      if (differences.length < 2) return { passes: null, numbers: {} };
      return { passes: mean(differences) > test.k * standardError(differences), numbers: {} };
    case "seeds": {
      const wins = differences.filter((difference) => difference > 0).length;
      if (differences.length < test.n) return { passes: null, numbers: { wins } };
      return { passes: wins >= test.n, numbers: { wins } };
    }
    case "none":
      return { passes: true, numbers: {} };
  }
}

function compare(rule: Comparison, cells: readonly VerdictCell[]): RuleOutcome {
  const left = byPair(ofArm(cells, rule.left, rule.tasks), rule.metric, rule.pairs);
  const right = byPair(
    ofArm(cells, rule.right, rule.tasks),
    rule.rightMetric ?? rule.metric,
    rule.pairs,
  );
  const shared = [...left.keys()].filter((key) => right.has(key));
  const words = ruleWords(rule);
  if (shared.length === 0) return { rule: words, passes: null };
  const sign = rule.direction === "higher" ? 1 : -1;
  // A share of nothing has no size: the rule is then unknown.
  if (rule.relative && shared.some((key) => right.get(key) === 0)) {
    return { rule: words, passes: null };
  }
  const differences = shared.map((key) => {
    const [a, b] = [left.get(key)!, right.get(key)!];
    return (sign * (a - b)) / (rule.relative ? Math.abs(b) : 1);
  });
  const difference = mean(differences);
  const { passes, numbers } = runTest(rule.test, differences);
  const several = differences.length > 1;
  return {
    rule: words,
    passes: passes === null ? null : passes && difference >= rule.atLeast,
    numbers: {
      left: mean(shared.map((key) => left.get(key)!)),
      right: mean(shared.map((key) => right.get(key)!)),
      difference,
      ...(several && {
        sd: standardDeviation(differences),
        standardError: standardError(differences),
      }),
      n: differences.length,
      ...numbers,
    },
    differences,
  };
}

function level(rule: Level, cells: readonly VerdictCell[]): RuleOutcome {
  const values = ofArm(cells, rule.arm, rule.tasks).map((cell) => value(cell, rule.metric));
  if (values.length === 0) return { rule: ruleWords(rule), passes: null };
  const centre = mean(values);
  return {
    rule: ruleWords(rule),
    passes: centre >= (rule.atLeast ?? -Infinity) && centre <= (rule.atMost ?? Infinity),
    numbers: { mean: centre, n: values.length },
  };
}

/** One false makes "all" false, whatever is unknown. */
function allOf(parts: readonly RuleOutcome[]): boolean | null {
  if (parts.some(({ passes }) => passes === false)) return false;
  return parts.some(({ passes }) => passes === null) ? null : true;
}

function anyOf(parts: readonly RuleOutcome[]): boolean | null {
  if (parts.some(({ passes }) => passes === true)) return true;
  return parts.some(({ passes }) => passes === null) ? null : false;
}

/**
 * One rule on the verdict cells.
 * @throws StateError when a cell lacks a metric that the rule reads, or it is not finite.
 */
export function judgeRule(rule: Rule, cells: readonly VerdictCell[]): RuleOutcome {
  if ("all" in rule || "any" in rule) {
    const isAll = "all" in rule;
    const parts = (isAll ? rule.all : rule.any).map((part) => judgeRule(part, cells));
    return { rule: ruleWords(rule), passes: isAll ? allOf(parts) : anyOf(parts), parts };
  }
  if ("not" in rule) {
    const part = judgeRule(rule.not, cells);
    const passes = part.passes === null ? null : !part.passes;
    return { rule: ruleWords(rule), passes, parts: [part] };
  }
  return "arm" in rule ? level(rule, cells) : compare(rule, cells);
}

function foundWords({ numbers, parts = [] }: RuleOutcome): readonly string[] {
  if (!numbers) return parts.flatMap(foundWords);
  const { mean: centre, difference, standardError: error, n, p, low, high, wins } = numbers;
  const found = [
    ...(centre === undefined ? [] : [`mean ${show(centre)}`]),
    ...(difference === undefined
      ? []
      : [`found ${show(difference)}${error === undefined ? "" : ` ± ${show(error)}`}`]),
    ...(p === undefined ? [] : [`p = ${show(p)}`]),
    ...(low === undefined ? [] : [`interval ${show(low)} to ${show(high!)}`]),
    ...(wins === undefined ? [`n = ${n}`] : [`${wins} of ${n} pairs`]),
  ];
  return [found.join(", ")];
}

/** A rule's outcome in words: what it says, and what was found. */
export function outcomeWords(outcome: RuleOutcome): string {
  const found = foundWords(outcome);
  return found.length === 0 ? outcome.rule : `${outcome.rule} (${found.join("; ")})`;
}

/**
 * The verdict of a claim on verdict cells.
 * @throws StateError when a cell lacks a metric that a rule reads, or it is not finite.
 */
export function judge(claim: Claim, cells: readonly VerdictCell[]): Judgement {
  const [predicted, falsifier, headroom] = [claim.predicted, claim.falsifier, claim.headroom].map(
    ({ rules }) => rules.map((rule) => judgeRule(rule, cells)),
  ) as [RuleOutcome[], RuleOutcome[], RuleOutcome[]];
  const outcomes = { predicted, falsifier, headroom };
  const without = headroom.find(({ passes }) => passes !== true);
  if (without) {
    return {
      verdict: "undecided",
      why: `No headroom: ${without.passes === null ? "too few cells for" : "it failed that"} ${outcomeWords(without)}.`,
      ...outcomes,
    };
  }
  const against = falsifier.find(({ passes }) => passes === true);
  if (against) {
    return { verdict: "doesNotHold", why: `Falsified: ${outcomeWords(against)}.`, ...outcomes };
  }
  const failed = predicted.find(({ passes }) => passes !== true);
  if (!failed) {
    const found = predicted.map(outcomeWords).join("; ");
    return { verdict: "holds", why: `As predicted: ${found}.`, ...outcomes };
  }
  return {
    verdict: "undecided",
    why: `Neither predicted nor falsified: ${failed.passes === null ? "too few pairs for" : "it failed that"} ${outcomeWords(failed)}.`,
    ...outcomes,
  };
}
