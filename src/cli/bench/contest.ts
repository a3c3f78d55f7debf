/** Two arms, turn by turn: warm-up, the check that they compute the same, rounds, medians. */
import { MissingError, StateError } from "../../index.ts";
import { Arm, type Ended, type Ready } from "./arm.ts";
import type { Contest, Row } from "./plan.ts";
import { judge, type Measure, median, type Result } from "./results.ts";

/** Where programs and files are; tests have their own. */
export interface Place {
  ours(work: string, threads: number, weights: string): readonly string[];
  /** The command of a peer; undefined where its runtime is not installed. */
  theirs(
    peer: Contest["peer"] & {},
    threads: number,
    weights: string,
  ): readonly string[] | undefined;
  /** The path of a weights file, written when first asked for. */
  weights(name: string): Promise<string>;
  /** Why weights that are the user's to give are not there. */
  lacks?(name: string): string | undefined;
}

export interface ContestOptions {
  readonly threads: number;
  readonly rounds: number;
  readonly withPeers: boolean;
  /** A round lasts about this long for each side. */
  readonly roundMs?: number;
  /** Between turns; default 250. */
  readonly pauseMs?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (text: string) => void;
}

/** One side's numbers. */
interface Side {
  readonly ready: Ready;
  /** Median of the rounds' medians. */
  readonly ms: number;
  /** The same of times to the first token. */
  readonly firstMs: number;
  /** Slowest round over fastest, less one. */
  readonly spread: number;
  readonly ended: Ended;
  readonly tokens: readonly number[] | undefined;
}

/** Losses of the first step may differ by this. */
export const lossTolerance = 1e-4;

/** Decoded tokens that must be the same; later ones may part where two logits are all but equal. */
const sureTokens = 8;

/** Rounds of one side on a quiet machine differ by less. */
const quietSpread = 0.25;

const defaultRoundMs = 1000;
/** Arms that wait may not take a core from the one that runs: their idle threads spin for a while. */
const defaultPauseMs = 250;

export interface ContestResult {
  readonly results: readonly Result[];
  /** A peer that should be there is not, or does not compute the same. */
  readonly isFailure: boolean;
  /** The peer's library and version. */
  readonly version: string | undefined;
}

/** @throws StateError when the two sides do not compute the same. */
export async function runContest(
  contest: Contest,
  place: Place,
  options: ContestOptions,
): Promise<ContestResult> {
  const { peer } = contest;
  const lack = place.lacks?.(contest.weights);
  if (lack !== undefined) return skipped(contest, lack);
  const weights = await place.weights(contest.weights);
  const threads = contest.threads === "all" ? options.threads : contest.threads;
  const wanted = options.withPeers ? peer : undefined;
  options.onProgress?.(contest.work);
  const ours = await Arm.start(
    "plasticity",
    place.ours(contest.ours, threads, weights),
    options.signal,
  );
  let theirs: Arm | undefined;
  let why: string | undefined;
  try {
    if (wanted) {
      const command = place.theirs(wanted, threads, weights);
      try {
        theirs = command && (await Arm.start(wanted.name, command, options.signal));
      } catch (error) {
        if (!(error instanceof MissingError)) throw error;
      }
      if (!theirs) why = `${wanted.name} is not installed — ${wanted.remedy}`;
    }
    const sides = await compare(contest, ours, theirs, options);
    return {
      results: contest.rows.map((row) => rowOf(contest, row, sides, peer, why)),
      isFailure: why !== undefined && wanted!.kind === "npm",
      version: theirs && `${wanted!.library} ${theirs.ready.version}`.trim(),
    };
  } catch (error) {
    ours.kill();
    theirs?.kill();
    throw error;
  }
}

/** Rows without numbers, and the reason. */
export function skipped(contest: Contest, why: string): ContestResult {
  const { work, peer, about } = contest;
  const results = contest.rows.map((row) =>
    judge({
      work: nameOf(work, row),
      unit: row.unit,
      ours: null,
      peer: peer?.name ?? null,
      theirs: null,
      limit: limitOf(row, peer),
      note: [about, why].filter(Boolean).join("; "),
    }),
  );
  return { results, isFailure: false, version: undefined };
}

const nameOf = (work: string, { unit, isFirst }: Row): string => {
  if (isFirst) return `${work}, first token of the middle stream`;
  return unit === "MB" ? `${work}, peak resident memory` : work;
};

const limitOf = (row: Row, peer: Contest["peer"]): number | null =>
  peer || row.isOwn ? row.limit : null;

type Sides = readonly [ours: Side, theirs: Side | undefined];

