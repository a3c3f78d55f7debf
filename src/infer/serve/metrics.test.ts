import { expect, it } from "vitest";
import { Histogram, ServeCounters } from "./metrics.ts";

it("counts values up to each bound", () => {
  const histogram = new Histogram([1, 2, 4]);
  for (const value of [0.5, 1, 1.5, 3, 9]) histogram.add(value);
  // At most 1: 0.5 and 1; at most 2: 1.5 too; at most 4: 3 too; 9 is in the count alone.
  expect(histogram.counts).toEqual({ bounds: [1, 2, 4], counts: [2, 3, 4], count: 5, sum: 15 });
});

it("gives tokens a second over the last ten seconds, of whatever clock", () => {
  let now = 5_000_400;
  const counters = new ServeCounters({ monotonic: () => now });
  const rate = (): number =>
    counters.snapshot({ queued: 0, running: 0, cache: {} as never, adapters: 0 }).tokensPerSecond;
  expect(rate()).toBe(0);
  for (let i = 0; i < 40; i++) {
    now += 100;
    counters.token();
  }
  // 40 tokens in 4 seconds.
  expect(rate()).toBeCloseTo(10, 6);
  for (let i = 0; i < 300; i++) {
    now += 50;
    counters.token();
  }
  expect(rate()).toBeCloseTo(20, 0);
  now += 60_000;
  expect(rate()).toBe(0);
  expect(counters.newTokens).toBe(340);
});
