/** Measures without a second process: efficiency of products, start-up, memory over many shapes. */
import { execFile } from "node:child_process";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { StateError } from "../../index.ts";
import { Arm } from "./arm.ts";
import type { ContestOptions, Place } from "./contest.ts";
import { judge, median, type Result, showNumber } from "./results.ts";

const run = promisify(execFile);

type Options = Pick<ContestOptions, "threads" | "rounds" | "signal" | "onProgress">;

/** Products with M, N, K >= 256 of the LoRA step against a 1024-cube, round by round. */
export async function runProducts(place: Place, options: Options): Promise<Result> {
  const weights = await place.weights("gpt2-small");
  const command = place.ours("gpt2small-products", options.threads, weights);
  options.onProgress?.("products of the LoRA step");
  const arm = await Arm.start("plasticity", command, options.signal);
  const warmUp = 1;
  for (let round = 0; round < warmUp + options.rounds; round++) await arm.steps(1);
  const { products = [] } = await arm.end();
  const rounds = products.slice(warmUp);
  if (rounds.length === 0) throw new StateError("bench: the profile holds no step.");
  // The ratio is of one round's two rates, so that a slow moment weighs on both.
  const ratio = median(rounds.map(({ step, gemm }) => step / gemm));
  const gemm = median(rounds.map((round) => round.gemm));
  const share = median(rounds.map((round) => round.share));
  return judge({
    work: "LoRA step, products with M, N, K ≥ 256",
    unit: "GFLOP/s",
    ours: ratio * gemm,
    peer: "product of 1024³ in the same process",
    theirs: gemm,
    limit: 0.85,
    note: `${options.threads} threads; ${Math.round(100 * share)} % of the step's time is in these products; times from ONNX Runtime's profile`,
  });
}

/** Wall time of whole processes. */
export async function runStartup(
  main: string,
  library: string,
  options: Options,
): Promise<Result[]> {
  const rows = [
    { work: "plasticity --help", args: [main, "--help"], limit: 0.3 },
    {
      work: "import of the library",
      args: [
        "--input-type=module",
        "-e",
        `await import(${JSON.stringify(pathToFileURL(library).href)})`,
      ],
      limit: 0.2,
    },
  ];
  const seconds: number[][] = rows.map(() => []);
  for (let round = 0; round < 1 + Math.max(5, options.rounds); round++) {
    options.onProgress?.("start-up");
    for (const [i, { args }] of rows.entries()) {
      const start = performance.now();
      await run(process.execPath, args, options.signal && { signal: options.signal });
      if (round > 0) seconds[i]!.push((performance.now() - start) / 1000);
    }
  }
  return rows.map(({ work, limit }, i) =>
    judge({
      work,
      unit: "s",
      ours: median(seconds[i]!),
      peer: null,
      theirs: null,
      limit,
      note: "a whole process, Node's own start included",
    }),
  );
}

/** When resident memory is read, in training steps. */
export const memorySteps = { first: 500, total: 2500 } as const;

/** Memory is the median of this many readings up to the step, this far apart. */
const readings = 10;
const readEvery = 25;

/**
 * The setting under which glibc gives freed memory back. By itself it learns from the first large block
 * that is freed to keep such blocks, so that resident memory moves by some percent as programs come and go.
 */
const givesBack = { MALLOC_MMAP_THRESHOLD_: "131072", MALLOC_TRIM_THRESHOLD_: "131072" } as const;

/** Growth of resident memory while programs of 200 shapes come and go: as started, and with glibc told. */
export async function runMemory(place: Place, options: Options): Promise<Result[]> {
  return [
    await memoryGrowth(place, options, {}, ""),
    await memoryGrowth(place, options, givesBack, ", glibc giving back"),
  ];
}

async function memoryGrowth(
  place: Place,
  options: Options,
  env: Readonly<Record<string, string>>,
  how: string,
): Promise<Result> {
  const { first, total } = memorySteps;
  options.onProgress?.("memory over 200 shapes");
  const command = place.ours("shapes", options.threads, await place.weights("none"));
  const arm = await Arm.start("plasticity", command, options.signal, env);
  const memoryAfter = async (steps: number): Promise<number> => {
    await arm.steps(steps - readings * readEvery);
    const seen: number[] = [];
    for (let i = 0; i < readings; i++) seen.push((await arm.steps(readEvery)).rssMb!);
    return median(seen);
  };
  const early = await memoryAfter(first);
  options.onProgress?.(`memory over 200 shapes: ${Math.round(early)} MB after ${first} steps`);
  const late = await memoryAfter(total - first);
  await arm.end();
  const settings = Object.entries(env).map(([name, value]) => `${name}=${value}, `);
  return judge({
    work: `resident memory, step ${first} to ${total}, 200 shapes twice${how}`,
    unit: "%",
    ours: 100 * (late / early - 1),
    peer: null,
    theirs: null,
    limit: 5,
    note: `${settings.join("")}${showNumber(early)} MB, then ${showNumber(late)} MB: medians of ${readings} readings over ${readings * readEvery} steps`,
  });
}
