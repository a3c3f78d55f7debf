/** Points with names: what each method reaches against what it costs. */
import {
  type ChartOptions,
  checkSize,
  type Frame,
  frame,
  legend,
  mark,
  maxNameWidth,
  missing,
  svg,
  whisker,
  write,
} from "./chart-draw.ts";
import { extent, fitText, formatValue, textWidth } from "./chart-scale.ts";

export interface Mark {
  /** Written beside the point. */
  readonly name: string;
  readonly x: number;
  readonly y: number;
  /** Points of a group share colour and shape; the legend names groups. */
  readonly group?: string;
  readonly xSpread?: number;
  readonly ySpread?: number;
}

export interface ScatterChartOptions extends ChartOptions {
  /** 1 to 256. */
  readonly marks: readonly Mark[];
  readonly logX?: boolean;
  readonly logY?: boolean;
}

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

function overlap(a: Box, b: Box): number {
  const wide = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const high = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return Math.max(0, wide) * Math.max(0, high);
}

/** Where a name stands beside its point: the place of eight that covers least. */
function placeName(text: string, x: number, y: number, taken: readonly Box[], at: Frame): Box {
  const [width, height] = [textWidth(text, 12), 13];
  const [right, left, middle] = [x + 8, x - 8 - width, x - width / 2];
  const [level, above, below] = [y - 7, y - 20, y + 7];
  const places = [
    [right, level],
    [left, level],
    [middle, above],
    [middle, below],
    [right - 3, above + 3],
    [right - 3, below - 3],
    [left + 3, above + 3],
    [left + 3, below - 3],
  ] as const;
  let best: Box | undefined;
  let least = Infinity;
  for (const [left, top] of places) {
    const box = { x: left, y: top, width, height };
    const inside = { x: at.left, y: at.top, width: at.right - at.left, height: at.bottom - at.top };
    const outside = width * height - overlap(box, inside);
    const cost = taken.reduce((sum, other) => sum + overlap(box, other), outside * 4);
    // A rounding error of the areas is no reason to leave an earlier place.
    if (cost < least - 0.01) [best, least] = [box, cost];
  }
  return best!;
}

/**
 * Named points, one a method: what it reaches against what it costs.
 * Points that are not finite, or not positive on a logarithmic axis, are left out and counted below.
 * @throws OptionError for no points or more than 256, or a size outside its range.
 */
export function scatterChart(options: ScatterChartOptions): string {
  const { marks, width = 720, height = 400, logX = false, logY = false } = options;
  checkSize("width", width, 200, 4096);
  checkSize("height", height, 150, 4096);
  checkSize("the number of marks", marks.length, 1, 256);
  const fits = (value: number, log: boolean): boolean =>
    Number.isFinite(value) && !(log && value <= 0);
  const shown = marks.filter(({ x, y }) => fits(x, logX) && fits(y, logY));
  const groups = [...new Set(marks.map(({ group }) => group ?? ""))];
  const body: string[] = [];
  const space = legend(
    body,
    (groups.length > 1 ? groups : []).map((name, i) => ({
      name: name || "other",
      sign: (x, y) => mark(x + 14, y, i, 4.5),
    })),
    width,
  );
  const span = (value: number, spread = 0): number[] => [value, value - spread, value + spread];
  const xs = extent(
    shown.flatMap(({ x, xSpread }) => span(x, xSpread)),
    logX,
  );
  const ys = extent(
    shown.flatMap(({ y, ySpread }) => span(y, ySpread)),
    logY,
  );
  const at = frame(body, { ...options, room: 0.06 }, space, xs ?? [1, 2], ys ?? [1, 2]);
  // A whisker that passes zero has no end on a logarithmic axis: it goes to the edge.
  const orEdge = (end: number, edge: number): number => (Number.isNaN(end) ? edge : end);
  const taken: Box[] = [];
  const over: string[] = [];
  for (const one of shown) {
    const [x, y] = [at.x.at(one.x), at.y.at(one.y)];
    taken.push({ x: x - 5, y: y - 5, width: 10, height: 10 });
    if (one.xSpread) {
      const low = orEdge(at.x.at(one.x - one.xSpread), at.left);
      const high = at.x.at(one.x + one.xSpread);
      body.push(whisker(low, high, y));
      taken.push({ x: low, y: y - 4, width: high - low, height: 8 });
    }
    if (one.ySpread) {
      const low = orEdge(at.y.at(one.y - one.ySpread), at.bottom);
      const high = at.y.at(one.y + one.ySpread);
      body.push(whisker(low, high, x, true));
      taken.push({ x: x - 4, y: high, width: 8, height: low - high });
    }
    over.push(mark(x, y, groups.indexOf(one.group ?? ""), 4.5));
  }
  for (const one of shown) {
    const text = fitText(one.name, 12, maxNameWidth);
    const place = placeName(text, at.x.at(one.x), at.y.at(one.y), taken, at);
    taken.push(place);
    over.push(write(text, place.x, place.y + 11, { kind: "h" }));
  }
  body.push(...over);
  missing(body, marks.length - shown.length, logX || logY, width, height);
  const about = shown
    .slice(0, 24)
    .map(({ name, x, y }) => `${name} ${formatValue(y)} at ${formatValue(x)}`);
  const what = `${options.yLabel} against ${options.xLabel}: ${about.join("; ")}.`;
  return svg(options.title, what, width, height, body);
}
