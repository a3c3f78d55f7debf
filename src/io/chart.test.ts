import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import { barChart, type ChartPoint, lineChart, scatterChart } from "./chart.ts";
import { fitText, formatNumber, makeScale, smoothed, textWidth, thin } from "./chart-scale.ts";

const noise = new Rng(1).fold("chart").uniforms(200_000);

/** Checks that tags close in order, and gives the elements' texts. */
function wellFormed(svg: string): string[] {
  const open: string[] = [];
  const texts: string[] = [];
  let at = 0;
  for (const match of svg.matchAll(/<(\/?)([a-z]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/g)) {
    const between = svg.slice(at, match.index);
    expect(between).not.toMatch(/[<>]|&(?!(amp|lt|gt|quot|apos);)/);
    if (between.trim()) texts.push(between.trim());
    at = match.index + match[0].length;
    if (match[4]) continue;
    if (match[1]) expect(open.pop()).toBe(match[2]);
    else open.push(match[2]!);
  }
  expect(svg.slice(at).trim()).toBe("");
  expect(open).toEqual([]);
  return texts;
}

const labels = (svg: string): string[] =>
  [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text]) => text!);

describe("makeScale", () => {
  const texts = (domain: readonly [number, number], options = {}): string[] =>
    makeScale(domain, { range: [0, 100], ticks: 5, room: 0, ...options }).ticks.map(
      ({ text }) => text,
    );

  it.each([
    // Spans of 10, 1, 20000 over five ticks: steps of 2, 0.2, 5000 (the rough 4000 goes up).
    [[0, 10], {}, ["0", "2", "4", "6", "8", "10"]],
    [[0, 1], {}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]],
    [[0, 20000], {}, ["0", "5k", "10k", "15k", "20k"]],
    [[-1, 1], {}, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]],
    [[0, 5e-7], {}, ["0", "10⁻⁷", "2×10⁻⁷", "3×10⁻⁷", "4×10⁻⁷", "5×10⁻⁷"]],
    [[1, 10000], { log: true }, ["1", "10", "100", "1000", "10k"]],
    [[1e-5, 1e-1], { log: true }, ["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1"]],
    [[20, 120], { log: true }, ["20", "30", "40", "50", "70", "100"]],
    [[1.31, 1.36], { log: true }, ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36"]],
  ] as const)("marks %j %j", (domain, options, expected) => {
    expect(texts(domain, options)).toEqual(expected);
  });

  it("puts numbers at their share of the range", () => {
    const scale = makeScale([0, 10], { range: [200, 100], ticks: 5, room: 0 });
    expect([0, 5, 10].map(scale.at)).toEqual([200, 150, 100]);
    const log = makeScale([1, 100], { range: [0, 100], ticks: 5, room: 0, log: true });
    expect([1, 10, 100].map(log.at)).toEqual([0, 50, 100]);
    expect(log.at(0)).toBeNaN();
  });

  it("gives a domain of one number room", () => {
    expect(texts([5, 5], { ticks: 4 })).toEqual(["4", "6"]);
    expect(texts([0, 0], { ticks: 4 })).toEqual(["−1.0", "−0.5", "0.0", "0.5", "1.0"]);
  });
});

describe("formatNumber", () => {
  it.each([
    [1250, 250, 2000, "1250"],
    [12500, 500, 20000, "12.5k"],
    [2e6, 1e6, 3e6, "2M"],
    [-0.25, 0.05, 1, "−0.25"],
    [-1e-20, 0.5, 1, "0.0"],
    [3e20, 1e20, 3e20, "3×10²⁰"],
  ] as const)("writes %d by steps of %d", (value, step, largest, text) => {
    expect(formatNumber(value, step, largest)).toBe(text);
  });
});

describe("thin", () => {
  it("keeps first, last, lowest and highest of each part", () => {
    // Eight points in two parts: [0, 4) and [4, 7].
    const points = [1, 5, 0, 2, 3, 9, 8, 4].map((y, x): ChartPoint => [x, y]);
    expect(thin(points, 2)).toEqual(points);
    const twelve = [1, 5, 3, 0, 2, 2, 7, 7, 7, 7, 6, 9].map((y, x): ChartPoint => [x, y]);
    // Parts [0, 5.5) and [5.5, 11]: of 1 5 3 0 2 2 the 3 and a 2 go, of 7 7 7 7 6 9 three 7.
    expect(thin(twelve, 2).map(([x]) => x)).toEqual([0, 1, 3, 5, 6, 10, 11]);
  });

  it("never loses a spike", () => {
    const points = Array.from(noise, (y, x): ChartPoint => [x, x === 77_777 ? 50 : y]);
    const kept = thin(points, 300);
    expect(kept.length).toBeLessThanOrEqual(1200);
    expect(kept).toContainEqual([77_777, 50]);
  });
});

