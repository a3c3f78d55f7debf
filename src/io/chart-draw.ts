/** What every chart is drawn with: colours, texts, marks, legend, axes. */
import { OptionError } from "../errors.ts";
import { fitText, makeScale, type Scale, textWidth } from "./chart-scale.ts";

export interface ChartOptions {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  /** Pixels, 200 to 4096; default 720. */
  readonly width?: number;
  /** Pixels, 150 to 4096; default 400; of bars: as their number needs. */
  readonly height?: number;
}

const light = [
  "#2563c9",
  "#d4590f",
  "#1d8a5f",
  "#b03a95",
  "#8a6a10",
  "#6650c8",
  "#c2303f",
  "#5b6675",
];
const dark = [
  "#79aeff",
  "#ff9f5f",
  "#4fd3a3",
  "#f08fd9",
  "#dfc363",
  "#b0a2ff",
  "#ff8490",
  "#aab5c3",
];
const dashes = ["", "7 4", "2 3", "9 3 2 3"];
export const maxNameWidth = 220;

function style(): string {
  const colours = (list: readonly string[]): string =>
    list.map((colour, i) => `--c${i}:${colour}`).join(";");
  return [
    ".pc{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;",
    `--bg:#fff;--ink:#1c232b;--soft:#59636e;--grid:#e3e7eb;--axis:#8b96a1;${colours(light)}}`,
    `@media(prefers-color-scheme:dark){.pc{--bg:#12161c;--ink:#e8ecf0;--soft:#a3adb8;--grid:#2a313a;--axis:#6f7a86;${colours(dark)}}}`,
    ".pc text{fill:var(--ink)}.pc .s{fill:var(--soft)}.pc .t{font-size:15px;font-weight:600}",
    ".pc .g{stroke:var(--grid);fill:none}.pc .a{stroke:var(--axis);fill:none}",
    ".pc .l{fill:none;stroke-linejoin:round;stroke-linecap:round}.pc .h{paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}",
  ].join("");
}

/** Text for XML: escaped, and without the characters that XML has no place for. */
function escapeXml(text: string): string {
  const clean = text
    .replace(/\p{Surrogate}/gu, "\ufffd")
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what XML forbids.
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd");
  return clean
    .replace(/&/g, "&amp;")
    .replace(/</g, "&lt;")
    .replace(/>/g, "&gt;")
    .replace(/"/g, "&quot;")
    .replace(/'/g, "&apos;");
}

export function px(value: number): string {
  return String(Math.round(value * 10) / 10);
}

interface TextOptions {
  readonly kind?: string;
  readonly anchor?: "middle" | "end";
}

export function write(text: string, x: number, y: number, options: TextOptions = {}): string {
  const kind = options.kind ? ` class="${options.kind}"` : "";
  const anchor = options.anchor ? ` text-anchor="${options.anchor}"` : "";
  return `<text x="${px(x)}" y="${px(y)}"${kind}${anchor}>${escapeXml(text)}</text>`;
}

export function colour(index: number): string {
  return `var(--c${index % light.length})`;
}

/** A point of one of four shapes. */
export function mark(x: number, y: number, index: number, r: number): string {
  const fill = `style="fill:${colour(index)};stroke:var(--bg)"`;
  const [a, b] = [px(x), px(y)];
  const wide = r * 1.25;
  switch (index % 4) {
    case 1:
      return `<path d="M${a} ${b}m${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z" ${fill}/>`;
    case 2:
      return `<path d="M${a} ${b}m0 ${-wide}l${wide} ${2.2 * r}h${-2 * wide}z" ${fill}/>`;
    case 3:
      return `<path d="M${a} ${b}m0 ${-wide}l${wide} ${wide}l${-wide} ${wide}l${-wide} ${-wide}z" ${fill}/>`;
    default:
      return `<circle cx="${a}" cy="${b}" r="${r}" ${fill}/>`;
  }
}

export function checkSize(what: string, value: number, low: number, high: number): void {
  if (Number.isFinite(value) && value >= low && value <= high) return;
  throw new OptionError(`chart: ${what} must be from ${low} to ${high}, got ${value}.`);
}

/** The whole file around what is drawn. */
export function svg(
  title: string,
  about: string,
  width: number,
  height: number,
  body: string[],
): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" class="pc" role="img" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
    `<title>${escapeXml(title)}</title><desc>${escapeXml(about)}</desc><style>${style()}</style>`,
    `<rect width="${width}" height="${height}" style="fill:var(--bg)"/>`,
    write(fitText(title, 17, width - 32), 16, 27, { kind: "t" }),
    ...body,
    "</svg>\n",
  ].join("\n");
}

