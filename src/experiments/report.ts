/** What is written of a result: its chart, and the table of all committed results. */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { dotChart } from "../io/chart-dots.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import { readClaim } from "./claim.ts";
import type { ExperimentResult } from "./result.ts";
import { mean, standardError } from "./statistics.ts";
import type { Verdict } from "./verdict.ts";

export const verdictWords: Readonly<Record<Verdict, string>> = {
  holds: "holds",
  doesNotHold: "does not hold",
  undecided: "undecided",
};

/** An arm's value of each seed: the mean over its tasks. */
function seedValues(result: ExperimentResult, arm: string, metric: string): readonly number[] {
  return result.seeds.flatMap((seed) => {
    const values = result.cells
      .filter((cell) => cell.arm === arm && cell.seed === seed)
      .flatMap(({ metrics }) => metrics[metric] ?? []);
    return values.length === 0 ? [] : [mean(values)];
  });
}

/** The claim's metric for every arm: a point a seed, the mean, and one standard error. */
export function resultChart(result: ExperimentResult): string {
  const { arms, metric, title, verdict, budget, direction } = result;
  const rows = arms.flatMap(({ name }) => {
    const points = seedValues(result, name, metric);
    if (points.length === 0) return [];
    const spread = points.length > 1 ? { spread: standardError(points) } : {};
    return [{ name, points, ...spread }];
  });
  const note = budget === "quick" ? ", quick budget" : "";
  return dotChart({
    title: `${title}: the claim ${verdict === "undecided" ? "is undecided" : verdictWords[verdict]}${note}`,
    xLabel: `${metric}, ${direction} is better (points: seeds; whisker: one standard error)`,
    rows,
  });
}

/** Writes result.json and chart.svg; the result last, so that a folder that has it is whole. */
export async function writeResult(
  files: Files,
  folder: string,
  result: ExperimentResult,
): Promise<void> {
  await files.makeDirectory(folder);
  await files.writeText(files.join(folder, "chart.svg"), resultChart(result));
  await files.writeText(files.join(folder, "result.json"), `${JSON.stringify(result, null, 2)}\n`);
}

/** One row of the table. */
export interface CommittedResult {
  readonly id: string;
  readonly title: string;
  readonly claim: string;
  readonly claimSha256: string;
  readonly verdict: Verdict;
  readonly why: string;
  /** The first predicted comparison, in words: the mean difference and its standard error. */
  readonly effect: string;
  readonly seeds: number;
  readonly seconds: number;
  /** The first paragraph of notes.md. */
  readonly learnt?: string;
}

const resultLimit = 2 ** 26;

function effectOf(result: JsonObject): string {
  const all = result["comparisons"];
  const leafOf = (outcome: unknown): JsonObject | undefined => {
    if (!isJsonObject(outcome as never)) return undefined;
    const { numbers, parts } = outcome as JsonObject;
    if (isJsonObject(numbers) && typeof numbers["difference"] === "number") return numbers;
    return Array.isArray(parts)
      ? parts.map(leafOf).find((found) => found !== undefined)
      : undefined;
  };
  const predicted = Array.isArray(all)
    ? all.filter((one) => isJsonObject(one) && one["role"] === "predicted")
    : [];
  const found = predicted.map(leafOf).find((leaf) => leaf !== undefined);
  if (!found) return "–";
  const figures = (value: unknown): string => String(Number(Number(value).toPrecision(3)));
  const error = found["standardError"];
  return `${figures(found["difference"])}${error === undefined ? "" : ` ± ${figures(error)}`}`;
}

/**
 * A committed result, if the folder has one.
 * @throws FormatError where it is of a quick budget, or of another claim than the one beside it.
 */
export async function readCommitted(
  files: Files,
  folder: string,
): Promise<CommittedResult | undefined> {
  const path = files.join(folder, "result.json");
  if (!(await files.info(path))) return undefined;
  const json = parseJson(await files.readBytes(path, resultLimit), path);
  if (!isJsonObject(json)) throw new FormatError(`${path}: must be an object.`);
  const text = (name: string): string => {
    const value = json[name];
    if (typeof value === "string") return value;
    throw new FormatError(`${path}: "${name}" must be a text.`);
  };
  const verdict = text("verdict");
  if (!Object.hasOwn(verdictWords, verdict) || json["budget"] !== "full") {
    throw new FormatError(`${path}: must be the result of a full run with a verdict.`);
  }
  const { sha256 } = await readClaim(files, files.join(folder, "claim.json"));
  if (text("claimSha256") !== sha256) {
    throw new FormatError(
      `${path}: is the result of another claim than claim.json beside it — run the experiment again.`,
    );
  }
  const notes = files.join(folder, "notes.md");
  const learnt = (await files.info(notes))
    ? (await files.readText(notes, 2 ** 20))
        .split(/\n\s*\n/)
        .map((paragraph) => paragraph.trim().replace(/\s*\n\s*/g, " "))
        .find((paragraph) => paragraph !== "" && !paragraph.startsWith("#"))
    : undefined;
  return {
    id: text("id"),
    title: text("title"),
    claim: text("claim"),
    claimSha256: sha256,
    verdict: verdict as Verdict,
    why: text("why"),
    effect: effectOf(json),
    seeds: Array.isArray(json["seeds"]) ? json["seeds"].length : 0,
    seconds: Number(json["seconds"]),
    ...(learnt !== undefined && { learnt }),
  };
}

const cell = (text: string): string => text.replaceAll("|", "\\|").replace(/\s+/g, " ").trim();

/**
 * `reproduce/README.md`: all committed results, negatives included, by id.
 * @param reproduceFolder the folder that has one folder for each experiment
 */
export async function resultsTable(files: Files, reproduceFolder: string): Promise<string> {
  const rows: string[] = [];
  const open: string[] = [];
  for (const { path, isDirectory } of await files.list(reproduceFolder)) {
    if (!isDirectory || !(await files.info(files.join(path, "claim.json")))) continue;
    const found = await readCommitted(files, path);
    if (!found) {
      const { claim } = await readClaim(files, files.join(path, "claim.json"));
      open.push(`- \`${claim.id}\`: ${claim.claim}`);
      continue;
    }
    const { id, title, claim, verdict, effect, seeds, seconds, learnt } = found;
    const minutes = seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
    rows.push(
      `| [${cell(title)}](${id}/result.json) | ${cell(claim)} | **${verdictWords[verdict]}** | ${effect} | ${seeds} | ${minutes} | ${cell(learnt ?? "")} |`,
    );
  }
  return [
    "# Reproductions",
    "",
    "Published claims, put to the test at our scale. Each folder holds the claim with its rule, written before the",
    "first run, and the result with its chart. Verdicts follow from the rule alone; negatives stay.",
    "[Reading an experiment](../docs/reading-an-experiment.md) says what the files mean. This table is written by",
    "`plasticity reproduce --table`.",
    "",
    ...(rows.length === 0
      ? ["No result is committed yet."]
      : [
          "| system | claim | verdict | effect | seeds | time | learnt |",
          "|---|---|---|---|---|---|---|",
          ...rows,
          "",
          "Effect: the mean difference of the first predicted comparison, positive in the claim's favour, ± one",
          "standard error, in the units of its metric (a share where the comparison is relative).",
        ]),
    ...(open.length === 0 ? [] : ["", "Claims without a committed result:", "", ...open]),
    "",
  ].join("\n");
}
