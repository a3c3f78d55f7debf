/** `finetune --find-learning-rate`: the loss over rising rates, as a table and a chart. */
import type { Weighed } from "./estimate.ts";
import { findLearningRate, type Host, lineChart } from "./library.ts";
import { type Output, sparkline } from "./output.ts";

export async function showRates(
  output: Output,
  host: Host,
  job: Pick<Weighed, "trainee" | "data" | "backend" | "settings">,
  signal: AbortSignal,
  out: string | undefined,
): Promise<void> {
  const { trainee, data, backend, settings } = job;
  const found = await findLearningRate(trainee, data.train, backend, settings, {
    signal,
    onStep: (done, rate, loss) =>
      output.progress(`rate ${rate.toExponential(1)}  loss ${loss.toFixed(3)}  (${done})`),
  });
  const rows = found.trials.filter((_, i) => i % 6 === 0);
  output.table(
    ["learning rate", "loss", "smoothed"],
    rows.map(({ learningRate, loss, smoothed }) => [
      learningRate.toExponential(1),
      loss.toFixed(3),
      smoothed.toFixed(3),
    ]),
    ["right", "right", "right"],
  );
  output.line(
    sparkline(
      found.trials.map(({ smoothed }) => smoothed),
      60,
    ),
  );
  const path =
    out === undefined ? "learning-rates.svg" : host.files.join(out, "learning-rates.svg");
  if (out !== undefined) await host.files.makeDirectory(out);
  const chart = lineChart({
    title: "Loss over learning rates",
    xLabel: "learning rate",
    yLabel: "smoothed loss",
    logX: true,
    series: [
      {
        name: "loss",
        points: found.trials.map((one) => [one.learningRate, one.smoothed] as const),
      },
    ],
  });
  await host.files.writeText(path, chart);
  const rate = Number(found.learningRate.toPrecision(2));
  output.line(`The loss falls fastest at ${rate}: --learning-rate ${rate}. Curve in ${path}.`);
  output.json({
    learningRate: found.learningRate,
    hasDiverged: found.hasDiverged,
    trials: found.trials,
  });
}
