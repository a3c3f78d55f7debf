/** `finetune --compare`: several methods on the same data and steps, and which did best. */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { type CommandContext, type OptionValues, suggestion } from "./command.ts";
import { finetuneOptions } from "./finetune-options.ts";
import { type Host, isRun, lineChart, OptionError, readRun, scatterChart } from "./library.ts";
import { showCount, showPercent } from "./output.ts";
import { defaultOut } from "./run-record.ts";

/** A method with settings of its own: the options that it adds to a command line. */
interface Arm {
  readonly name: string;
  readonly args: readonly string[];
}

/** What an arm's own run reports. */
interface ArmResult {
  readonly name: string;
  readonly folder: string;
  readonly steps: number;
  readonly loss: number;
  readonly exactMatch: number | null;
  readonly trainedParameters: number;
  readonly secondsPerStep: number;
  readonly peakMemoryBytes: number;
}

const methods: Readonly<Record<string, readonly string[]>> = {
  lora: ["--adapter", "lora"],
  full: ["--full"],
};

const ownOptions = Object.keys(finetuneOptions).filter(
  (name) =>
    ["Method", "Training"].includes(finetuneOptions[name]!.group ?? "") &&
    !["adapter", "full", "epochs", "steps", "batch-size", "seed"].includes(name),
);

/**
 * `lora`, or with options of its own `lora:rank=4:alpha=8`.
 * @throws OptionError for an unknown method or option.
 */
export function parseArms(text: string): Arm[] {
  const arms = text.split(",").map((part): Arm => {
    const [method, ...settings] = part.trim().split(":");
    const base = Object.hasOwn(methods, method!) ? methods[method!] : undefined;
    if (!base) {
      throw new OptionError(
        `finetune: --compare knows no method "${method}"${suggestion(method!, Object.keys(methods)) || ` — it knows ${Object.keys(methods).join(", ")}.`}`,
      );
    }
    const own = settings.flatMap((setting) => {
      const at = setting.indexOf("=");
      const name = at < 0 ? setting : setting.slice(0, at);
      if (!ownOptions.includes(name)) {
        throw new OptionError(
          `finetune: --compare ${part}: "${name}" is no option that methods may differ in${suggestion(name, ownOptions) || ` — they are ${ownOptions.join(", ")}.`}`,
        );
      }
      // Commas stand between methods, so lists have a plus.
      return at < 0 ? [`--${name}`] : [`--${name}`, setting.slice(at + 1).replaceAll("+", ",")];
    });
    return { name: part.trim(), args: [...base, ...own] };
  });
  const twice = arms.find(({ name }, i) => arms.findIndex((other) => other.name === name) !== i);
  if (twice) throw new OptionError(`finetune: --compare has "${twice.name}" twice.`);
  if (arms.length < 2) {
    throw new OptionError('finetune: --compare needs at least two methods, as "lora,full".');
  }
  return arms;
}

/** The options that all arms share, as they were given. */
function sharedArgs(options: OptionValues, given: ReadonlySet<string>): string[] {
  const apart = new Set(["compare", "out", "resume", "adapter", "full"]);
  return [...given]
    .filter((name) => !apart.has(name) && Object.hasOwn(finetuneOptions, name))
    .flatMap((name) => {
      const value = options[name];
      if (value === true) return [`--${name}`];
      const values = Array.isArray(value) ? value : [value];
      return values.flatMap((one) => [`--${name}`, String(one)]);
    });
}

/** Runs an arm in a process of its own, so that its memory is its own; it ends with this one. */
function runArm(
  args: readonly string[],
  signal: AbortSignal,
): Promise<Readonly<Record<string, unknown>> | undefined> {
  return new Promise((resolve, reject) => {
    const main = fileURLToPath(new URL("./main.js", import.meta.url));
    const child = spawn(process.execPath, [main, "finetune", ...args, "--json"], {
      stdio: ["ignore", "pipe", "inherit", "ipc"],
      // Ctrl-C comes here, and is passed on once.
      detached: true,
    });
    const stop = (): void => void child.send("stop");
    signal.addEventListener("abort", stop);
    let text = "";
    child.stdout!.setEncoding("utf8").on("data", (part: string) => {
      text += part;
    });
    child.on("error", reject);
    child.on("close", (code) => {
      signal.removeEventListener("abort", stop);
      if (code === 0) resolve(JSON.parse(text) as Record<string, unknown>);
      else if (code === 130 || signal.aborted) resolve(undefined);
      else reject(new OptionError(`finetune: --compare ended, as "${args.join(" ")}" failed.`));
    });
  });
}

