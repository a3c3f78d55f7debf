/** `plasticity runs`: what was trained, how it went, side by side. */
import type { Command, CommandContext } from "./command.ts";
import {
  isRun,
  lineChart,
  listCheckpoints,
  OptionError,
  type RunSummary,
  readRun,
} from "./library.ts";
import { showPercent, showTime, sparkline } from "./output.ts";

type Json = Readonly<Record<string, unknown>>;

interface Row {
  readonly folder: string;
  readonly created: string;
  readonly state: "finished" | "running" | "stopped";
  readonly model: string;
  readonly data: string;
  readonly method: string;
  readonly steps: number;
  readonly loss: number | null;
  readonly before: number | null;
  readonly after: number | null;
  readonly exactMatch: number | null;
  readonly seconds: number;
  readonly checkpoints: readonly number[];
}

function methodOf(options: Json): string {
  if (options["full"] === true) return "full";
  const bits = options["load-in-4bit"] ? ", 4 bit" : options["load-in-8bit"] ? ", 8 bit" : "";
  return `${String(options["adapter"])} r${String(options["rank"])}${bits}`;
}

/** Whether another process has the run now: its lock cannot be taken. */
async function isHeld({ host }: CommandContext, folder: string): Promise<boolean> {
  try {
    await (await host.files.lock(host.files.join(folder, "run.lock"))).release();
    return false;
  } catch {
    return true;
  }
}

async function rowOf(context: CommandContext, summary: RunSummary): Promise<Row> {
  const { record, result, metrics, folder } = summary;
  const steps = metrics.filter((line) => line["loss"] !== undefined);
  const judged = (result?.["after"] ?? {}) as Readonly<Record<string, number | null>>;
  const before = (result?.["before"] ?? {}) as Readonly<Record<string, number | null>>;
  const heldOut = metrics.findLast((line) => line["heldOutLoss"] !== undefined);
  return {
    folder,
    created: String(record["created"] ?? ""),
    state: result ? "finished" : (await isHeld(context, folder)) ? "running" : "stopped",
    model: String(record["model"] ?? ""),
    data: String(record["data"] ?? ""),
    method: methodOf((record["options"] ?? {}) as Json),
    steps: steps.at(-1)?.step ?? 0,
    loss: steps.at(-1)?.["loss"] ?? null,
    before: before["loss"] ?? null,
    after: judged["loss"] ?? heldOut?.["heldOutLoss"] ?? null,
    exactMatch: judged["exactMatch"] ?? null,
    seconds: steps.at(-1)?.["seconds"] ?? 0,
    checkpoints: (await listCheckpoints(context.host.files, folder)).map(({ step }) => step),
  };
}

/** Runs in a folder: itself, or those in it, two levels deep. */
async function findRuns(context: CommandContext, folder: string): Promise<string[]> {
  const { files } = context.host;
  if (await isRun(files, folder)) return [folder];
  const found: string[] = [];
  const look = async (inside: string, depth: number): Promise<void> => {
    for (const { path, isDirectory } of await files.list(inside)) {
      if (!isDirectory) continue;
      if (await isRun(files, path)) found.push(path);
      else if (depth > 0) await look(path, depth - 1);
    }
  };
  await look(folder, 1);
  return found;
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, positionals, options } = context;
  const places = positionals.length > 0 ? positionals : ["runs"];
  const folders: string[] = [];
  for (const place of places) {
    if (!(await host.files.info(place))?.isDirectory) {
      throw new OptionError(
        `runs: ${place} is no folder — name one that holds runs, or begin a run with "plasticity finetune".`,
      );
    }
    folders.push(...(await findRuns(context, place)));
  }
  const summaries: RunSummary[] = [];
  for (const folder of folders) {
    try {
      summaries.push(await readRun(host.files, folder));
    } catch (error) {
      output.warn(`${error instanceof Error ? error.message : String(error)} It is left out.`);
    }
  }
  const rows: Row[] = [];
  for (const summary of summaries) rows.push(await rowOf(context, summary));
  const number = (value: number | null): string => (value === null ? "" : value.toFixed(3));
  output.table(
    ["run", "state", "model", "data", "method", "steps", "loss", "held out", "exact", "time", ""],
    rows.map((row, i) => [
      row.folder,
      row.state,
      row.model,
      row.data,
      row.method,
      String(row.steps),
      number(row.loss),
      row.before === null ? number(row.after) : `${number(row.before)} → ${number(row.after)}`,
      row.exactMatch === null ? "" : showPercent(row.exactMatch),
      showTime(row.seconds),
      sparkline(
        summaries[i]!.metrics.flatMap((line) => line["loss"] ?? []),
        12,
      ),
    ]),
    ["left", "left", "left", "left", "left", "right", "right", "right", "right", "right", "left"],
  );
  if (rows.length === 0) output.line("No runs.");
  const chart = options["chart"] as string | undefined;
  if (chart !== undefined && summaries.length > 0) {
    const series = summaries.slice(0, 32).map(({ folder, metrics }) => ({
      name: folder,
      smooth: 0.9,
      points: metrics.flatMap((line): [number, number][] =>
        line["loss"] === undefined ? [] : [[line.step, line["loss"]]],
      ),
    }));
    const text = { title: "Training loss", xLabel: "step", yLabel: "loss per token" };
    await host.files.writeText(chart, lineChart({ ...text, series }));
    output.line(`Chart in ${chart}.`);
  }
  const stopped = rows.find(({ state }) => state === "stopped");
  if (stopped) {
    output.line(`Go on with a stopped one: plasticity finetune --resume ${stopped.folder}`);
  }
  output.json({ runs: rows });
}

export const runs: Command = {
  name: "runs",
  summary: "list runs, or compare some",
  usage: "plasticity runs [<folder> ...] [--chart <file.svg>]",
  example: "plasticity runs runs/2026-01-05 runs/2026-01-06 --chart losses.svg",
  maxPositionals: 64,
  options: {
    chart: { type: "string", value: "file", about: "write their losses as one SVG chart" },
  },
  run,
};
