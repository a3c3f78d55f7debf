import { describe, expect, it } from "vitest";
import { eventStream } from "./sse.ts";

const options = (seen: string[]) => ({
  leave: () => void seen.push("leave"),
  errorOf: (error: unknown) => ({ error: { message: (error as Error).message } }),
  onEnd: (how: string) => void seen.push(how),
});

describe("eventStream", () => {
  it("sends lines of data and ends with [DONE]", async () => {
    const seen: string[] = [];
    const answer = eventStream(async (sink) => {
      await sink.send({ a: "x\ny" });
      await sink.send({ b: 2 });
    }, options(seen));
    expect(answer.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(await answer.text()).toBe('data: {"a":"x\\ny"}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n');
    expect(seen).toEqual(["done"]);
  });

  it("tells of a failure in the middle, and says no [DONE]", async () => {
    const seen: string[] = [];
    const answer = eventStream(async (sink) => {
      await sink.send(1);
      throw new Error("it broke");
    }, options(seen));
    expect(await answer.text()).toBe('data: 1\n\ndata: {"error":{"message":"it broke"}}\n\n');
    expect(seen).toEqual(["error"]);
  });

  it("lets who produces know that nobody listens any more", async () => {
    const seen: string[] = [];
    let sent = 0;
    const answer = eventStream(async (sink) => {
      for (; !seen.includes("leave"); sent++) await sink.send("x".repeat(10_000));
    }, options(seen));
    const reader = answer.body!.getReader();
    await reader.read();
    await reader.cancel();
    await new Promise((resolve) => setTimeout(resolve));
    expect(seen).toEqual(["leave", "left"]);
    // Of what nobody takes no more than a window is made.
    expect(sent).toBeLessThan(12);
  });
});