export async function compare(context: CommandContext): Promise<void> {
  const { host, output, options, given, signal } = context;
  const arms = parseArms(options["compare"] as string);
  if (given.has("resume")) {
    throw new OptionError("finetune: --compare goes on by itself when --out names its folder.");
  }
  const out = (options["out"] as string | undefined) ?? defaultOut(host, "compare-");
  const shared = sharedArgs(options, given);
  const results: ArmResult[] = [];
  for (const [i, arm] of arms.entries()) {
    output.warn(output.style(`${i + 1} of ${arms.length}: ${arm.name}`, "bold"));
    const folder = host.files.join(out, arm.name.replace(/[^A-Za-z0-9.-]+/g, "-"));
    const report = await runArm([...shared, ...arm.args, "--resume", folder], signal);
    if (!report) break;
    const after = report["after"] as Readonly<Record<string, number | null>>;
    results.push({
      name: arm.name,
      folder,
      steps: report["steps"] as number,
      loss: after["loss"]!,
      exactMatch: after["exactMatch"] ?? null,
      trainedParameters: report["trainedParameters"] as number,
      secondsPerStep: (report["seconds"] as number) / (report["steps"] as number),
      peakMemoryBytes: report["peakMemoryBytes"] as number,
    });
  }
  if (results.length < arms.length) {
    output.line(`Stopped. Go on with the same command and --out ${out}`);
    process.exitCode = 130;
    return;
  }
  await writeCharts(host, out, results);
  const best = Math.min(...results.map(({ loss }) => loss));
  output.table(
    ["method", "held-out loss", "exact match", "trained", "ms a step", "peak memory"],
    results.map((result) => [
      `${result.name}${result.loss === best ? " *" : ""}`,
      result.loss.toFixed(3),
      result.exactMatch === null ? "" : showPercent(result.exactMatch),
      showCount(result.trainedParameters),
      (1000 * result.secondsPerStep).toFixed(0),
      `${(result.peakMemoryBytes / 2 ** 20).toFixed(0)} MB`,
    ]),
    ["left", "right", "right", "right", "right", "right"],
  );
  output.line(
    `* lowest loss. ${stepsOf(results)} of the same data; runs, compare.svg and cost.svg in ${out}.`,
  );
  await host.files.writeText(
    host.files.join(out, "compare.json"),
    `${JSON.stringify({ results }, null, 2)}\n`,
  );
  output.json({ out, results });
}

/** One number for all, unless evaluations ended some earlier. */
function stepsOf(results: readonly ArmResult[]): string {
  const counts = [...new Set(results.map(({ steps }) => steps))];
  if (counts.length === 1) return `Each had ${counts[0]} steps`;
  return `They had ${results.map(({ steps }) => steps).join(", ")} steps`;
}

async function writeCharts(host: Host, out: string, results: readonly ArmResult[]): Promise<void> {
  const { files } = host;
  const series = [];
  for (const { name, folder } of results) {
    if (!(await isRun(files, folder))) continue;
    const { metrics } = await readRun(files, folder);
    const points = metrics.flatMap((line): [number, number][] =>
      line["loss"] === undefined ? [] : [[line.step, line["loss"]]],
    );
    series.push({ name, points, smooth: 0.9 });
  }
  const curves = { title: "Training loss", xLabel: "step", yLabel: "loss per token", series };
  await files.writeText(files.join(out, "compare.svg"), lineChart(curves));
  const marks = results.map(({ name, loss, secondsPerStep }) => ({
    name,
    x: 1000 * secondsPerStep,
    y: loss,
  }));
  const cost = { title: "What it costs", xLabel: "ms a step", yLabel: "held-out loss", marks };
  await files.writeText(files.join(out, "cost.svg"), scatterChart(cost));
}
