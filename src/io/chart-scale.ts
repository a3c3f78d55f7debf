/** What charts measure with: axes, ticks, the width of texts, and fewer points for the same line. */
import { OptionError } from "../errors.ts";

export type ChartPoint = readonly [x: number, y: number];

/** From numbers to pixels, and where the axis is marked. */
export interface Scale {
  readonly ticks: readonly { readonly at: number; readonly text: string }[];
  /** NaN where the axis has no place for the number. */
  at(value: number): number;
}

export interface ScaleOptions {
  readonly log?: boolean;
  /** Pixels of the smallest and of the largest number. */
  readonly range: readonly [number, number];
  /** Ticks to aim for. */
  readonly ticks: number;
  /** Grow the domain to whole ticks, or by a share of itself at both ends; default 1/20. */
  readonly room?: number | "ticks";
}

/** Smallest and largest of the numbers that an axis can hold; `undefined` where there is none. */
export function extent(values: Iterable<number>, log = false): [number, number] | undefined {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value) || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : undefined;
}

/** Distance between ticks: 1, 2 or 5 times a power of ten, at least the span over the count. */
function tickStep(span: number, count: number): number {
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  // A share of 1.0000000000000002 is 1.
  const share = rough / power - 1e-9;
  return power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
}

const superscripts = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function superscript(exponent: number): string {
  const digits = [...String(Math.abs(exponent))].map((digit) => superscripts[Number(digit)]);
  return (exponent < 0 ? "⁻" : "") + digits.join("");
}

const suffixes = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
] as const;

/** A minus sign in place of a hyphen. */
function signed(text: string): string {
  return text.replace(/^-(?=.*[1-9])/, "−").replace(/^-/, "");
}

/** A number as a label: 12.5k, 0.03, 2×10⁻⁷; `step` is what neighbouring labels differ by. */
export function formatNumber(value: number, step: number, largest: number = value): string {
  const size = Math.max(Math.abs(largest), step);
  if (size >= 1e15 || size < 1e-3) {
    if (value === 0) return "0";
    const exponent = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
    const digits = Math.min(3, Math.max(0, exponent - Math.floor(Math.log10(step) + 1e-9)));
    const factor = (value / 10 ** exponent).toFixed(digits);
    return signed(`${factor === "1" ? "" : `${factor}×`}10${superscript(exponent)}`);
  }
  const [unit, suffix] = size >= 1e4 ? suffixes.find(([unit]) => size >= unit)! : [1, ""];
  const decimals = Math.min(6, Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9)));
  return signed((value / unit).toFixed(decimals)) + (value === 0 ? "" : suffix);
}

/** A single number in a label of its own, to about three digits. */
export function formatValue(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const power = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
  return formatNumber(value, 10 ** Math.max(power - 2, power >= 0 && power < 3 ? -2 : -Infinity));
}

export function makeScale(domain: readonly [number, number], options: ScaleOptions): Scale {
  return options.log ? logScale(domain, options) : linearScale(domain, options);
}

function linearScale(domain: readonly [number, number], options: ScaleOptions): Scale {
  let [low, high] = domain;
  if (low === high) {
    const room = Math.abs(low) / 2 || 1;
    [low, high] = [low - room, high + room];
  }
  const step = tickStep(high - low, options.ticks);
  // Half a millionth of a step, so that 0.30000000000000004 counts as 0.3.
  const slack = 1e-6;
  if (options.room === "ticks") {
    low = Math.floor(low / step + slack) * step;
    high = Math.ceil(high / step - slack) * step;
  } else {
    const room = (high - low) * (options.room ?? 0.05);
    [low, high] = [low - room, high + room];
  }
  const [from, to] = options.range;
  const at = (value: number): number => from + ((value - low) / (high - low)) * (to - from);
  const ticks: { at: number; text: string }[] = [];
  const largest = Math.max(Math.abs(low), Math.abs(high));
  for (let i = Math.ceil(low / step - slack); i <= high / step + slack; i++) {
    ticks.push({ at: at(i * step), text: formatNumber(i * step, step, largest) });
  }
  return { ticks, at };
}