describe("smoothed", () => {
  it("weighs the past and corrects the start", () => {
    // Weight 1/2: 4; (4/4 + 2/2) / (3/4) = 8/3; (1/8·4 + 1/4·2 + 1/2·6) / (7/8) = 32/7.
    const result = smoothed(
      [
        [0, 4],
        [1, 2],
        [2, 6],
      ] as const,
      0.5,
    );
    expect(result.map(([, y]) => y)).toEqual([4, 2 / 0.75, 4 / 0.875]);
  });

  it("leaves equal values alone", () => {
    for (const [, y] of smoothed(
      Array.from({ length: 50 }, (_, x): ChartPoint => [x, 3]),
      0.97,
    )) {
      expect(y).toBeCloseTo(3, 12);
    }
  });

  it("refuses a weight of one", () => {
    expect(() => smoothed([], 1)).toThrow("chart: smooth must be in [0, 1), got 1.");
  });
});

describe("lineChart", () => {
  const axes = { title: "Loss", xLabel: "step", yLabel: "nats" };

  it("puts points where they belong", () => {
    const svg = lineChart({
      ...axes,
      width: 400,
      height: 300,
      series: [
        {
          name: "a",
          points: [
            [0, 0],
            [5, 10],
            [10, 0],
          ],
        },
      ],
    });
    wellFormed(svg);
    const [, d] = /<path class="l" d="M([^"]*)"/.exec(svg)!;
    const numbers = d!.split(" ").map(Number);
    const [a, b, c] = [0, 2, 4].map((i) => numbers.slice(i, i + 2)) as [
      number[],
      number[],
      number[],
    ];
    // The plot ends 22 pixels before the right edge; the middle point is half way and highest.
    expect(c[0]).toBe(378);
    expect(b[0]! - a[0]!).toBeCloseTo(c[0]! - b[0]!, 0);
    expect(a[1]).toBe(c[1]);
    expect(b[1]).toBeLessThan(a[1]!);
    expect(svg.match(/<circle/g)).toHaveLength(3);
  });

  it("stays small and quick for a million points", () => {
    const points = Array.from(
      { length: 250_000 },
      (_, x): ChartPoint => [x, 2 + noise[x % noise.length]!],
    );
    const many = Array.from({ length: 4 }, (_, i) => ({ name: `run ${i}`, points, smooth: 0.9 }));
    const svg = lineChart({ ...axes, series: many });
    wellFormed(svg);
    expect(svg.length).toBeLessThan(60_000);
    expect(svg.length).toBeGreaterThan(10_000);
  });

  it("breaks the line at what is not finite, and counts it", () => {
    const points = [3, Number.NaN, 2, 1, Infinity, 0.5].map((y, x): ChartPoint => [x, y]);
    const svg = lineChart({ ...axes, series: [{ name: "a", points }] });
    const [, d] = /<path class="l" d="([^"]*)"/.exec(svg)!;
    expect(d!.match(/M/g)).toHaveLength(3);
    expect(labels(svg)).toContain("2 points not shown: not finite");
  });

  it("leaves out what a logarithmic axis cannot hold, and says so", () => {
    const svg = lineChart({
      ...axes,
      logY: true,
      series: [
        {
          name: "a",
          points: [
            [0, 10],
            [1, 0],
            [2, 1],
          ],
        },
      ],
    });
    expect(labels(svg)).toContain("1 point not shown: not finite, or not positive");
  });

  it("says that nothing is there where no point is finite", () => {
    const svg = lineChart({ ...axes, series: [{ name: "a", points: [[0, Number.NaN]] }] });
    wellFormed(svg);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    expect(labels(svg)).toContain("No points to show");
  });

  it("escapes every text and drops what XML forbids", () => {
    const bad = `</text><script>alert("1")</script>&'\u0000\ud800`;
    const svg = lineChart({
      title: bad,
      xLabel: bad,
      yLabel: bad,
      width: 2000,
      series: [
        { name: bad, points: [[0, 1]] },
        { name: "b", points: [[0, 2]] },
      ],
    });
    const texts = wellFormed(svg);
    expect(svg).not.toContain("<script");
    const escaped =
      "&lt;/text&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&apos;\ufffd\ufffd";
    expect(texts.filter((text) => text === escaped)).toHaveLength(4);
  });

  it("has no script, link, id or outside reference", () => {
    const svg = lineChart({ ...axes, series: [{ name: "a", points: [[0, 1]] }] });
    expect(svg.replace("http://www.w3.org/2000/svg", "")).not.toMatch(
      /http|href|\bid=|url\(|on\w+=/,
    );
    expect(svg).toContain("@media(prefers-color-scheme:dark)");
  });

  it("names its series in a legend, cut to the width", () => {
    const name = "a name ".repeat(20);
    const series = [name, "short"].map((text) => ({ name: text, points: [[0, 1]] as const }));
    const texts = labels(lineChart({ ...axes, series }));
    expect(texts).toContain("short");
    expect(texts).toContain(fitText(name, 12, 220));
    expect(textWidth(fitText(name, 12, 220), 12)).toBeLessThanOrEqual(220);
  });

  it.each([
    [{ series: [] }, "chart: the number of series must be from 1 to 32, got 0."],
    [{ width: 10 }, "chart: width must be from 200 to 4096, got 10."],
    [{ height: Number.NaN }, "chart: height must be from 150 to 4096, got NaN."],
  ])("refuses %j", (change, sentence) => {
    const series = [{ name: "a", points: [[0, 1]] as const }];
    expect(() => lineChart({ ...axes, series, ...change })).toThrow(sentence);
  });
});

