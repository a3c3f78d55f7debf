/** All that was asked for, one after another. */

import { PlasticityError } from "../../index.ts";
import { runAdapters } from "./adapters.ts";
import {
  type ContestOptions,
  type ContestResult,
  type Place,
  runContest,
  skipped,
} from "./contest.ts";
import { runMemory, runProducts, runStartup } from "./own.ts";
import { type Contest, contestsOf } from "./plan.ts";
import type { Result } from "./results.ts";

export interface RunOptions extends ContestOptions {
  readonly group?: string;
  /** In place of the plan's; for tests. */
  readonly contests?: readonly Contest[];
}

export interface RunResult {
  readonly results: readonly Result[];
  /** A limit does not hold, or a peer from npm is not installed or does not compute the same. */
  readonly isFailure: boolean;
  /** Libraries compared with, and their versions. */
  readonly peers: readonly string[];
}

export async function runAll(
  place: Place,
  programs: { readonly main: string; readonly library: string },
  options: RunOptions,
): Promise<RunResult> {
  const { group } = options;
  const results: Result[] = [];
  const peers = new Set<string>();
  let hasFailed = false;
  for (const contest of options.contests ?? contestsOf(group, options.withPeers)) {
    const outcome = await contestOrReason(contest, place, options);
    results.push(...outcome.results);
    hasFailed ||= outcome.isFailure;
    if (outcome.version) peers.add(outcome.version);
  }
  const isAsked = (name: string): boolean => !options.contests && (group ?? name) === name;
  // Minutes for each adapter: only when asked for.
  if (group === "adapters") results.push(...(await runAdapters(place, options)));
  if (isAsked("products")) results.push(await runProducts(place, options));
  if (isAsked("startup")) {
    results.push(...(await runStartup(programs.main, programs.library, options)));
  }
  if (isAsked("memory")) results.push(...(await runMemory(place, options)));
  const isFailure = hasFailed || results.some(({ holds }) => holds === false);
  return { results, isFailure, peers: [...peers] };
}

/** What a contest gives; where a side ends or they do not compute the same, the reason: the other ones go on. */
async function contestOrReason(
  contest: Contest,
  place: Place,
  options: RunOptions,
): Promise<ContestResult> {
  try {
    return await runContest(contest, place, options);
  } catch (error) {
    const isOfSides =
      error instanceof PlasticityError && ["state", "internal"].includes(error.code);
    if (options.signal?.aborted || !isOfSides) throw error;
    return { ...skipped(contest, error.message), isFailure: true };
  }
}
