/**
 * Runs an experiment: tuning cells, then verdict cells, one at a time; each is written when it is done, so that
 * a run that was killed goes on where it stood and ends with the same numbers.
 *
 * To write an experiment:
 *
 * 1. `reproduce/<id>/claim.json`, before anything runs (`claim.ts` says what is in it). Later changes of the
 *    file make all cells void, and a run that is under way refuses to go on.
 * 2. `src/experiments/<id>.ts` exports `experiment` (`experiment.ts`). `plan(budget)` says arms with their
 *    costs, tasks and tuning; `open` loads data (`data/`) and bases (`bases/`); `run` does one cell and returns
 *    metrics; everything random comes from the cell's seed.
 * 3. `vision.ts` trains and judges models of pictures held as numbers; `language.ts` makes examples from token
 *    sequences, measures held-out loss and answers choices; `context.remember` keeps what cells share.
 * 4. Under the quick budget data loaders give made-up data of the same form, so that no code asks for it.
 * 5. `reproduce/<id>/notes.md`: its first paragraph is what was learnt, for the table in `reproduce/README.md`.
 */
import { OptionError, StateError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Packages } from "../host/packages.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import { readClaim } from "./claim.ts";
import type { AnyExperiment, Budget } from "./experiment.ts";
import { checkPlan } from "./plan.ts";
import type { ExperimentResult } from "./result.ts";
import { type ReproduceOptions, Run } from "./run.ts";

export { readClaim } from "./claim.ts";
export { checkPlan, type Work } from "./plan.ts";
export type { Progress, ReproduceOptions } from "./run.ts";

const idPattern = /^[a-z0-9-]{1,64}$/;
const claimLimit = 2 ** 20;

/** Ids that have a claim and a file; in order. */
export async function listExperiments(
  files: Files,
  experimentsFolder: string,
  reproduceFolder: string,
): Promise<readonly string[]> {
  const code = new Set<string>();
  for (const { path, isDirectory } of await files.list(experimentsFolder)) {
    const name = /([^/\\]+)\.[jt]s$/.exec(path)?.[1];
    if (name !== undefined && !isDirectory && idPattern.test(name)) code.add(name);
  }
  const found: string[] = [];
  if (!(await files.info(reproduceFolder))) return found;
  for (const { path, isDirectory } of await files.list(reproduceFolder)) {
    const name = /([^/\\]+)$/.exec(path)?.[1] ?? "";
    if (!isDirectory || !code.has(name)) continue;
    if (await files.info(files.join(path, "claim.json"))) found.push(name);
  }
  return found;
}

/**
 * The experiment of an id, by its file's name.
 * @param known as `listExperiments` says
 * @throws OptionError for an id that is not known.
 */
export async function loadExperiment(id: string, known: readonly string[]): Promise<AnyExperiment> {
  if (!idPattern.test(id)) {
    throw new OptionError(
      `reproduce: an experiment's id has lower-case letters, digits and "-", got ${JSON.stringify(id)}.`,
    );
  }
  if (!known.includes(id)) {
    throw new OptionError(
      `reproduce: unknown experiment "${id}" — there ${known.length === 0 ? "are none" : `are ${known.join(", ")}`}.`,
    );
  }
  const path = `./${id}.ts`;
  const module = (await import(/* @vite-ignore */ path)) as { experiment?: AnyExperiment };
  if (module.experiment?.id === id) return module.experiment;
  throw new OptionError(
    `reproduce: src/experiments/${id}.ts must export experiment with id "${id}".`,
  );
}

/** The folder of an experiment's cells and log. */
export function experimentFolder(files: Files, packages: Packages, id: string): string {
  return files.join(packages.cacheFolder, "experiments", id);
}

/**
 * Runs what is not done yet and returns the result; `undefined` when the signal ended it.
 * @throws FormatError for a claim that is wrong, OptionError for a plan that does not fit it.
 * @throws StateError when the claim has changed since an unfinished run began, another process runs the
 * experiment, or a verdict cell's training fails.
 */
export async function reproduce(options: ReproduceOptions): Promise<ExperimentResult | undefined> {
  const { experiment, claimFile, budget, host, packages } = options;
  const { files } = host;
  const { claim, sha256 } = await readClaim(files, claimFile);
  const work = checkPlan(experiment, claim, budget, claimFile);
  options.onPlan?.(work.plan, claim, work.allCells);
  const folder = experimentFolder(files, packages, experiment.id);
  await files.makeDirectory(folder);
  const lock = await files.lock(files.join(folder, "lock"));
  const log = (event: string, more: object = {}): Promise<void> =>
    files.append(
      files.join(folder, "runs.jsonl"),
      `${JSON.stringify({
        at: new Date(host.clock.now()).toISOString(),
        event,
        budget,
        version: experiment.version,
        claimSha256: sha256,
        ...options.provenance,
        ...more,
      })}\n`,
    );
  try {
    await begin(options, folder, sha256);
    await log("begin");
    try {
      const result = await new Run(options, claim, sha256, work, folder).result();
      if (!result) {
        await log("stopped");
        return undefined;
      }
      await files.remove(statePath(files, folder, budget));
      await log("end", { verdict: result.verdict, why: result.why, result });
      return result;
    } catch (error) {
      await log("failed", { message: error instanceof Error ? error.message : String(error) });
      throw error;
    }
  } finally {
    await lock.release();
  }
}

function statePath(files: Files, folder: string, budget: Budget): string {
  return files.join(folder, `run-${budget}.json`);
}

/** Refuses to go on with a run whose claim was another when it began, or notes that one begins. */
async function begin(options: ReproduceOptions, folder: string, sha256: string): Promise<void> {
  const { host, budget, isFresh, claimFile } = options;
  const { files } = host;
  const path = statePath(files, folder, budget);
  if (isFresh) {
    for (const part of ["cells", "kept"]) await files.remove(files.join(folder, part, budget));
    await files.remove(path);
  }
  for (const part of ["cells", "kept"]) {
    await files.makeDirectory(files.join(folder, part, budget));
  }
  if (!(await files.info(path))) {
    await files.writeText(path, `${JSON.stringify({ claimSha256: sha256 })}\n`);
    return;
  }
  const json = parseJson(await files.readBytes(path, claimLimit), path);
  const before = isJsonObject(json) ? json["claimSha256"] : undefined;
  if (before === sha256) return;
  throw new StateError(
    `reproduce: ${claimFile} has changed since this run began (SHA-256 ${String(before).slice(0, 12)}…, now ${sha256.slice(0, 12)}…) — put it back to go on, or begin anew with --fresh.`,
  );
}
