/** `eval --against`: the answers of the model that this one replaces, beside its own. */
import {
  type Answer,
  type ChoiceCompatibility,
  type ChoiceReport,
  choiceCompatibility,
  type Measurement,
  OptionError,
  rouge,
  type TextCompatibility,
  textCompatibility,
} from "./library.ts";
import { type Output, showPercent } from "./output.ts";

/** A folder, or a folder and an adapter's: `model+adapter`. */
export function modelAndAdapter(text: string): { model: string; adapter: string | undefined } {
  const at = text.indexOf("+");
  const [model, adapter] = at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
  if (model !== "" && adapter !== "") return { model, adapter };
  throw new OptionError(`eval: --against must be <model> or <model>+<adapter>, got "${text}".`);
}

/** How the new answers stand to the old ones. */
export interface Compatibility {
  readonly choices?: ChoiceCompatibility;
  readonly exact?: ChoiceCompatibility;
  readonly rouge1?: TextCompatibility;
}

export function compatibilityOf(
  old: { readonly choices: ChoiceReport | undefined; readonly answers: readonly Answer[] },
  next: { readonly choices: ChoiceReport | undefined; readonly answers: readonly Answer[] },
  right: readonly number[],
  seed: number,
): Compatibility {
  if (old.choices && next.choices) {
    const chosen = (report: ChoiceReport): number[] => report.results.map((item) => item.chosen);
    return {
      choices: choiceCompatibility(chosen(old.choices), chosen(next.choices), right, { seed }),
    };
  }
  const expected = next.answers.map((item) => item.expected.trim());
  const [before, after] = [old, next].map(({ answers }) => answers.map((a) => a.answer.trim()));
  return {
    exact: choiceCompatibility(before!, after!, expected, { seed }),
    rouge1: textCompatibility(before!, after!, expected, (a, b) => rouge(a, b).rouge1.f1, { seed }),
  };
}

const names: readonly (readonly [keyof ChoiceCompatibility & keyof TextCompatibility, string])[] = [
  ["old", "old model"],
  ["new", "this model"],
  ["negativeFlips", "became wrong (negative flips)"],
  ["positiveFlips", "became right (positive flips)"],
];

export function showCompatibility(output: Output, against: string, found: Compatibility): void {
  output.line();
  output.line(`Against ${against}, which it replaces:`);
  const rows: string[][] = [];
  const row = (what: string, label: string, { value, interval }: Measurement): void => {
    const { low, high } = interval;
    rows.push([what, label, showPercent(value), `${showPercent(low)} … ${showPercent(high)}`]);
  };
  for (const [what, report] of [
    ["choices", found.choices],
    ["exact match", found.exact],
  ] as const) {
    if (!report) continue;
    for (const [key, label] of names) row(what, label, report[key] as Measurement);
    row(what, "wrong in another way", report.inconsistentMistakes);
  }
  if (found.rouge1) {
    for (const [key, label] of names) {
      const better = label.replace("wrong", "worse").replace("right", "better");
      row("ROUGE-1", better, found.rouge1[key] as Measurement);
    }
    rows.push([
      "ROUGE-1",
      "mean gain, mean loss",
      found.rouge1.gain.toFixed(3),
      found.rouge1.regression.toFixed(3),
    ]);
  }
  output.table(["measure", "", "value", "95 % interval"], rows, ["left", "left", "right", "right"]);
}

/** Numbers for machines: `{ value, low, high }` where there is an interval. */
export function compatibilityJson(found: Compatibility): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(found).map(([what, report]) => [
      what,
      Object.fromEntries(
        Object.entries(report as object).map(([key, value]) => {
          if (typeof value === "number") return [key, value];
          const { value: mean, interval } = value as Measurement;
          return [key, { value: mean, low: interval.low, high: interval.high }];
        }),
      ),
    ]),
  );
}
