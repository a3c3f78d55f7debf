/** All that was asked for, one after another. */
import { type ContestOptions, type Place, runContest } from "./contest.ts";
import { runMemory, runProducts, runStartup } from "./own.ts";
import { type Contest, contestsOf } from "./plan.ts";
import type { Result } from "./results.ts";

export interface RunOptions extends ContestOptions {
  readonly group?: string;
  /** In place of the plan's; for tests. */
  readonly contests?: readonly Contest[];
  readonly onResult?: (result: Result) => void;
}

export interface RunResult {
  readonly results: readonly Result[];
  /** A limit does not hold, or a peer from npm is not installed. */
  readonly isFailure: boolean;
}

export async function runAll(
  place: Place,
  programs: { readonly main: string; readonly library: string },
  options: RunOptions,
): Promise<RunResult> {
  const { group, onResult } = options;
  const results: Result[] = [];
  let lacksPeer = false;
  const take = (more: readonly Result[]): void => {
    results.push(...more);
    for (const result of more) onResult?.(result);
  };
  for (const contest of options.contests ?? contestsOf(group, options.withPeers)) {
    const outcome = await runContest(contest, place, options);
    take(outcome.results);
    lacksPeer ||= outcome.lacksPeer;
  }
  const isAsked = (name: string): boolean => !options.contests && (group ?? name) === name;
  if (isAsked("products")) take([await runProducts(place, options)]);
  if (isAsked("startup")) take(await runStartup(programs.main, programs.library, options));
  if (isAsked("memory")) take([await runMemory(place, options)]);
  return { results, isFailure: lacksPeer || results.some(({ holds }) => holds === false) };
}
