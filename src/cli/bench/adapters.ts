/** Each adapter's training step against plain LoRA's at as many trained parameters, in turns. */
import { methodsWith, PlasticityError } from "../../index.ts";
import { Arm } from "./arm.ts";
import type { ContestOptions, Place } from "./contest.ts";
import { judge, median, type Result } from "./results.ts";
import { parametersOf, sizedTo } from "./works/adapters.ts";

/** LoRA's rank, which sets the number of parameters. */
const plain = "lora:rank=8";

/** How much longer than LoRA's a step may take, where the arithmetic allows. */
const limit = 1 / 1.3;

type Options = Pick<ContestOptions, "threads" | "rounds" | "signal" | "onProgress">;

export async function runAdapters(place: Place, options: Options): Promise<Result[]> {
  const wanted = await parametersOf(plain);
  const results: Result[] = [];
  for (const { id } of methodsWith("adapter")) {
    if (id === "lora") continue;
    try {
      results.push(...(await against(id, await sizedTo(id, wanted), place, options)));
    } catch (error) {
      if (options.signal?.aborted || !(error instanceof PlasticityError)) throw error;
      results.push(
        judge({
          work: `step with ${id}`,
          unit: "ms",
          ours: null,
          peer: plain,
          theirs: null,
          limit: null,
          note: error.message,
        }),
      );
    }
  }
  return results;
}

async function against(
  id: string,
  text: string,
  place: Place,
  { threads, rounds, signal, onProgress }: Options,
): Promise<Result[]> {
  const arms: Arm[] = [];
  try {
    for (const work of [text, plain]) {
      onProgress?.(`step with ${work}: starting`);
      arms.push(await Arm.start(work, place.ours("adapter", threads, work), signal));
    }
    const times: number[][] = [[], []];
    // The first rounds load programs.
    for (let round = 0; round < 2 + rounds; round++) {
      onProgress?.(`step with ${text}: round ${round + 1} of ${2 + rounds}`);
      for (const [i, arm] of arms.entries()) {
        const { ms } = await arm.steps(3);
        if (round >= 2) times[i]!.push(median(ms));
      }
    }
    const [own, other] = times.map(median);
    const ends = [await arms[0]!.end(), await arms[1]!.end()];
    const note = arms[0]!.ready.note;
    return [
      judge({
        work: `step with ${text}`,
        unit: "ms",
        ours: own!,
        peer: plain,
        theirs: other!,
        limit,
        note,
      }),
      judge({
        work: `step with ${id}, peak resident memory`,
        unit: "MB",
        ours: ends[0]!.peakRssMb,
        peer: plain,
        theirs: ends[1]!.peakRssMb,
        limit: null,
      }),
    ];
  } finally {
    for (const arm of arms) arm.kill();
  }
}