/** A row of names with what stands for them; returns the rows' height. */
export function legend(
  body: string[],
  items: readonly { readonly name: string; readonly sign: (x: number, y: number) => string }[],
  width: number,
): number {
  let [x, y] = [16, 49];
  for (const { name, sign } of items) {
    const text = fitText(name, 12, maxNameWidth);
    const size = 30 + textWidth(text, 12) + 16;
    if (x > 16 && x + size > width - 8) [x, y] = [16, y + 19];
    body.push(sign(x, y - 4), write(text, x + 30, y));
    x += size;
  }
  return items.length === 0 ? 0 : y - 30;
}

export interface Frame {
  readonly x: Scale;
  readonly y: Scale;
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

export interface FrameOptions extends ChartOptions {
  readonly logX?: boolean;
  readonly logY?: boolean;
  /** Room beside the points on the x axis, a share of its length. */
  readonly room: number;
}

/** Axes and grid below a legend of some height. */
export function frame(
  body: string[],
  options: FrameOptions,
  legendHeight: number,
  xs: readonly [number, number],
  ys: readonly [number, number],
): Frame {
  const { width = 720, height = 400, xLabel, yLabel, logX = false, logY = false } = options;
  const top = 62 + legendHeight;
  const bottom = Math.max(top + 40, height - (xLabel === "" ? 32 : 50));
  const y = makeScale(ys, { log: logY, range: [bottom, top], ticks: (bottom - top) / 48 });
  const left = 24 + Math.max(0, ...y.ticks.map(({ text }) => textWidth(text, 12)));
  const right = width - 22;
  const { room } = options;
  const x = makeScale(xs, { log: logX, range: [left, right], ticks: (right - left) / 85, room });
  for (const { at, text } of y.ticks) {
    body.push(
      `<path class="g" d="M${px(left)} ${px(at)}H${px(right)}"/>`,
      write(text, left - 8, at + 4, { kind: "s", anchor: "end" }),
    );
  }
  body.push(`<path class="a" d="M${px(left)} ${px(bottom)}H${px(right)}"/>`);
  for (const { at, text } of x.ticks) {
    body.push(
      `<path class="a" d="M${px(at)} ${px(bottom)}v5"/>`,
      write(text, at, bottom + 19, { kind: "s", anchor: "middle" }),
    );
  }
  body.push(write(fitText(yLabel, 12, width - 32), 16, top - 13, { kind: "s" }));
  const middle = (left + right) / 2;
  body.push(
    write(fitText(xLabel, 12, right - left), middle, bottom + 39, { kind: "s", anchor: "middle" }),
  );
  return { x, y, left, right, top, bottom };
}

export function stroke(index: number, width: number): string {
  const dash = dashes[Math.floor(index / light.length) % dashes.length]!;
  return `style="stroke:${colour(index)};stroke-width:${width}${dash && `;stroke-dasharray:${dash}`}"`;
}

/** Says how many points have no place. */
export function missing(
  body: string[],
  count: number,
  log: boolean,
  width: number,
  height: number,
): void {
  if (count === 0) return;
  const why = log ? "not finite, or not positive" : "not finite";
  const text = `${count} ${count === 1 ? "point" : "points"} not shown: ${why}`;
  body.push(write(text, width - 22, height - 11, { kind: "s", anchor: "end" }));
}

/** A horizontal whisker, or a vertical one where `upright`. */
export function whisker(a: number, b: number, across: number, upright = false): string {
  const d = upright
    ? `M${px(across - 4)} ${px(a)}h8m-4 0V${px(b)}m-4 0h8`
    : `M${px(a)} ${px(across - 4)}v8m0 -4H${px(b)}m0 -4v8`;
  return `<path d="${d}" style="stroke:var(--soft);fill:none"/>`;
}
