/** Recurrences: LSTM, GRU, linear, the selective scan, SSD. */
import { emitAll } from "../../../src/ir/emit.ts";
import { outputsOf, type Value } from "../../../src/ir/graph.ts";
import { linearRecurrence } from "../../../src/ir/recurrence.ts";
import { gru, lstm } from "../../../src/ir/recurrent.ts";
import { selectiveScan } from "../../../src/ir/selective-scan.ts";
import { ssd } from "../../../src/ir/ssd.ts";
import type { Cases, Fn } from "./case.ts";
import { between, caseOf, type Draw, marks, normal, type Sample, sample } from "./samples.ts";

const lstmDraws = (steps: number): Draw[] => [
  normal(steps, 2, 8),
  normal(8, 2),
  normal(2, 2),
  normal(2, 2),
];

const gruDraws = (steps: number): Draw[] => [
  normal(steps, 2, 6),
  normal(6, 2),
  normal(2, 2),
  normal(6),
];

const recurrence = (steps: number, ...rest: number[]): Draw[] => [
  normal(steps, ...rest),
  normal(steps, ...rest),
  normal(...rest),
];

const along =
  (reverse: boolean): Fn =>
  (a, b, initial) =>
    linearRecurrence(a!, b!, { initial: initial!, reverse });

/** x, delta, a, b, c, initial: B 2, D 3, N 2. */
const selective = (steps: number): Draw[] => [
  normal(2, steps, 3),
  between(0.05, 0.9, 2, steps, 3),
  between(-1.5, -0.2, 3, 2),
  normal(2, steps, 2),
  normal(2, steps, 2),
  normal(2, 3, 2),
];

const selectively =
  (chunk: number, pick: (run: { y: Value; state: Value }) => readonly Value[]): Fn =>
  (x, delta, a, b, c, initial, resets) =>
    pick(
      selectiveScan(
        {
          x: x!,
          delta: delta!,
          a: a!,
          b: b!,
          c: c!,
          initial: initial!,
          ...(resets && { resets }),
        },
        chunk,
      ),
    );

/** x, delta, a, b, c, initial: B 2, H 4, P 3, G 2, N 2. */
const scalar = (steps: number, groups = 2): Draw[] => [
  normal(2, steps, 4, 3),
  between(0.05, 0.9, 2, steps, 4),
  between(-1.5, -0.2, 4),
  normal(2, steps, groups, 2),
  normal(2, steps, groups, 2),
  normal(2, 4, 3, 2),
];

const scalarly =
  (chunk: number, pick: (run: { y: Value; state: Value }) => readonly Value[]): Fn =>
  (x, delta, a, b, c, initial, resets) =>
    pick(
      ssd(
        {
          x: x!,
          delta: delta!,
          a: a!,
          b: b!,
          c: c!,
          initial: initial!,
          ...(resets && { resets }),
        },
        chunk,
      ),
    );

const both = ({ y, state }: { y: Value; state: Value }): Value[] => [y, state];
const cleared = marks([0, 0, 1, 0, 0, 1, 0, 0, 1, 1], [2, 5]);

/** Samples that have more than one form. */
export const formSamples: Readonly<
  Record<"linearRecurrence" | "selectiveScan" | "selectiveScanGradient" | "ssd", readonly Sample[]>
