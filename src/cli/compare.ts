/** `finetune --compare`: several methods on the same data and steps, and which did best. */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { type CommandContext, type OptionValues, suggestion } from "./command.ts";
import { finetuneOptions } from "./finetune-options.ts";
import {
  type AnyMethod,
  type Host,
  isRun,
  lineChart,
  methods,
  OptionError,
  readRun,
  scatterChart,
} from "./library.ts";
import { finetuneRoles, flagName, flagUsers } from "./method-flags.ts";
import { showCount, showPercent } from "./output.ts";
import { defaultOut } from "./run-record.ts";

/** Methods with settings of their own: the options that they add to a command line. */
interface Arm {
  readonly name: string;
  readonly args: readonly string[];
  readonly methods: readonly AnyMethod[];
  readonly isFull: boolean;
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

/** Where each role is named. */
const flagOf: Readonly<Record<string, string>> = {
  adapter: "adapter",
  initialiser: "init",
  objective: "objective",
  policy: "objective",
  dataPolicy: "curriculum",
};

const full = "full";

/** Methods that an arm may be made of, by every word for them. */
const known: ReadonlyMap<string, AnyMethod> = new Map(
  methods
    .filter(({ roles }) => finetuneRoles.some((role) => roles[role]))
    .flatMap((method) =>
      [method.id, ...(method.aliases ?? [])].map((word) => [word, method] as const),
    ),
);

/** Options of a training that arms may differ in. */
const ownOptions = Object.keys(finetuneOptions).filter(
  (name) =>
    (finetuneOptions[name]!.group === "Training" ||
      ["load-in-4bit", "load-in-8bit", "freeze"].includes(name)) &&
    !["epochs", "steps", "batch-size", "seed"].includes(name),
);

/** `lora:targets=q_proj+v_proj+eva:rho=2` at the pluses before a method: others join a list. */
function piecesOf(text: string): string[] {
  const pieces: string[] = [];
  for (const part of text.split("+")) {
    const isMethod = known.has(part.split(":")[0]!) || pieces.length === 0;
    if (isMethod) pieces.push(part);
    else pieces[pieces.length - 1] += `+${part}`;
  }
  return pieces;
}

/** A method with its settings: those that are its own stay with it, those of the training are flags. */
function argsOf(piece: string, arm: string): { args: string[]; method: AnyMethod | undefined } {
  const [word, ...settings] = piece.split(":");
  const method = known.get(word!);
  if (!method && word !== full) {
    const words = [...known.keys(), full];
    throw new OptionError(
      `finetune: --compare knows no method "${word}"${suggestion(word!, words) || ` — it knows ${words.join(", ")}.`}`,
    );
  }
  const ofMethod = Object.keys(method?.options ?? {});
  const own: string[] = [];
  const args: string[] = [];
  for (const setting of settings) {
    const at = setting.indexOf("=");
    const name = at < 0 ? setting : setting.slice(0, at);
    const option = ofMethod.find((one) => one === name || flagName(one) === name);
    if (option !== undefined) {
      own.push(at < 0 ? option : `${option}=${setting.slice(at + 1)}`);
    } else if (ownOptions.includes(name)) {
      args.push(`--${name}`, ...(at < 0 ? [] : [setting.slice(at + 1)]));
    } else {
      const words = [...ofMethod.map(flagName), ...ownOptions];
      throw new OptionError(
        `finetune: --compare ${arm}: "${name}" is no option that methods may differ in${suggestion(name, words) || ` — they are ${words.join(", ")}.`}`,
      );
    }
  }
  if (!method) return { args: [`--${full}`, ...args], method };
  const role = finetuneRoles.find((one) => method.roles[one])!;
  const text = own.length === 0 ? method.id : `${method.id}:${own.join(",")}`;
  return { args: [`--${flagOf[role]}`, text, ...args], method };
}

/**
 * `lora`, `full`, `lora+eva`, or with options of their own `lora:rank=4:alpha=8+eva:rho=2`; tables are left to
 * flags, as a colon stands between settings.
 * @throws OptionError for an unknown method or option.
 */
export function parseArms(text: string): Arm[] {
  const arms = text.split(",").map((part): Arm => {
    const name = part.trim();
    const pieces = piecesOf(name).map((piece) => argsOf(piece, name));
    const args = pieces.flatMap((piece) => piece.args);
    for (const flag of new Set(Object.values(flagOf))) {
      if (args.filter((arg) => arg === `--${flag}`).length < 2) continue;
      throw new OptionError(`finetune: --compare ${name} has two methods for --${flag}.`);
    }
    return {
      name,
      args,
      methods: pieces.flatMap(({ method }) => (method ? [method] : [])),
      isFull: args.includes(`--${full}`),
    };
  });
  const twice = arms.find(({ name }, i) => arms.findIndex((other) => other.name === name) !== i);
  if (twice) throw new OptionError(`finetune: --compare has "${twice.name}" twice.`);
  if (arms.length < 2) {
    throw new OptionError('finetune: --compare needs at least two methods, as "lora,full".');
  }
  return arms;
}

/** Methods that an arm trains with: its own, and those of the command line for roles it says nothing of. */
function methodsIn(arm: Arm, options: OptionValues): readonly AnyMethod[] {
  const said = new Set(arm.args.filter((arg) => arg.startsWith("--")));
  const shared = [...new Set(Object.values(flagOf))].flatMap((flag) => {
    const text = options[flag] as string | undefined;
    if (said.has(`--${flag}`) || text === undefined || (flag === "adapter" && arm.isFull))
      return [];
    const method = known.get(text.split(":")[0]!);
    return method ? [method] : [];
  });
  return [...arm.methods, ...shared];
}

/**
 * The options of the command line that an arm takes: those of methods go to the arms that have them.
 * @throws OptionError for an option that no arm has.
 */
function sharedArgs(
  arm: Arm,
  arms: readonly Arm[],
  options: OptionValues,
  given: ReadonlySet<string>,
): string[] {
  const apart = new Set(["compare", "out", "resume", "full", ...Object.values(flagOf)]);
  const isOf = (flag: string, one: Arm): boolean => {
    const users = flagUsers.get(flag);
    if (!users) return true;
    return methodsIn(one, options).some((method) => users.some((user) => user.method === method));
  };
  const shared = Object.values(flagOf).filter(
    (flag, i, all) =>
      all.indexOf(flag) === i &&
      given.has(flag) &&
      !arm.args.includes(`--${flag}`) &&
      !(arm.isFull && (flag === "adapter" || flag === "init")),
  );
  const own = [...given].filter((name) => {
    if (apart.has(name) || !Object.hasOwn(finetuneOptions, name)) return false;
    if (arms.some((one) => isOf(name, one))) return isOf(name, arm);
    const ids = flagUsers.get(name)!.map(({ method }) => method.id);
    throw new OptionError(
      `finetune: --${name} is no option of what --compare tries — it is of ${ids.join(", ")}.`,
    );
  });
  return [...own, ...shared].flatMap((name) => {
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
  const shared = arms.map((arm) => sharedArgs(arm, arms, options, given));
  const results: ArmResult[] = [];
  for (const [i, arm] of arms.entries()) {
    output.warn(output.style(`${i + 1} of ${arms.length}: ${arm.name}`, "bold"));
    const folder = host.files.join(out, arm.name.replace(/[^A-Za-z0-9.-]+/g, "-"));
    const report = await runArm([...shared[i]!, ...arm.args, "--resume", folder], signal);
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
