/** Many streams at once: nothing is lost, and each answer is that of the same request alone. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Exchange } from "../src/server/exchange.ts";
import { serve, type TestServer } from "./support/server.ts";

let server: TestServer;
const ended: WeakRef<Exchange>[] = [];
beforeAll(async () => {
  server = await serve({ onEnd: (exchange) => void ended.push(new WeakRef(exchange)) });
});
afterAll(() => server.close());

const asked = (i: number) => ({
  model: "builtin",
  messages: [
    {
      role: "user" as const,
      content: `Tell me about number ${i % 7}, please. ${"again ".repeat(i % 5)}`,
    },
  ],
  max_tokens: 4 + (i % 9),
  seed: i,
  temperature: i % 3 === 0 ? 0 : 1,
});

async function streamed(
  i: number,
): Promise<{ text: string; reason: string | null; tokens: number }> {
  const stream = await server.client.chat.completions.create({
    ...asked(i),
    stream: true,
    stream_options: { include_usage: true },
  });
  let [text, tokens] = ["", 0];
  let reason: string | null = null;
  for await (const { choices, usage } of stream) {
    text += choices[0]?.delta.content ?? "";
    reason = choices[0]?.finish_reason ?? reason;
    tokens = usage?.completion_tokens ?? tokens;
  }
  return { text, reason, tokens };
}

it("answers fifty streams as it answers each alone", async () => {
  const together = await Promise.all(Array.from({ length: 50 }, (_, i) => streamed(i)));
  const { metrics } = await server.engine.stats();
  expect(metrics.requests).toMatchObject({ submitted: 50, refused: 0, aborted: 0, failed: 0 });
  // They shared passes.
  expect(metrics.stepRows / metrics.steps).toBeGreaterThan(4);
  for (let i = 0; i < 50; i++) {
    expect([i, await streamed(i)]).toEqual([i, together[i]]);
    expect(together[i]!.reason).toMatch(/stop|length/);
  }
  expect(server.app.open.size).toBe(0);
});

it("keeps nothing of requests that have ended", async () => {
  expect(ended.length).toBeGreaterThanOrEqual(100);
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const left = (): number => ended.filter((one) => one.deref() !== undefined).length;
  for (let i = 0; i < 20 && left() > 5; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    collect();
  }
  // The last ones of a connection may still be known to it.
  expect(left()).toBeLessThanOrEqual(5);
});
