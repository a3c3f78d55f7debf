/** Rows of points: each run of a method, their mean and its spread, for methods that lie close together. */
import { OptionError } from "../errors.ts";
import {
  type ChartOptions,
  checkSize,
  colour,
  mark,
  maxNameWidth,
  px,
  svg,
  whisker,
  write,
} from "./chart-draw.ts";
import { extent, fitText, formatNumber, makeScale, textWidth } from "./chart-scale.ts";

export interface DotRow {
  readonly name: string;
  /** One a run; at least one. */
  readonly points: readonly number[];
  /** Half the length of a whisker about the mean: a standard error or a deviation. Default none. */
  readonly spread?: number;
}

export interface DotChartOptions extends Omit<ChartOptions, "yLabel"> {
  /** 1 to 64, from the top. */
  readonly rows: readonly DotRow[];
}

/**
 * Horizontal rows, one a method: faint points of its runs, a mark at their mean with a whisker, and the mean in
 * figures. The axis covers what is there and need not begin at zero.
 * @throws OptionError for no rows, more than 64, a row without points, or a number that is not finite.
 */
export function dotChart(options: DotChartOptions): string {
  const { rows, width = 720 } = options;
  checkSize("the number of rows", rows.length, 1, 64);
  const height = options.height ?? 44 + rows.length * 28 + (options.xLabel === "" ? 32 : 50);
  checkSize("width", width, 200, 4096);
  checkSize("height", height, 100, 4096);
  for (const { name, points, spread = 0 } of rows) {
    const isFine = points.every(Number.isFinite) && Number.isFinite(spread) && spread >= 0;
    if (points.length > 0 && isFine) continue;
    throw new OptionError(
      `chart: row ${JSON.stringify(name)} must have finite points and a spread from 0, got ${points.length} points.`,
    );
  }
  const body: string[] = [];
  const [top, bottom] = [42, height - (options.xLabel === "" ? 32 : 50)];
  const means = rows.map(({ points }) => points.reduce((a, b) => a + b, 0) / points.length);
  const ends = rows.flatMap(({ points, spread = 0 }, i) => [
    ...points,
    means[i]! - spread,
    means[i]! + spread,
  ]);
  const [low, high] = extent(ends)!;
  const largest = Math.max(...ends.map(Math.abs)) || 1;
  // Four figures of what tells rows apart, not of the values themselves.
  const step = 10 ** (Math.floor(Math.log10(high - low || largest)) - 2);
  const labels = rows.map(({ spread }, i) => {
    const text = formatNumber(means[i]!, step, largest);
    return spread === undefined ? text : `${text} ± ${formatNumber(spread, step, largest)}`;
  });
  const names = rows.map(({ name }) => fitText(name, 12, Math.min(maxNameWidth, width / 3)));
  const left = 28 + Math.max(...names.map((name) => textWidth(name, 12)));
  const right = width - 24 - Math.max(...labels.map((label) => textWidth(label, 12)));
  const x = makeScale([low, high === low ? high + (Math.abs(high) || 1) : high], {
    range: [left, Math.max(left + 40, right)],
    ticks: (right - left) / 85,
    room: 0.06,
  });
  for (const { at, text } of x.ticks) {
    body.push(
      `<path class="g" d="M${px(at)} ${px(top)}V${px(bottom)}"/>`,
      write(text, at, bottom + 18, { kind: "s", anchor: "middle" }),
    );
  }
  const each = (bottom - top) / rows.length;
  rows.forEach(({ points, spread = 0 }, i) => {
    const middle = top + each * (i + 0.5);
    const centre = x.at(means[i]!);
    body.push(
      write(names[i]!, left - 12, middle + 4, { anchor: "end" }),
      ...points.map(
        (point) =>
          `<circle cx="${px(x.at(point))}" cy="${px(middle)}" r="3" opacity=".45" style="fill:${colour(0)}"/>`,
      ),
    );
    if (spread > 0) {
      body.push(whisker(x.at(means[i]! - spread), x.at(means[i]! + spread), middle));
    }
    body.push(
      mark(centre, middle, 3, 4.5),
      write(labels[i]!, width - 16, middle + 4, { anchor: "end" }),
    );
  });
  body.push(`<path class="a" d="M${px(left)} ${px(bottom)}H${px(right)}"/>`);
  const label = fitText(options.xLabel, 12, width - left);
  body.push(write(label, (left + right) / 2, bottom + 38, { kind: "s", anchor: "middle" }));
  const about = rows.slice(0, 24).map(({ name }, i) => `${name} ${labels[i]!}`);
  return svg(options.title, `${options.xLabel}: ${about.join("; ")}.`, width, height, body);
}