> = {
  linearRecurrence: [
    ...[1, 4, 7].flatMap((steps) =>
      [false, true].map((reverse) =>
        sample(
          `${steps} steps${reverse ? ", reverse" : ""}`,
          along(reverse),
          ...recurrence(steps, 3),
        ),
      ),
    ),
    sample("numbers", along(false), ...recurrence(5)),
    sample("two axes", along(true), ...recurrence(3, 2, 2)),
    sample("no steps", along(false), ...recurrence(0, 2)),
  ],
  selectiveScan: [
    sample("a last chunk that is not full", selectively(2, both), ...selective(5)),
    sample("resets", selectively(3, both), ...selective(5), cleared),
    sample("resets, one chunk", selectively(5, both), ...selective(5), cleared),
    sample("chunks of one step", selectively(1, both), ...selective(3)),
    sample("one step", selectively(1, both), ...selective(1)),
    sample(
      "y alone",
      selectively(2, ({ y }) => [y]),
      ...selective(4),
    ),
    sample(
      "the last state alone",
      selectively(2, ({ state }) => [state]),
      ...selective(3),
    ),
    sample(
      "the states before chunks too",
      selectively(2, ({ y }) => outputsOf(y)),
      ...selective(3),
    ),
    sample("no steps", selectively(1, both), ...selective(0)),
  ],
  selectiveScanGradient: [
    sample(
      "of random cotangents",
      (...inputs) => emitAll("selectiveScanGradient", inputs as Value[], { chunk: 2 }),
      normal(1, 3, 2),
      between(0.05, 0.9, 1, 3, 2),
      between(-1.5, -0.2, 2, 2),
      normal(1, 3, 2),
      normal(1, 3, 2),
      normal(2, 1, 2, 2),
      normal(1, 3, 2),
      normal(1, 2, 2),
    ),
    sample(
      "with resets",
      (...inputs) => emitAll("selectiveScanGradient", inputs as Value[], { chunk: 3 }),
      normal(1, 3, 1),
      between(0.05, 0.9, 1, 3, 1),
      between(-1.5, -0.2, 1, 2),
      normal(1, 3, 2),
      normal(1, 3, 2),
      normal(1, 1, 2, 1),
      normal(1, 3, 1),
      normal(1, 1, 2),
      marks([0, 1, 0], [1, 3]),
    ),
  ],
  ssd: [
    sample("a last chunk that is not full", scalarly(2, both), ...scalar(5)),
    sample("resets", scalarly(3, both), ...scalar(5), cleared),
    sample("a group for each head", scalarly(4, both), ...scalar(4, 4)),
    sample("one group, one chunk", scalarly(3, both), ...scalar(3, 1)),
    sample("chunks of one step", scalarly(1, both), ...scalar(3)),
    sample(
      "y alone",
      scalarly(2, ({ y }) => [y]),
      ...scalar(3),
    ),
    sample(
      "the last state alone",
      scalarly(2, ({ state }) => [state]),
      ...scalar(3),
    ),
    sample(
      "the states before chunks too",
      scalarly(2, ({ y }) => outputsOf(y)),
      ...scalar(3),
    ),
    sample("no steps", scalarly(1, both), ...scalar(0)),
  ],
};

export const recurrenceSamples: Readonly<
  Record<"lstm" | "gru" | keyof typeof formSamples, readonly Sample[]>
> = {
  ...formSamples,
  lstm: [
    sample(
      "three steps",
      (z, w, h, c) => {
        const run = lstm(z!, w!, h!, c!);
        return [run.outputs, run.hidden, run.cell];
      },
      ...lstmDraws(3),
    ),
    sample("the last cell alone", (z, w, h, c) => lstm(z!, w!, h!, c!).cell, ...lstmDraws(2)),
    sample("outputs alone", (z, w, h, c) => lstm(z!, w!, h!, c!).outputs, ...lstmDraws(2)),
    sample(
      "all that is kept",
      (z, w, h, c) => outputsOf(lstm(z!, w!, h!, c!).outputs),
      ...lstmDraws(2),
    ),
    sample("one step", (z, w, h, c) => lstm(z!, w!, h!, c!).outputs, ...lstmDraws(1)),
    sample(
      "no steps",
      (z, w, h, c) => {
        const run = lstm(z!, w!, h!, c!);
        return [run.outputs, run.hidden, run.cell];
      },
      ...lstmDraws(0),
    ),
  ],
  gru: [
    sample(
      "three steps",
      (z, w, h, bias) => {
        const run = gru(z!, w!, h!, bias!);
        return [run.outputs, run.hidden];
      },
      ...gruDraws(3),
    ),
    sample("no bias", (z, w, h) => gru(z!, w!, h!).outputs, ...gruDraws(2).slice(0, 3)),
    sample("the last state alone", (z, w, h, b) => gru(z!, w!, h!, b!).hidden, ...gruDraws(2)),
    sample(
      "all that is kept",
      (z, w, h, b) => outputsOf(gru(z!, w!, h!, b!).outputs),
      ...gruDraws(2),
    ),
    sample("one step", (z, w, h, b) => gru(z!, w!, h!, b!).outputs, ...gruDraws(1)),
    sample("no steps", (z, w, h, b) => gru(z!, w!, h!, b!).hidden, ...gruDraws(0)),
  ],
};

export const recurrenceCases: Cases<keyof typeof recurrenceSamples> = {
  lstm: recurrenceSamples.lstm.map(caseOf),
  gru: recurrenceSamples.gru.map(caseOf),
  linearRecurrence: recurrenceSamples.linearRecurrence.map(caseOf),
  selectiveScan: recurrenceSamples.selectiveScan.map(caseOf),
  selectiveScanGradient: recurrenceSamples.selectiveScanGradient.map(caseOf),
  ssd: recurrenceSamples.ssd.map(caseOf),
};
