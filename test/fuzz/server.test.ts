import { expect, it } from "vitest";
import { Rng } from "../../src/tensor/rng.ts";
import { fuzzServer, requestOf } from "./server.ts";

it("holds the server's app to the interface, whatever is sent", async () => {
  const { failures, answers, cases } = await fuzzServer(600, 3);
  expect(failures).toEqual([]);
  expect(Object.values(answers).reduce((a, b) => a + b, 0)).toBe(cases);
  // Enough of them get through to the engine.
  expect(answers["200"]! + answers["200 stream"]!).toBeGreaterThan(60);
});

it("makes the same request of a seed and a number each time", () => {
  const of = (i: number) => requestOf(new Rng(1).fold("server").fold(i));
  for (let i = 0; i < 50; i++) {
    expect(of(i).path).toBe(of(i).path);
    if (typeof of(i).init.body === "string") expect(of(i).init.body).toBe(of(i).init.body);
  }
  expect(
    new Set(Array.from({ length: 50 }, (_, i) => String(of(i).init.body))).size,
  ).toBeGreaterThan(20);
});
