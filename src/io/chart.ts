/**
 * Charts as SVG text: lines over steps, bars and points that compare methods.
 *
 * One file, no script, no link, no id: it may stand in a page, a README or a report more than once.
 * Colours follow the reader's scheme. A chart stays below about 60 KiB whatever the number of points.
 */
import { OptionError } from "../errors.ts";
import {
  type ChartOptions,
  checkSize,
  colour,
  type Frame,
  frame,
  legend,
  mark,
  maxNameWidth,
  missing,
  px,
  stroke,
  svg,
  whisker,
  write,
} from "./chart-draw.ts";
import {
  type ChartPoint,
  extent,
  fitText,
  formatNumber,
  formatValue,
  makeScale,
  smoothed,
  textWidth,
  thin,
} from "./chart-scale.ts";

export type { ChartPoint } from "./chart-scale.ts";
export { type Mark, type ScatterChartOptions, scatterChart } from "./chart-scatter.ts";

export interface Series {
  readonly name: string;
  /** In any order of x; points that are not finite leave a gap. */
  readonly points: readonly ChartPoint[];
  /** Share of the past in a smoothed line over the faint raw one, in [0, 1); default none. */
  readonly smooth?: number;
}

export interface LineChartOptions extends ChartOptions {
  /** 1 to 32. */
  readonly series: readonly Series[];
  readonly logX?: boolean;
  readonly logY?: boolean;
}

export interface Bar {
  readonly name: string;
  readonly value: number;
  /** Half the length of a whisker: a standard deviation, or an error. */
  readonly spread?: number;
}

export interface BarChartOptions extends Omit<ChartOptions, "yLabel"> {
  /** 1 to 128, from the top. */
  readonly bars: readonly Bar[];
}

/** Vertices of all lines together. */
const maxVertices = 3200;

/** The third number counts the gaps before a vertex. */
type Vertex = readonly [x: number, y: number, gaps: number];

function vertices(series: Series, logX: boolean, logY: boolean): Vertex[] {
  const isSorted = series.points.every(([x], i) => i === 0 || series.points[i - 1]![0] <= x);
  const points = isSorted ? series.points : [...series.points].sort((a, b) => a[0] - b[0]);
  const result: Vertex[] = [];
  let gaps = 0;
  for (const [x, y] of points) {
    const fits = Number.isFinite(x) && Number.isFinite(y) && !(logX && x <= 0) && !(logY && y <= 0);
    if (fits) result.push([x, y, gaps]);
    else gaps++;
  }
  return result;
}

function path(points: readonly Vertex[], { x, y }: Frame): string {
  let text = "";
  points.forEach(([px0, py0, gaps], i) => {
    const starts = i === 0 || points[i - 1]![2] !== gaps;
    // A vertex alone has no line: a dash shows it.
    const alone = starts && points[i + 1]?.[2] !== gaps;
    text += `${starts ? "M" : " "}${px(x.at(px0))} ${px(y.at(py0))}${alone ? "m-1.5 0h3" : ""}`;
  });
  return text;
}

function* firstOf(lists: readonly (readonly Vertex[])[], index: 0 | 1): Generator<number> {
  for (const list of lists) for (const vertex of list) yield vertex[index];
}

/**
 * Lines over steps or time; of a series with `smooth`, the smoothed line over the faint raw one.
 * Points that are not finite, or not positive on a logarithmic axis, are left out and counted below.
 * @throws OptionError for no series, more than 32, a size or a weight outside its range.
 */
export function lineChart(options: LineChartOptions): string {
  const { width = 720, height = 400, series, logX = false, logY = false } = options;
  checkSize("width", width, 200, 4096);
  checkSize("height", height, 150, 4096);
  checkSize("the number of series", series.length, 1, 32);
  const lines = series.map((one) => vertices(one, logX, logY));
  const body: string[] = [];
  const names = series.length > 1 ? series : [];
  const space = legend(
    body,
    names.map(({ name }, i) => ({
      name,
      sign: (x, y) => `<path class="l" d="M${px(x)} ${px(y)}h22" ${stroke(i, 2.5)}/>`,
    })),
    width,
  );
  const xs = extent(firstOf(lines, 0));
  const ys = extent(firstOf(lines, 1));
  const at = frame(body, { ...options, room: 0 }, space, xs ?? [1, 2], ys ?? [1, 2]);
  const paths = series.reduce((sum, { smooth }) => sum + (smooth === undefined ? 1 : 2), 0);
  const buckets = Math.floor(maxVertices / paths / 4);
  const over: string[] = [];
  series.forEach(({ smooth }, i) => {
    const line = lines[i]!;
    if (line.length === 0) return;
    const raw = path(thin(line, buckets), at);
    if (smooth === undefined) {
      over.push(`<path class="l" d="${raw}" ${stroke(i, 2)}/>`);
      if (line.length <= 24) over.push(...line.map(([x, y]) => mark(at.x.at(x), at.y.at(y), i, 3)));
    } else {
      body.push(`<path class="l" opacity=".3" d="${raw}" ${stroke(i, 1)}/>`);
      const mean = path(thin(smoothed(line, smooth), buckets), at);
      over.push(`<path class="l" d="${mean}" ${stroke(i, 2.2)}/>`);
    }
  });
  body.push(...over);
  const all = series.reduce((sum, { points }) => sum + points.length, 0);
  const shown = lines.reduce((sum, line) => sum + line.length, 0);
  if (shown === 0) {
    const middle = { x: (at.left + at.right) / 2, y: (at.top + at.bottom) / 2 };
    body.push(write("No points to show", middle.x, middle.y, { anchor: "middle", kind: "h" }));
  }
  missing(body, all - shown, logX || logY, width, height);
  const about = series.slice(0, 12).map(({ name }, i) => {
    const [first, last] = [lines[i]![0], lines[i]!.at(-1)];
    return `${name}: ${first && last ? `${formatValue(first[1])} to ${formatValue(last[1])}` : "no points"}`;
  });
  const what = `${options.yLabel} over ${options.xLabel}. ${about.join("; ")}.`;
  return svg(options.title, what, width, height, body);
}

