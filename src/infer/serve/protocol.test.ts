import { MessageChannel } from "node:worker_threads";
import { afterEach, describe, expect, it } from "vitest";
import {
  adapterOf,
  answerOf,
  engineOf,
  randomPrompt,
  turns,
} from "../../../test/support/serve-engine.ts";
import { FormatError, OptionError, PlasticityError, StateError } from "../../errors.ts";
import type { ServeOptions } from "./engine.ts";
import {
  EngineClient,
  EngineHost,
  type EngineHostOptions,
  type FromEngine,
  fromWire,
  type ToEngine,
  toWire,
} from "./protocol.ts";
import { BusyError } from "./queue.ts";

const cleanups: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

/** An engine behind a real port, whose messages are copied as between threads. */
async function connected(options: ServeOptions = {}, hostOptions: EngineHostOptions = {}) {
  const engine = await engineOf(options);
  const { port1, port2 } = new MessageChannel();
  const host = new EngineHost(engine, (message) => port2.postMessage(message), hostOptions);
  const client = new EngineClient((message) => port1.postMessage(message));
  const seen: FromEngine["type"][] = [];
  port2.on("message", (message: ToEngine) => host.receive(message));
  port1.on("message", (message: FromEngine) => {
    seen.push(message.type);
    client.receive(message);
  });
  cleanups.push(async () => {
    await engine.close();
    port1.close();
  });
  return { engine, client, seen };
}

describe("EngineClient and EngineHost", () => {
  it("serve as the engine itself does", async () => {
    const { engine, client, seen } = await connected();
    const request = { prompt: randomPrompt(1, 20), maxNewTokens: 12, temperature: 1, seed: 3 };
    const handle = client.submit({ ...request, logprobs: 1, logitBias: new Map([[5, 2]]) });
    const others = [1, 2, 3].map((seed) => client.submit({ ...request, seed }));
    const tokens: number[] = [];
    for await (const { token, logprob } of handle) {
      expect(logprob?.token).toBe(token);
      tokens.push(token);
    }
    await Promise.all(others.map(({ result }) => result));
    const direct = engine.submit({ ...request, logprobs: 1, logitBias: new Map([[5, 2]]) });
    expect(await answerOf(handle)).toEqual(await answerOf(direct));
    expect([...(await handle.result).tokens]).toEqual(tokens);
    expect(client.open).toBe(0);
    // Tokens of one pass came together: fewer messages than the 48 tokens.
    expect(seen.filter((type) => type === "tokens").length).toBeLessThan(25);
  });

  it("cancel before the next step", async () => {
    const { engine, client } = await connected();
    const handle = client.submit({ prompt: [1, 2, 3], maxNewTokens: 200 });
    await turns(10);
    handle.cancel();
    const { finishReason, tokens } = await handle.result;
    expect(finishReason).toBe("aborted");
    expect(tokens.length).toBeLessThan(40);
    expect(engine.metrics()).toMatchObject({ running: 0, cache: { used: 0 } });
    handle.cancel();
  });

  it("load and unload adapters, embed, and give numbers", async () => {
    const vectors = [Float32Array.of(1, 2)];
    const { client } = await connected(
      {},
      {
        loadAdapter: async (source) => {
          if (source !== "a folder") throw new FormatError(`${source}: no adapter.`);
          return adapterOf(1);
        },
        embedder: { embed: async (texts) => ({ vectors, tokens: texts.length }) },
      },
    );
    expect(await client.call("load", { name: "fr", source: "a folder" })).toBe(1);
    await expect(client.call("load", { name: "x", source: "elsewhere" })).rejects.toThrow(
      new FormatError("elsewhere: no adapter."),
    );
    await client.submit({ prompt: [1], maxNewTokens: 2, adapter: "fr" }).result;
    const { metrics, adapters } = await client.call("stats");
    expect(adapters).toEqual([{ name: "fr", slot: 1, users: 0 }]);
    expect(metrics.newTokens).toBe(2);
    expect(await client.call("embed", { texts: ["a"] })).toEqual({ vectors, tokens: 1 });
    await client.call("unload", { name: "fr" });
    expect((await client.call("stats")).adapters).toEqual([]);
    await client.call("drain");
    await expect(client.submit({ prompt: [1] }).result).rejects.toThrow(
      "serve: the engine takes no more requests.",
    );
  });

  it("make of a request's extra what cannot be sent", async () => {
    const { client } = await connected(
      {},
      { prepare: (extra) => ({ isEnd: (token) => token === (extra as { end: number }).end }) },
    );
    const request = { prompt: [1, 2], maxNewTokens: 8 };
    const { tokens } = await client.submit(request).result;
    const end = tokens[3]!;
    const cut = await client.submit({ ...request, extra: { end } }).result;
    expect([...cut.tokens]).toEqual([...tokens].slice(0, tokens.indexOf(end) + 1));
    const bare = (await connected()).client;
    await expect(bare.submit({ ...request, extra: 1 }).result).rejects.toThrow(
      "serve: this engine takes no extra of a request.",
    );
    await expect(bare.call("embed", { texts: [] })).rejects.toThrow(
      "serve: this engine gives no vectors of texts.",
    );
  });

  it("give errors with their kind, code and details", async () => {
    const { client } = await connected({ running: 1, queued: 1 });
    const bad = client.submit({ prompt: [] });
    await expect(bad.result).rejects.toBeInstanceOf(OptionError);
    const handles = [1, 2, 3].map(() => client.submit({ prompt: [1], maxNewTokens: 50 }));
    const ends = await Promise.allSettled(handles.map(({ result }) => result));
    const refused = ends.flatMap((end) => (end.status === "rejected" ? [end.reason] : []));
    expect(refused.length).toBeGreaterThan(0);
    expect(refused[0]).toBeInstanceOf(BusyError);
    expect(refused[0].details).toEqual({ limit: "queued" });
    const wild = fromWire(toWire(new TypeError("x is undefined")));
    expect([wild.code, wild.message]).toEqual(["internal", "x is undefined"]);
    // Only what can be sent goes along.
    const error = new StateError("s", { f: () => 1, n: 2 });
    expect(toWire(error).details).toEqual({ n: 2 });
    expect(fromWire({ ...toWire(error), name: "constructor" })).toBeInstanceOf(PlasticityError);
  });

  it("fail all that is open when the other side is gone", async () => {
    const client = new EngineClient(() => {});
    const handle = client.submit({ prompt: [1] });
    const call = client.call("stats");
    client.receive({ type: "tokens", tokens: [{ id: 1, token: 7 }] });
    const gone = new StateError("serve: the worker ended.");
    client.fail(gone);
    const read: number[] = [];
    await expect(
      (async () => {
        for await (const { token } of handle) read.push(token);
      })(),
    ).rejects.toBe(gone);
    expect(read).toEqual([7]);
    await expect(handle.result).rejects.toBe(gone);
    await expect(call).rejects.toBe(gone);
    expect(() => client.submit({ prompt: [1] })).toThrow(gone);
    // What was sent before and comes late is nobody's.
    client.receive({ type: "tokens", tokens: [{ id: 1, token: 8 }] });
    expect(client.open).toBe(0);
  });
});
