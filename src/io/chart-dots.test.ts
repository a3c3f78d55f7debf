import { describe, expect, it } from "vitest";
import { dotChart } from "./chart-dots.ts";

const rows = [
  { name: "lora", points: [0.81, 0.83, 0.82], spread: 0.01 },
  { name: "<full>", points: [0.9] },
];

describe("a chart of points", () => {
  it("shows every run, the mean in figures, and names that are safe in XML", () => {
    const svg = dotChart({ title: "Accuracy", xLabel: "share right", rows });
    expect(svg.match(/<circle/g)).toHaveLength(4);
    expect(svg).toContain(">0.8200 ± 0.0100<");
    expect(svg).toContain("&lt;full&gt;");
    expect(svg).not.toContain("NaN");
    expect(svg).toContain("share right: lora 0.8200 ± 0.0100; &lt;full&gt; 0.9000.");
  });

  it("places a larger value further to the right", () => {
    const [a, , b] = [
      ...dotChart({ title: "x", xLabel: "x", rows }).matchAll(/<circle cx="([\d.]+)"/g),
    ].map(([, x]) => Number(x));
    expect(b! < Number.POSITIVE_INFINITY && b! > a!).toBe(true);
  });

  it("draws rows that are all one value", () => {
    const svg = dotChart({ title: "x", xLabel: "", rows: [{ name: "a", points: [0, 0] }] });
    expect(svg).not.toContain("NaN");
  });

  it("refuses rows without points and numbers that are none", () => {
    const draw = (points: number[]) => () =>
      dotChart({ title: "x", xLabel: "x", rows: [{ name: "a", points }] });
    expect(draw([])).toThrow(
      'chart: row "a" must have finite points and a spread from 0, got 0 points.',
    );
    expect(draw([Number.NaN])).toThrow("must have finite points");
    expect(() => dotChart({ title: "x", xLabel: "x", rows: [] })).toThrow(
      "chart: the number of rows must be from 1 to 64, got 0.",
    );
  });
});
