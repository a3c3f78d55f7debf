import { describe, expect, test } from "vitest";
import { OptionError, StateError } from "../../errors.ts";
import { mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { spec, trace } from "../compile.ts";
import { type Entry, SessionCache } from "./cache.ts";
import { nodeOrt } from "./node.ts";

const backend = nodeOrt({ threads: 1 });

/** Sessions that multiply by a number, with a log of what was loaded. */
function factory(log: string[]): (factor: number, bytes?: number) => [string, () => Entry] {
  return (factor, bytes = 100) => [
    `×${factor}`,
    () => ({
      bytes,
      load: async () => {
        log.push(`×${factor}`);
        const { program } = trace((x: Value) => mul(x, factor), [spec([2])]);
        return (await backend).load(program);
      },
    }),
  ];
}

const x = Tensor.from([1, 2]);

describe("SessionCache", () => {
  test("loads a key once, however many ask, and runs it", async () => {
    const loaded: string[] = [];
    const times = factory(loaded);
    const cache = new SessionCache();
    const leases = await Promise.all([cache.acquire(...times(3)), cache.acquire(...times(3))]);
    expect(loaded).toEqual(["×3"]);
    expect(leases[0]!.executable).toBe(leases[1]!.executable);
    expect([...leases[0]!.executable.runSync!([x])[0]!.data]).toEqual([3, 6]);
    for (const lease of leases) await lease.done();
    await (await cache.acquire(...times(3))).done();
    expect(loaded).toEqual(["×3"]);
    expect([cache.count, cache.bytes]).toEqual([1, 100]);
    await cache.clear();
    expect([cache.count, cache.bytes]).toEqual([0, 0]);
  });

  test("releases what was not used for longest when there are too many", async () => {
    const times = factory([]);
    const cache = new SessionCache({ maxCount: 2 });
    const first = await cache.acquire(...times(1));
    await first.done();
    await (await cache.acquire(...times(2))).done();
    await (await cache.acquire(...times(1))).done();
    await (await cache.acquire(...times(3))).done();
    expect(["×1", "×2", "×3"].map((key) => cache.has(key))).toEqual([true, false, true]);
    await (await cache.acquire(...times(4))).done();
    expect(cache.has("×1")).toBe(false);
    await expect(first.executable.run([x])).rejects.toThrow(StateError);
    await cache.clear();
  });

  test("keeps within its bytes, before the new session is loaded", async () => {
    const times = factory([]);
    const cache = new SessionCache({ maxBytes: 250 });
    for (const factor of [1, 2]) await (await cache.acquire(...times(factor))).done();
    expect(cache.bytes).toBe(200);
    let held = Infinity;
    const [key, entry] = times(3, 150);
    const lease = await cache.acquire(key, () => {
      const made = entry();
      return {
        ...made,
        load: () => {
          held = cache.bytes;
          return made.load();
        },
      };
    });
    expect(held).toBe(100);
    expect(["×1", "×2", "×3"].map((name) => cache.has(name))).toEqual([false, true, true]);
    await lease.done();
    await cache.clear();
  });

  test("does not release sessions in use, and makes room once they are done", async () => {
    const times = factory([]);
    const cache = new SessionCache({ maxBytes: 150 });
    const one = await cache.acquire(...times(1));
    const two = await cache.acquire(...times(2));
    expect(cache.bytes).toBe(200);
    expect([...(await one.executable.run([x]))[0]!.data]).toEqual([1, 2]);
    await one.done();
    expect([cache.has("×1"), cache.has("×2")]).toEqual([false, true]);
    await cache.clear();
    expect(cache.has("×2")).toBe(true);
    await two.done();
    await expect(two.done()).rejects.toThrow("cache: done was called twice on one lease.");
    await cache.clear();
  });

  test("forgets a key that fails to load", async () => {
    const cache = new SessionCache();
    const failing = (): Entry => ({ bytes: 1, load: () => Promise.reject(new Error("no memory")) });
    await expect(cache.acquire("bad", failing)).rejects.toThrow("no memory");
    expect(cache.count).toBe(0);
    await (await cache.acquire("bad", factory([])(5)[1])).done();
    await cache.clear();
  });

  test("refuses bounds that are not numbers from 0", () => {
    expect(() => new SessionCache({ maxBytes: -1 })).toThrow(OptionError);
    expect(() => new SessionCache({ maxCount: NaN })).toThrow(
      /^cache: maxBytes and maxCount must be at least 0, got 2000000000 and NaN\.$/,
    );
  });
});
