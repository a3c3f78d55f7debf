import { describe, expect, it } from "vitest";
import { groupRows } from "./groups.ts";
import { BusyError, FairQueue } from "./queue.ts";

const item = (key: string, cost = 100, priority = 0) => ({ key, cost, priority });

function drain<T extends ReturnType<typeof item>>(queue: FairQueue<T>, count: number): T[] {
  return Array.from({ length: count }, () => {
    const next = queue.peek(() => true)!;
    queue.take(next);
    return next;
  });
}

describe("FairQueue", () => {
  it("gives keys equal shares of tokens, however many requests they have", () => {
    const queue = new FairQueue<ReturnType<typeof item>>();
    for (let i = 0; i < 100; i++) queue.push(item("many", 512));
    const only = item("one", 512);
    queue.push(only);
    expect(drain(queue, 2)).toContain(only);
    // Requests of 128 tokens against requests of 512: four for one.
    const mixed = new FairQueue<ReturnType<typeof item>>();
    for (let i = 0; i < 100; i++) mixed.push(item("long", 512));
    for (let i = 0; i < 100; i++) mixed.push(item("short", 128));
    const served = drain(mixed, 50).map(({ key }) => key);
    expect(served.filter((key) => key === "short")).toHaveLength(40);
  });

  it("serves what costs more than a turn gives, after some turns", () => {
    const queue = new FairQueue<ReturnType<typeof item>>();
    const big = item("big", 5000);
    queue.push(big);
    for (let i = 0; i < 20; i++) queue.push(item("small", 512));
    const served = drain(queue, 21);
    expect(served.indexOf(big)).toBe(9);
  });

  it("gives the same item until it is taken, keeps order and priority within a key", () => {
    const queue = new FairQueue<ReturnType<typeof item>>();
    const [a, b, urgent] = [item("k"), item("k"), item("k", 100, 5)];
    for (const one of [a, b, urgent]) queue.push(one);
    expect(queue.peek(() => true)).toBe(urgent);
    expect(queue.peek(() => true)).toBe(urgent);
    expect(drain(queue, 3)).toEqual([urgent, a, b]);
    expect(queue.peek(() => true)).toBeUndefined();
  });

  it("passes keys over that may not run now", () => {
    const queue = new FairQueue<ReturnType<typeof item>>();
    const [a, b] = [item("a"), item("b")];
    queue.push(a);
    queue.push(b);
    expect(queue.peek((key) => key !== "a")).toBe(b);
    expect(queue.peek(() => false)).toBeUndefined();
    expect(queue.remove(a)).toBe(true);
    expect(queue.remove(a)).toBe(false);
    expect(queue.size).toBe(1);
  });

  it("refuses more than its limits with a sentence", () => {
    const queue = new FairQueue<ReturnType<typeof item>>({ queued: 3, queuedPerKey: 2 });
    queue.push(item("a"));
    queue.push(item("a"));
    expect(() => queue.push(item("a"))).toThrow(
      "serve: 2 requests of this key wait, which is all that it may have — try again later.",
    );
    queue.push(item("b"));
    const full = (): void => queue.push(item("c"));
    expect(full).toThrow(BusyError);
    expect(full).toThrow("serve: 3 requests wait, which is all that are taken — try again later.");
    expect(() => new FairQueue({ queued: 0 })).toThrow(
      "queue: queued must be a whole number from 1 to 1e6, got 0.",
    );
  });
});

describe("groupRows", () => {
  it("splits where padding would cost more than another pass", () => {
    const cost = { fixed: 100, perBlock: 1 };
    const blocks = (rows: number[], fixed = 100): number[][] =>
      groupRows(rows, (n) => n, { ...cost, fixed });
    // Together 4 · 50 + 100 = 300; apart (1 · 50 + 100) + (3 · 2 + 100) = 256.
    expect(blocks([2, 50, 1, 2])).toEqual([[50], [2, 2, 1]]);
    // Together 2 · 50 + 100 = 200; apart (50 + 100) + (2 + 100) = 252.
    expect(blocks([2, 50])).toEqual([[50, 2]]);
    // Of equal cost, fewer passes.
    expect(blocks([3, 3, 3], 0)).toEqual([[3, 3, 3]]);
    expect(blocks([])).toEqual([]);
  });
});
