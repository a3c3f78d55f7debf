import { describe, expect, it } from "vitest";
import { CallerCounts, KeyRing, keysIn } from "./keys.ts";

describe("KeyRing", () => {
  it("knows its keys, and tells callers apart without giving keys away", async () => {
    const ring = await KeyRing.of(["first-key-1", "second-key-2", "first-key-1"]);
    const first = await ring.check("Bearer first-key-1");
    const second = await ring.check("bearer  second-key-2");
    expect(first.id).toMatch(/^[0-9a-f]{8}$/);
    expect(second.id).not.toBe(first.id);
    for (const wrong of ["first-key-12", "first-key-", "FIRST-KEY-1", "x"]) {
      await expect(ring.check(`Bearer ${wrong}`)).rejects.toMatchObject({
        status: 401,
        code: "invalid_api_key",
        message: "Incorrect API key provided.",
      });
    }
    for (const header of [undefined, "", "first-key-1", "Basic first-key-1", "Bearer"]) {
      await expect(ring.check(header)).rejects.toMatchObject({ status: 401, code: null });
    }
  });

  it("without keys lets everybody in, and takes no key that can be guessed", async () => {
    const open = await KeyRing.of([]);
    expect(open.isOpen).toBe(true);
    expect(await open.check(undefined)).toEqual({ id: "" });
    await expect(KeyRing.of(["long-enough", "short"])).rejects.toThrow(
      'keys: key 2 has 5 characters, a key must have 8 to 512 — "openssl rand -hex 24" makes one.',
    );
  });

  it("reads keys line by line", () => {
    expect(keysIn("# ours\nalpha-key\r\n\n  beta-key  \n#gamma\n")).toEqual([
      "alpha-key",
      "beta-key",
    ]);
  });
});

describe("CallerCounts", () => {
  it("holds keys to what is open at once, each for itself", () => {
    const counts = new CallerCounts({ open: 3, openPerKey: 2 });
    const [a, b] = [{ id: "a" }, { id: "b" }];
    const leave = counts.enter(a, 0);
    counts.enter(a, 0);
    expect(() => counts.enter(a, 0)).toThrow("this key may have 2 requests at once");
    counts.enter(b, 0);
    expect(() => counts.enter(b, 0)).toThrow("The server answers 3 requests at once");
    leave();
    leave();
    expect(counts.open).toBe(2);
    counts.enter(a, 0);
  });

  it("holds keys to so many a minute, and says when to come again", () => {
    const counts = new CallerCounts({ open: 99, openPerKey: 99, perMinute: 6 });
    const ask = (ms: number): void => counts.enter({ id: "a" }, ms)();
    for (let i = 0; i < 6; i++) ask(0);
    try {
      ask(0);
      throw new Error("was let in");
    } catch (error) {
      // One of six a minute comes every ten seconds.
      expect(error).toMatchObject({ status: 429, headers: { "retry-after": "10" } });
    }
    ask(10_000);
    expect(() => ask(10_001)).toThrow("this key may have 6 requests a minute");
    counts.enter({ id: "b" }, 10_001);
  });
});
