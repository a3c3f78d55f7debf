import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Updater } from "../train/updater.ts";
import { optimizerByName } from "./by-name.ts";
import type { Optimizer } from "./optimizer.ts";
import { type ScheduleOptions, scheduleByName } from "./schedule.ts";

interface Recorded {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

type Named = Readonly<Record<string, Recorded>>;

interface Row {
  readonly optimizer: string;
  readonly source: string;
  readonly options: Readonly<Record<string, unknown>> & { readonly lr: number };
  readonly note?: string;
  readonly problem?: "matrices";
  readonly after: Readonly<Record<string, Named>>;
}

interface Fixture {
  readonly start: Named;
  readonly gradients: readonly Named[];
  readonly matrices: { readonly start: Named; readonly gradients: readonly Named[] };
  readonly optimizers: readonly Row[];
  readonly schedules: { readonly base: number } & Readonly<Record<string, readonly number[]>>;
}

const fixture = JSON.parse(
  readFileSync(new URL("../../test/parity/optim.json", import.meta.url), "utf8"),
) as Fixture;

/** From torch's names to ours. */
function ours({ optimizer, options }: Row): Optimizer {
  const { lr: _, betas, eps, d, nsCoefficients, nsSteps, adjustLr, ...same } = options;
  const [eps1, eps2] = Array.isArray(eps) ? (eps as (number | null)[]) : [];
  return optimizerByName(optimizer, {
    ...same,
    ...(betas !== undefined && { beta1: (betas as number[])[0], beta2: (betas as number[])[1] }),
    ...(typeof eps === "number" && { epsilon: eps }),
    ...(typeof eps1 === "number" && { epsilon1: eps1 }),
    ...(typeof eps2 === "number" && { epsilon2: eps2 }),
    ...(d !== undefined && { clipThreshold: d }),
    ...(nsCoefficients !== undefined && { coefficients: nsCoefficients }),
    ...(nsSteps !== undefined && { iterations: nsSteps }),
    ...(adjustLr !== undefined && { scale: adjustLr }),
  });
}

const tensors = (named: Named): Record<string, Tensor> =>
  Object.fromEntries(
    Object.entries(named).map(([name, { shape, data }]) => [name, Tensor.from(data, shape)]),
  );

/** Largest difference from what was recorded, relative to the number or to 1 where it is smaller. */
async function difference(row: Row, optimizer: Optimizer, isExact: boolean): Promise<number> {
  const { start, gradients } = row.problem === "matrices" ? fixture.matrices : fixture;
  const groups = [{ paths: Object.keys(start), optimizer }];
  const backend = isExact ? reference() : await nodeOrt({ threads: 1 });
  const updater = new Updater(tensors(start), groups, backend);
  let worst = 0;
  for (const [i, step] of gradients.entries()) {
    for (const [name, { data }] of Object.entries(step)) updater.gradients[name]!.data.set(data);
    await updater.step(row.options.lr);
    for (const [name, { data }] of Object.entries(row.after[i + 1] ?? {})) {
      data.forEach((expected, j) => {
        const far = Math.abs(updater.params[name]!.data[j]! - expected);
        worst = Math.max(worst, far / Math.max(1, Math.abs(expected)));
      });
    }
  }
  await updater.release();
  return worst;
}

/** Five products in bfloat16, each good to about 1 in 256, against ours in float32. */
const inBfloat16 = (row: Row): boolean => row.note?.includes("in bfloat16") ?? false;

describe("optimisers give the recorded parameters after 1, 2 and 5 steps", () => {
  fixture.optimizers.forEach((row) => {
    const allowed = inBfloat16(row) ? 2e-3 : 1e-6;
    it(`${row.source} ${JSON.stringify(row.options)}`, async () => {
      const optimizer = ours(row);
      const found: Record<string, number> = { engine: await difference(row, optimizer, false) };
      const asGraph: Optimizer = { ...optimizer, elementwise: false };
      if (optimizer.elementwise) found["graph"] = await difference(row, asGraph, false);
      found["reference"] = await difference(row, asGraph, true);
      for (const far of Object.values(found)) expect(far).toBeLessThan(allowed);
    });
  });
});

describe("schedules give the recorded rates of 20 steps", () => {
  const run = { totalSteps: 20, warmupSteps: 4 };
  const rows: Readonly<Record<string, readonly [string, ScheduleOptions]>> = {
    linear: ["linear", run],
    linearNoWarmup: ["linear", { totalSteps: 20 }],
    cosine: ["cosine", run],
    cosineNoWarmup: ["cosine", { totalSteps: 20, warmupSteps: 0 }],
    constant: ["constant_with_warmup", run],
    inverseSqrt: ["inverse_sqrt", run],
    inverseSqrtTimescale10: ["inverse_sqrt", { ...run, timescale: 10 }],
  };
  const recorded = Object.keys(fixture.schedules).filter((key) =>
    Array.isArray(fixture.schedules[key]),
  );
  it.each(recorded)("%s", (key) => {
    const [name, options] = rows[key]!;
    const schedule = scheduleByName(name, options);
    fixture.schedules[key]!.forEach((rate, step) => {
      const mine = fixture.schedules.base * schedule(step);
      expect(Math.abs(mine - rate)).toBeLessThanOrEqual(1e-12 * rate);
    });
  });
});
