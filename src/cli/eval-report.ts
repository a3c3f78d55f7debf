/** What `eval` says: the table for people, the numbers for machines. */
import type {
  Calibration,
  ChoiceReport,
  GenerationReport,
  LikelihoodReport,
  Measurement,
  ReliabilityBin,
} from "./library.ts";
import { type Output, showPercent } from "./output.ts";

/** Metrics by the names of `--metrics`. */
export const metricNames = [
  "perplexity",
  "bits-per-byte",
  "token-accuracy",
  "exact-match",
  "f1",
  "rouge",
  "accuracy",
  "calibration",
] as const;
export type MetricName = (typeof metricNames)[number];

/** What was measured; a part is absent where the data or the choice of metrics leaves it out. */
export interface Measures {
  readonly likelihood?: LikelihoodReport;
  readonly generation?: GenerationReport;
  readonly choices?: ChoiceReport;
}

interface Row {
  readonly label: string;
  /** Its name for machines. */
  readonly key: string;
  readonly estimate: Measurement;
  readonly show: (value: number) => string;
}

const plain =
  (digits: number) =>
  (value: number): string =>
    value.toFixed(digits);

function rowsOf({ likelihood, generation, choices }: Measures, wanted: ReadonlySet<string>): Row[] {
  const rows: (Row & { readonly metric: MetricName })[] = [];
  const add = (
    metric: MetricName,
    key: string,
    label: string,
    estimate: Measurement | undefined,
    show: Row["show"] = showPercent,
  ): void => {
    if (estimate) rows.push({ metric, key, label, estimate, show });
  };
  if (likelihood) {
    const { loss, perplexity, bitsPerByte, tokenAccuracy } = likelihood;
    add("perplexity", "loss", "loss per token", loss, plain(3));
    add("perplexity", "perplexity", "perplexity", perplexity, plain(2));
    add("bits-per-byte", "bitsPerByte", "bits per byte", bitsPerByte, plain(3));
    add("token-accuracy", "tokenAccuracy", "tokens right", tokenAccuracy);
  }
  if (generation) {
    add("exact-match", "exactMatch", "exact match", generation.exactMatch);
    add("exact-match", "normalizedMatch", "match, normalized", generation.normalizedMatch);
    add("f1", "f1", "F1 of words", generation.f1);
    for (const n of ["1", "2", "L", "Lsum"] as const) {
      add("rouge", `rouge${n}`, `ROUGE-${n}`, generation[`rouge${n}`]);
    }
  }
  if (choices) add("accuracy", "accuracy", "accuracy", choices.accuracy);
  return rows.filter(({ metric }) => wanted.has(metric));
}

/** Every metric as `{ value, low, high }`, and the calibration with its table. */
export function metricsJson(
  measures: Measures,
  wanted: ReadonlySet<string>,
): Record<string, unknown> {
  const numbers = rowsOf(measures, wanted).map(({ key, estimate: { value, interval } }) => [
    key,
    { value, low: interval.low, high: interval.high },
  ]);
  const calibration = calibrationOf(measures, wanted);
  return {
    ...Object.fromEntries(numbers),
    ...(measures.choices && wanted.has("accuracy") && { chance: measures.choices.chance }),
    ...(calibration && { calibration }),
  };
}

function calibrationOf(
  { likelihood, choices }: Measures,
  wanted: ReadonlySet<string>,
): Calibration | undefined {
  return wanted.has("calibration") ? (choices ?? likelihood)?.calibration : undefined;
}

const ticks = "▁▂▃▄▅▆▇█";

/** One tick a bin on a scale from 0 to 1; a dot where there is nothing. */
export function shareLine(
  bins: readonly ReliabilityBin[],
  of: (bin: ReliabilityBin) => number,
): string {
  return bins
    .map((bin) =>
      bin.count === 0
        ? "·"
        : ticks[Math.round(Math.min(1, Math.max(0, of(bin))) * (ticks.length - 1))],
    )
    .join("");
}

/** The table for people. */
export function showMeasures(
  output: Output,
  measures: Measures,
  wanted: ReadonlySet<string>,
): void {
  const { likelihood, choices } = measures;
  const rows = rowsOf(measures, wanted).map(({ label, estimate, show }) => [
    label,
    show(estimate.value),
    `${show(estimate.interval.low)} … ${show(estimate.interval.high)}`,
  ]);
  if (choices && wanted.has("accuracy")) rows.push(["by chance", showPercent(choices.chance), ""]);
  const calibration = calibrationOf(measures, wanted);
  if (calibration) {
    rows.push(
      ["calibration error", showPercent(calibration.expectedError), ""],
      ["  bins of equal mass", showPercent(calibration.expectedErrorOfMass), ""],
      ["Brier score", calibration.brier.toFixed(3), ""],
    );
  }
  output.table(["", "", "95 % interval"], rows, ["left", "right", "right"]);
  if (!calibration) return;
  const { table } = calibration;
  const what = choices ? "answers" : likelihood ? "tokens" : "";
  output.line();
  output.line(`Reliability  right ${shareLine(table, ({ accuracy }) => accuracy)}  of ${what},`);
  const sure = shareLine(table, ({ confidence }) => confidence);
  output.line(`              sure ${sure}  by steps of confidence from 0 to 1`);
  output.line();
  output.table(
    ["confidence", what, "sure", "right"],
    table
      .filter(({ count }) => count > 0)
      .map((bin) => [
        `${bin.low.toFixed(2)} … ${bin.high.toFixed(2)}`,
        String(bin.count),
        showPercent(bin.confidence),
        showPercent(bin.accuracy),
      ]),
    ["left", "right", "right", "right"],
  );
}