describe("barChart", () => {
  it("draws lengths in proportion, from zero", () => {
    const svg = barChart({
      title: "Loss",
      xLabel: "nats",
      bars: [
        { name: "one", value: 1, spread: 0.25 },
        { name: "two", value: 2 },
        { name: "minus", value: -0.5 },
      ],
    });
    wellFormed(svg);
    const rects = [...svg.matchAll(/<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"/g)].map(
      ([, x, width]) => [Number(x), Number(width)] as const,
    );
    const [one, two, minus] = rects as [ChartPoint, ChartPoint, ChartPoint];
    expect(one[0]).toBe(two[0]);
    expect(two[1] / one[1]).toBeCloseTo(2, 2);
    expect(minus[1] / one[1]).toBeCloseTo(0.5, 2);
    expect(minus[0] + minus[1]).toBeCloseTo(one[0], 0);
    expect(labels(svg)).toEqual(
      expect.arrayContaining(["1.000 ± 0.250", "2.000", "−0.500", "one", "minus", "nats"]),
    );
  });

  it("refuses a value that is not finite", () => {
    const bars = [{ name: "a", value: Number.NaN }];
    expect(() => barChart({ title: "", xLabel: "", bars })).toThrow(
      'chart: bar "a" must have a finite value and a spread from 0, got NaN ± 0.',
    );
  });
});

describe("scatterChart", () => {
  it("names every point without covering another name", () => {
    const marks = Array.from({ length: 12 }, (_, i) => ({
      name: `method ${i}`,
      x: 10 + (i % 4) * 30,
      y: 1 + Math.floor(i / 4),
      group: i % 2 ? "odd" : "even",
      ySpread: 0.1,
    }));
    const svg = scatterChart({ title: "", xLabel: "ms", yLabel: "loss", logX: true, marks });
    wellFormed(svg);
    const boxes = [...svg.matchAll(/<text x="([\d.]+)" y="([\d.]+)" class="h">([^<]*)</g)].map(
      ([, x, y, text]) => ({ x: Number(x), y: Number(y), width: textWidth(text!, 12), text }),
    );
    expect(boxes.map(({ text }) => text)).toEqual(marks.map(({ name }) => name));
    for (const a of boxes) {
      for (const b of boxes) {
        if (a === b || Math.abs(a.y - b.y) >= 12) continue;
        expect(a.x + a.width <= b.x || b.x + b.width <= a.x, `${a.text} on ${b.text}`).toBe(true);
      }
    }
    expect(labels(svg)).toEqual(expect.arrayContaining(["odd", "even"]));
  });

  it("draws whiskers to the edge where they pass zero of a logarithmic axis", () => {
    const marks = [
      { name: "a", x: 1, y: 1, xSpread: 2, ySpread: 2 },
      { name: "b", x: 100, y: 100 },
    ];
    const axes = { title: "", xLabel: "x", yLabel: "y", logX: true, logY: true };
    const svg = scatterChart({ ...axes, marks });
    wellFormed(svg);
    expect(svg).not.toContain("NaN");
  });
});
