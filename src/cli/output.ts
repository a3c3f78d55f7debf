/** What a person sees: tables and progress; and the one line of JSON that a machine reads. */

/** Where text goes and what it may look like. */
export interface OutputOptions {
  readonly isJson: boolean;
  /** Progress is redrawn in place. */
  readonly isTerminal: boolean;
  readonly hasColor: boolean;
  readonly columns: number;
}

export type Align = "left" | "right";

const codes = { bold: "1", dim: "2", red: "31", green: "32", yellow: "33", cyan: "36" } as const;

export class Output {
  readonly options: OutputOptions;
  #isProgressShown = false;

  constructor(options: OutputOptions) {
    this.options = options;
  }

  get isJson(): boolean {
    return this.options.isJson;
  }

  style(text: string, style: keyof typeof codes): string {
    return this.options.hasColor ? `\u001b[${codes[style]}m${text}\u001b[0m` : text;
  }

  /** A line for people; nothing in JSON mode. */
  line(text = ""): void {
    this.#clear();
    if (!this.isJson) process.stdout.write(`${text}\n`);
  }

  /** The result for machines; nothing otherwise. */
  json(value: unknown): void {
    this.#clear();
    if (this.isJson) process.stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** Text as it comes, without a line break. */
  write(text: string): void {
    this.#clear();
    if (!this.isJson) process.stdout.write(text);
  }

  warn(text: string): void {
    this.#clear();
    process.stderr.write(`${text}\n`);
  }

  /** Redraws one line on a terminal; elsewhere prints it when it `isMilestone`. */
  progress(text: string, isMilestone = false): void {
    if (this.options.isTerminal) {
      process.stderr.write(`\r\u001b[2K${text.slice(0, this.options.columns - 1)}`);
      this.#isProgressShown = true;
    } else if (isMilestone) process.stderr.write(`${text}\n`);
  }

  #clear(): void {
    if (!this.#isProgressShown) return;
    process.stderr.write("\r\u001b[2K");
    this.#isProgressShown = false;
  }

  /** Aligned columns under a heading. */
  table(
    head: readonly string[],
    rows: readonly (readonly string[])[],
    align: readonly Align[] = [],
  ): void {
    const widths = head.map((title, i) =>
      Math.max(title.length, ...rows.map((row) => (row[i] ?? "").length)),
    );
    const render = (row: readonly string[]): string =>
      row
        .map((cell, i) =>
          align[i] === "right" ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!),
        )
        .join("  ")
        .trimEnd();
    this.line(this.style(render(head), "bold"));
    this.line(this.style(widths.map((width) => "─".repeat(width)).join("  "), "dim"));
    for (const row of rows) this.line(render(row));
  }
}

/** `1:05`, or `1:02:03` from an hour on. */
export function showTime(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number): string => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** `12.3 k`, `4.5 M` */
export function showCount(count: number): string {
  for (const [size, unit] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (count >= size) return `${(count / size).toPrecision(3)} ${unit}`;
  }
  return String(Math.round(count));
}

/** `512 kB`, `1.20 GB`: powers of 1000. */
export function showBytes(bytes: number): string {
  for (const [size, unit] of [
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ] as const) {
    if (bytes >= size) return `${(bytes / size).toPrecision(3)} ${unit}`;
  }
  return `${Math.round(bytes)} bytes`;
}

export function showPercent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

const ticks = "▁▂▃▄▅▆▇█";

/** A line of bars, lowest to highest. */
export function sparkline(values: readonly number[], width = 40): string {
  if (values.length === 0) return "";
  const size = Math.min(width, values.length);
  const means = Array.from({ length: size }, (_, i) => {
    const part = values.slice(
      Math.floor((i * values.length) / size),
      Math.floor(((i + 1) * values.length) / size),
    );
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
  const [low, high] = [Math.min(...means), Math.max(...means)];
  return means
    .map(
      (v) => ticks[high === low ? 0 : Math.round(((v - low) / (high - low)) * (ticks.length - 1))],
    )
    .join("");
}