function logScale(domain: readonly [number, number], options: ScaleOptions): Scale {
  let [low, high] = domain.map(Math.log10) as [number, number];
  const share = typeof options.room === "number" ? options.room : 0.05;
  const room = high === low ? 0.3 : (high - low) * share;
  [low, high] = [low - room, high + room];
  const [from, to] = options.range;
  const at = (value: number): number =>
    value > 0 ? from + ((Math.log10(value) - low) / (high - low)) * (to - from) : Number.NaN;
  // Decades, every n-th where they are many; more within few; else the marks of a linear axis.
  const decades = Math.floor(high) - Math.ceil(low) + 1;
  const every = Math.ceil(decades / Math.max(1, options.ticks));
  const factors = high - low > 3 ? [1] : high - low > 1.2 ? [1, 2, 5] : [1, 2, 3, 4, 5, 7];
  const values: number[] = [];
  for (let power = Math.floor(low); power <= Math.floor(high); power += 1) {
    if (power % every !== 0) continue;
    for (const factor of factors) values.push(factor * 10 ** power);
  }
  const slack = 1e-9;
  let inside = values.filter((value) => {
    const power = Math.log10(value);
    return power >= low - slack && power <= high + slack;
  });
  if (inside.length < 2) {
    const span = 10 ** high - 10 ** low;
    const step = tickStep(span, options.ticks);
    inside = [];
    for (let i = Math.ceil(10 ** low / step); i * step <= 10 ** high; i++) inside.push(i * step);
    return {
      ticks: inside.map((v) => ({ at: at(v), text: formatNumber(v, step, 10 ** high) })),
      at,
    };
  }
  const text = (value: number): string =>
    formatNumber(value, 10 ** Math.floor(Math.log10(value) + 1e-9));
  return { ticks: inside.map((value) => ({ at: at(value), text: text(value) })), at };
}

/** About how wide a text is in pixels, in a wide sans-serif such as DejaVu Sans. */
export function textWidth(text: string, fontSize: number): number {
  let width = 0;
  for (const character of text) {
    if (/[iljtfrI.,:;'|!()[\] ]/.test(character)) width += 0.36;
    else if (/[mwMW@%—]/.test(character)) width += 0.96;
    else if (/[A-Z&#+×=]/.test(character)) width += 0.72;
    else if (character.codePointAt(0)! >= 0x2e80) width += 1;
    else width += 0.62;
  }
  return width * fontSize;
}

/** Cut to a width, with an ellipsis. */
export function fitText(text: string, fontSize: number, width: number): string {
  if (textWidth(text, fontSize) <= width) return text;
  const characters = [...text];
  while (characters.length > 1 && textWidth(`${characters.join("")}…`, fontSize) > width) {
    characters.pop();
  }
  return `${characters.join("").trimEnd()}…`;
}

/**
 * At most four points for each of `buckets` equal parts of the x range (first, last, lowest,
 * highest), which draw the same line where a part is no wider than a pixel.
 *
 * Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.
 * @param points by ascending x, finite.
 */
export function thin<P extends readonly [number, number, ...unknown[]]>(
  points: readonly P[],
  buckets: number,
): P[] {
  if (points.length <= buckets * 4) return [...points];
  const first = points[0]![0];
  const span = points.at(-1)![0] - first || 1;
  const result: P[] = [];
  let bucket: number[] = [];
  let current = 0;
  const close = (): void => {
    if (bucket.length === 0) return;
    let [low, high] = [bucket[0]!, bucket[0]!];
    for (const i of bucket) {
      if (points[i]![1] < points[low]![1]) low = i;
      if (points[i]![1] > points[high]![1]) high = i;
    }
    const kept = new Set([bucket[0]!, low, high, bucket.at(-1)!]);
    for (const i of [...kept].sort((a, b) => a - b)) result.push(points[i]!);
    bucket = [];
  };
  points.forEach((point, i) => {
    const x = point[0];
    const at = Math.min(buckets - 1, Math.floor(((x - first) / span) * buckets));
    if (at !== current) close();
    current = at;
    bucket.push(i);
  });
  close();
  return result;
}

/**
 * Exponential moving average of y, with its start corrected, as TensorBoard draws it.
 * @param weight share of the past, in [0, 1).
 */
export function smoothed<P extends readonly [number, number, ...unknown[]]>(
  points: readonly P[],
  weight: number,
): P[] {
  if (!(weight >= 0 && weight < 1)) {
    throw new OptionError(`chart: smooth must be in [0, 1), got ${weight}.`);
  }
  let mean = 0;
  let total = 0;
  return points.map(([x, y, ...rest]) => {
    mean = weight * mean + (1 - weight) * y;
    total = weight * total + (1 - weight);
    return [x, mean / total, ...rest] as unknown as P;
  });
}