async function compare(
  contest: Contest,
  ours: Arm,
  theirs: Arm | undefined,
  options: ContestOptions,
): Promise<Sides> {
  const arms = theirs ? [ours, theirs] : [ours];
  const warm: { arm: Arm; first: Awaited<ReturnType<Arm["steps"]>>; perRound: number }[] = [];
  for (const arm of arms) {
    const first = await arm.steps(1);
    // The first step compiles, and is slower than the next by an unknown amount.
    const second = await arm.steps(1);
    const budget = options.roundMs ?? defaultRoundMs;
    const perRound = Math.max(1, Math.min(20, Math.round(budget / second.ms[0]!)));
    if (perRound > 2) await arm.steps(Math.min(3, perRound));
    warm.push({ arm, first, perRound });
  }
  if (theirs)
    checkSame(
      contest.work,
      [ours.name, theirs.name],
      warm.map(({ first }) => first),
      contest.sureTokens ?? sureTokens,
    );
  const { pauseMs = defaultPauseMs } = options;
  const medians: number[][] = arms.map(() => []);
  const firsts: number[][] = arms.map(() => []);
  const rounds = Math.min(options.rounds, contest.maxRounds ?? options.rounds);
  for (let round = 1; round <= rounds; round++) {
    options.onProgress?.(`${contest.work}: round ${round} of ${rounds}`);
    for (const [i, { arm, perRound }] of warm.entries()) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      const { ms, firstMs = [] } = await arm.steps(perRound);
      medians[i]!.push(median(ms));
      firsts[i]!.push(median(firstMs));
    }
  }
  const sides: Side[] = [];
  for (const [i, { arm, first }] of warm.entries()) {
    const ended = await arm.end();
    const spread = Math.max(...medians[i]!) / Math.min(...medians[i]!) - 1;
    sides.push({
      ready: arm.ready,
      ms: median(medians[i]!),
      firstMs: median(firsts[i]!),
      spread,
      ended,
      tokens: first.tokens,
    });
  }
  return [sides[0]!, sides[1]];
}

interface First {
  readonly loss: readonly number[];
  readonly tokens?: readonly number[];
}

function checkSame(
  work: string,
  names: readonly string[],
  [a, b]: readonly First[],
  sure: number,
): void {
  const [mine, other] = names;
  if (a!.tokens && b!.tokens) {
    const [x, y] = [a!.tokens.slice(0, sure), b!.tokens.slice(0, sure)];
    if (x.join() === y.join()) return;
    throw new StateError(
      `bench: ${work}: ${mine} decodes ${x.join(" ")}, ${other} ${y.join(" ")} — they do not compute the same.`,
    );
  }
  const [x, y] = [a!.loss[0], b!.loss[0]];
  if (x !== undefined && y !== undefined && Math.abs(x - y) <= lossTolerance) return;
  throw new StateError(
    `bench: ${work}: the first loss of ${mine} is ${x}, of ${other} ${y} — they must agree within ${lossTolerance}.`,
  );
}

function rowOf(
  contest: Contest,
  row: Row,
  [ours, theirs]: Sides,
  peer: Contest["peer"],
  why: string | undefined,
): Result {
  const number = (side: Side | undefined): number | null =>
    side ? numberOf(row, side, contest.tokensPerStep) : null;
  return judge({
    work: nameOf(contest.work, row),
    unit: row.unit,
    ours: number(ours),
    peer: peer?.name ?? null,
    theirs: number(theirs),
    limit: limitOf(row, peer),
    note: [contest.about, ...notes(row.unit, ours, theirs), why].filter(Boolean).join("; "),
  });
}

function numberOf({ unit, isFirst }: Row, side: Side, tokens = 1): number {
  if (isFirst) return side.firstMs;
  if (unit === "MB") return side.ended.peakRssMb;
  return unit === "tokens/s" ? (1000 * tokens) / side.ms : side.ms;
}

function* notes(unit: Measure, ours: Side, theirs: Side | undefined): Generator<string> {
  const describe = (name: string, { ready }: Side): string =>
    `${name}: ${[`${ready.threads} threads`, ready.note, showExtra(ready.extra)].filter(Boolean).join(", ")}`;
  if (unit !== "MB") {
    yield describe("ours", ours);
    if (theirs) yield describe("theirs", theirs);
    const spread = Math.max(ours.spread, theirs?.spread ?? 0);
    if (spread > quietSpread) {
      yield `rounds differ by ${Math.round(100 * spread)} %: the machine was not quiet`;
    }
  }
  const imported = theirs?.ready.extra?.["importRssMb"];
  if (unit === "MB" && typeof imported === "number") {
    const less = (ours.ended.peakRssMb / (theirs!.ended.peakRssMb - imported)).toFixed(2);
    yield `importing torch alone takes ${imported} MB; ${less}× without it`;
  }
  if (unit === "tokens/s" && ours.tokens && theirs?.tokens) {
    const parted = ours.tokens.findIndex((token, i) => token !== theirs.tokens![i]);
    yield `the first ${parted < 0 ? ours.tokens.length : parted} of ${ours.tokens.length} tokens are the same`;
  }
}

function showExtra(extra: Ready["extra"] = {}): string {
  return Object.entries(extra)
    .filter(([name]) => name !== "importRssMb")
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
}