/**
 * Horizontal bars from zero, one a method, with the value at its end.
 * @throws OptionError for no bars, more than 128, or a value that is not finite.
 */
export function barChart(options: BarChartOptions): string {
  const { bars, width = 720 } = options;
  checkSize("the number of bars", bars.length, 1, 128);
  const height = options.height ?? 44 + bars.length * 28 + (options.xLabel === "" ? 32 : 50);
  checkSize("width", width, 200, 4096);
  checkSize("height", height, 100, 4096);
  for (const { name, value, spread = 0 } of bars) {
    if (Number.isFinite(value) && Number.isFinite(spread) && spread >= 0) continue;
    throw new OptionError(
      `chart: bar ${JSON.stringify(name)} must have a finite value and a spread from 0, got ${value} ± ${spread}.`,
    );
  }
  const body: string[] = [];
  const [top, bottom] = [42, height - (options.xLabel === "" ? 32 : 50)];
  const room = Math.min(maxNameWidth, width / 3);
  const names = bars.map(({ name }) => fitText(name, 12, room));
  const largest = Math.max(...bars.map(({ value }) => Math.abs(value))) || 1;
  const step = 10 ** (Math.floor(Math.log10(largest)) - 3);
  const labels = bars.map(({ value, spread }) => {
    const text = formatNumber(value, step, largest);
    return spread === undefined ? text : `${text} ± ${formatNumber(spread, step, largest)}`;
  });
  const left = 28 + Math.max(...names.map((name) => textWidth(name, 12)));
  const wide = 12 + Math.max(...labels.map((label) => textWidth(label, 12)));
  const isNegative = bars.some(({ value }) => value < 0);
  const ends = bars.flatMap(({ value, spread = 0 }) => [value - spread, value + spread]);
  const [low, high] = extent([0, ...ends])!;
  const x = makeScale([isNegative ? low : 0, high === low ? 1 : high], {
    range: [left + (isNegative ? wide : 0), width - 16 - wide],
    ticks: (width - left) / 85,
    room: "ticks",
  });
  for (const { at, text } of x.ticks) {
    body.push(
      `<path class="g" d="M${px(at)} ${px(top)}V${px(bottom)}"/>`,
      write(text, at, bottom + 18, { kind: "s", anchor: "middle" }),
    );
  }
  const row = (bottom - top) / bars.length;
  const thick = Math.min(22, row * 0.68);
  const zero = x.at(0);
  bars.forEach(({ value, spread = 0 }, i) => {
    const middle = top + row * (i + 0.5);
    const end = x.at(value);
    const [from, size] = [Math.min(zero, end), Math.abs(end - zero)];
    body.push(
      `<rect x="${px(from)}" y="${px(middle - thick / 2)}" width="${px(size)}" height="${px(thick)}" rx="2" style="fill:${colour(0)}"/>`,
      write(names[i]!, left - 10, middle + 4, { anchor: "end" }),
    );
    let beyond = value < 0 ? end : Math.max(end, zero);
    if (spread > 0) {
      const [a, b] = [
        x.at(Math.max(value - spread, isNegative ? -Infinity : 0)),
        x.at(value + spread),
      ];
      beyond = value < 0 ? a : b;
      body.push(whisker(a, b, middle));
    }
    const side = value < 0 ? { anchor: "end" as const } : {};
    body.push(write(labels[i]!, beyond + (value < 0 ? -6 : 6), middle + 4, side));
  });
  body.push(`<path class="a" d="M${px(zero)} ${px(top)}V${px(bottom)}"/>`);
  const label = fitText(options.xLabel, 12, width - left);
  body.push(
    write(label, (left + width - 16 - wide) / 2, bottom + 38, { kind: "s", anchor: "middle" }),
  );
  const about = bars.slice(0, 24).map(({ name }, i) => `${name} ${labels[i]!}`);
  return svg(options.title, `${options.xLabel}: ${about.join("; ")}.`, width, height, body);
}
