import { afterEach, describe, expect, it } from "vitest";
import {
  adapterOf,
  alone,
  answerOf,
  backend,
  engineOf,
  model,
  params,
  randomPrompt,
  sessions,
  turns,
  vocabSize,
} from "../../../test/support/serve-engine.ts";
import { loraBank } from "../../adapters/bank.ts";
import { Rng } from "../../tensor/rng.ts";
import type { TokenConstraint } from "../constraint.ts";
import { Decoder } from "../decoder.ts";
import type { ServeEngine, ServeOptions } from "./engine.ts";
import type { ServeHandle } from "./feed.ts";
import { BusyError } from "./queue.ts";
import type { ServeRequest } from "./stream.ts";

const open: ServeEngine[] = [];
afterEach(async () => {
  for (const engine of open.splice(0)) await engine.close();
});

async function engine(options: ServeOptions & { pages?: number } = {}): Promise<ServeEngine> {
  const made = await engineOf(options);
  open.push(made);
  return made;
}

const adapters = { fr: adapterOf(1), de: adapterOf(2, 8), it: adapterOf(3) } as const;

/** A request of any kind: greedy or drawn, with or without an adapter. */
function anyRequest(seed: number): ServeRequest {
  const rng = new Rng(seed).fold("request");
  const adapter = [undefined, "fr", "de", "it"][rng.integer(4)];
  return {
    prompt: randomPrompt(seed, 1 + rng.integer(60)),
    maxNewTokens: 1 + rng.integer(40),
    seed,
    logprobs: 2,
    ...(seed % 3 > 0 && { temperature: 0.5 + rng.uniform(), topP: 0.95 }),
    ...(seed % 4 === 1 && { frequencyPenalty: 0.5, repetitionPenalty: 1.2 }),
    ...(seed % 5 === 2 && { topK: 7, logitBias: new Map([[3, 4]]) }),
    ...(adapter && { adapter }),
  };
}

describe("ServeEngine", () => {
  it("gives each of many requests what it gives that one alone, to the bit", async () => {
    const busy = await engine({ running: 32, prefillTokens: 96 });
    for (const [name, loaded] of Object.entries(adapters)) busy.loadAdapter(name, loaded);
    const requests = Array.from({ length: 40 }, (_, i) => anyRequest(i));
    const rng = new Rng(8);
    const answers: Promise<unknown>[] = [];
    for (const request of requests) {
      answers.push(answerOf(busy.submit(request)));
      if (answers.length < 24) continue;
      // Others join and leave at any time.
      const guest = busy.submit(anyRequest(100 + answers.length));
      await turns(rng.integer(4));
      if (rng.integer(2) === 0) guest.cancel();
    }
    const together = await Promise.all(answers);
    expect(busy.metrics().stepRows / busy.metrics().steps).toBeGreaterThan(8);
    const lone = await engine();
    for (const [name, loaded] of Object.entries(adapters)) lone.loadAdapter(name, loaded);
    for (const [i, request] of requests.entries()) {
      expect(together[i], `request ${i}`).toEqual(await answerOf(lone.submit(request)));
    }
    expect(lone.metrics().cachedTokens).toBe(0);
  }, 60_000);

  it("makes the tokens that a decoder makes", async () => {
    const own = await engine();
    const slots = new Map(
      Object.entries(adapters).map(([name, loaded]) => [name, own.loadAdapter(name, loaded)]),
    );
    const bank = loraBank(model, { slots: 4, maxRank: 8, targetModules: ["q_proj", "v_proj"] });
    for (const [name, { adapter, params: numbers }] of Object.entries(adapters)) {
      bank.fill(slots.get(name)!, adapter, numbers);
    }
    const decoder = new Decoder(model, params, backend, { bank });
    for (let seed = 0; seed < 12; seed++) {
      const { logitBias: _, isEnd: __, onToken: ___, ...request } = anyRequest(seed);
      const { tokens } = await own.submit(request).result;
      const [expected] = await decoder.generate([Int32Array.from(request.prompt)], {
        ...request,
        slots: [slots.get(request.adapter ?? "") ?? 0],
      });
      expect([...tokens]).toEqual([...expected!]);
    }
    await decoder.release();
  });

  it("reads a prefix once, and gives the same tokens with it", async () => {
    const own = await engine();
    own.loadAdapter("fr", adapters.fr);
    const prefix = [...randomPrompt(1, 40)];
    const ask = (tail: number[], adapter?: string): ServeHandle =>
      own.submit({
        prompt: [...prefix, ...tail],
        maxNewTokens: 12,
        logprobs: 1,
        ...(adapter && { adapter }),
      });
    await ask([1, 2, 3]).result;
    const before = own.metrics();
    const second = ask([4, 5]);
    const { usage } = await second.result;
    expect(usage).toEqual({ promptTokens: 42, cachedTokens: 40, newTokens: 12 });
    const after = own.metrics();
    expect(after.prefills - before.prefills).toBe(1);
    expect(after.prefillTokens - before.prefillTokens).toBe(2);
    expect(after.cachedTokens - before.cachedTokens).toBe(40);
    const cold = await alone({ prompt: [...prefix, 4, 5], maxNewTokens: 12, logprobs: 1 });
    expect(await answerOf(second)).toEqual(cold);
    // What an adapter reads is another text.
    expect((await ask([4, 5], "fr").result).usage.cachedTokens).toBe(0);
    expect((await ask([4, 5], "fr").result).usage.cachedTokens).toBe(40);
    // The last token is always read: 48 tokens are six pages, of which five are taken.
    const whole = randomPrompt(2, 48);
    await own.submit({ prompt: whole, maxNewTokens: 1 }).result;
    const again = await own.submit({ prompt: whole, maxNewTokens: 1 }).result;
    expect(again.usage.cachedTokens).toBe(40);
  });

  it("reads one prompt for several answers, whose branches copy the page that they share", async () => {
    const own = await engine();
    const prompt = randomPrompt(3, 21);
    const request = (seed: number): ServeRequest => ({
      prompt,
      maxNewTokens: 10,
      temperature: 1,
      seed,
      logprobs: 0,
    });
    const handles = [0, 1, 2, 3].map((seed) => own.submit(request(seed)));
    const answers = await Promise.all(handles.map(answerOf));
    const { prefillTokens, cache } = own.metrics();
    expect(prefillTokens).toBe(21);
    // Of four users of the page with five tokens three copy it; the last one has it for itself.
    expect(cache.copies).toBe(3);
    expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(4);
    for (const [seed, answer] of answers.entries()) {
      expect(answer).toEqual(await alone(request(seed)));
    }
  });

  it("keeps answers whole when memory is short: prefixes go, requests give way and come back", async () => {
    // 24 pages of 8 tokens; each request needs up to 10 of them.
    const own = await engine({ pages: 24, running: 12 });
    for (const [name, loaded] of Object.entries(adapters)) own.loadAdapter(name, loaded);
    const requests = Array.from({ length: 14 }, (_, i) => {
      const { prompt, ...rest } = anyRequest(40 + i);
      return { ...rest, prompt: Array.from(prompt).slice(0, 30), maxNewTokens: 48 };
    });
    const handles = requests.map((request) => own.submit(request));
    const lone = await engine();
    for (const [name, loaded] of Object.entries(adapters)) lone.loadAdapter(name, loaded);
    for (const [i, handle] of handles.entries()) {
      const answer = await answerOf(handle);
      expect(answer, `request ${i}`).toEqual(await answerOf(lone.submit(requests[i]!)));
    }
    const { preemptions, replayedTokens, cache, requests: ended } = own.metrics();
    expect(preemptions).toBeGreaterThan(3);
    expect(replayedTokens).toBeGreaterThan(0);
    expect(cache.evictions).toBeGreaterThan(0);
    expect(cache.used).toBe(0);
    expect(ended.length).toBe(14);
  }, 60_000);

  it("stops what is cancelled, at once where it waits, and frees its pages", async () => {
    const own = await engine({ running: 1 });
    const handles = [0, 1, 2].map((seed) =>
      own.submit({ prompt: randomPrompt(seed, 30), maxNewTokens: 200 }),
    );
    await turns(12);
    expect(own.metrics()).toMatchObject({ running: 1, queued: 2 });
    handles[1]!.cancel();
    expect((await handles[1]!.result).finishReason).toBe("aborted");
    expect(own.metrics()).toMatchObject({ running: 1, queued: 1 });
    handles[0]!.cancel();
    const { finishReason, tokens } = await handles[0]!.result;
    expect(finishReason).toBe("aborted");
    expect(tokens.length).toBeGreaterThan(0);
    expect(tokens.length).toBeLessThan(20);
    // Who reads tokens and leaves cancels as well.
    for await (const { token } of handles[2]!) {
      expect(token).toBeLessThan(vocabSize);
      break;
    }
    expect((await handles[2]!.result).finishReason).toBe("aborted");
    const { requests, cache } = own.metrics();
    expect(requests.aborted).toBe(3);
    expect(cache.used).toBe(0);
  });

  it("does not let a key with many requests hold up a key with one", async () => {
    const own = await engine({ running: 4 });
    const ended: string[] = [];
    const ask = (key: string): Promise<unknown> =>
      own.submit({ prompt: [1, 2, 3], maxNewTokens: 30, key }).result.then(() => ended.push(key));
    const many = Array.from({ length: 100 }, () => ask("many"));
    await turns(5);
    const one = ask("one");
    await one;
    expect(ended.length).toBeLessThan(30);
    await Promise.all(many);
    expect(own.metrics().requests.length).toBe(101);
  });

  it("lets no key run more than its share", async () => {
    const own = await engine({ running: 8, runningPerKey: 2 });
    const handles = Array.from({ length: 6 }, () =>
      own.submit({ prompt: [1, 2], maxNewTokens: 40, key: "a" }),
    );
    await turns(8);
    expect(own.metrics()).toMatchObject({ running: 2, queued: 4 });
    await Promise.all(handles.map(({ result }) => result));
  });

  it("refuses requests beyond its limits with a sentence", async () => {
    const own = await engine({ running: 1, queued: 3, queuedPerKey: 2 });
    const ask = (key: string): ServeHandle => own.submit({ prompt: [1], maxNewTokens: 5, key });
    ask("a");
    ask("a");
    expect(() => ask("a")).toThrow(
      "serve: 2 requests of this key wait, which is all that it may have — try again later.",
    );
    ask("b");
    expect(() => ask("c")).toThrow(BusyError);
    expect(() => ask("c")).toThrow(
      "serve: 3 requests wait, which is all that are taken — try again later.",
    );
    expect(own.metrics().requests).toMatchObject({ submitted: 3, refused: 3 });
  });

  it("says what is wrong with a request", async () => {
    const own = await engine({ pages: 6 });
    const ask = (request: Partial<ServeRequest>) => () =>
      own.submit({ prompt: [1], maxNewTokens: 4, ...request });
    expect(ask({ prompt: [] })).toThrow(
      "serve: the prompt has 0 tokens, the model takes 1 to 255 and the one to come.",
    );
    expect(ask({ prompt: [1, 97] })).toThrow(
      "serve: token 1 of the prompt is 97, tokens are 0 to 96.",
    );
    expect(ask({ maxNewTokens: 0 })).toThrow("maxNewTokens must be a whole number from 1, got 0.");
    expect(ask({ maxNewTokens: 48 })).toThrow(
      "serve: 1 tokens and 48 to come do not fit into the cache, which holds 48 — ask for fewer, or give the cache more memory.",
    );
    expect(ask({ adapter: "nl" })).toThrow('serve: there is no adapter "nl" — none is loaded.');
    expect(ask({ temperature: -1 })).toThrow("temperature must be in [0, 100], got -1.");
    expect(ask({ logitBias: new Map([[97, 1]]) })).toThrow(
      "logitBias: 97 is no token, they are 0 to 96.",
    );
    expect(ask({ logprobs: 21 })).toThrow("logprobs must be a whole number from 0 to 20, got 21.");
    expect(ask({ priority: 0.5 })).toThrow(
      "priority must be a whole number from -100 to 100, got 0.5.",
    );
    await expect(engineOf({ running: 0 })).rejects.toThrow(
      "serve: running must be a whole number from 1 to 256, got 0.",
    );
  });

  it("loads and unloads adapters while others run, and compiles nothing for it", async () => {
    const own = await engine();
    const loaded = sessions.loaded;
    own.loadAdapter("fr", adapters.fr);
    const request = { prompt: randomPrompt(4, 20), maxNewTokens: 60, logprobs: 0 };
    const french = own.submit({ ...request, adapter: "fr" });
    const base = own.submit(request);
    await turns(6);
    own.loadAdapter("de", adapters.de);
    const german = own.submit({ ...request, adapter: "de" });
    await turns(4);
    await expect(own.unloadAdapter("fr", { refuse: true })).rejects.toThrow(
      'serve: adapter "fr" is used by 1 requests — wait for them, or unload it without refuse.',
    );
    // A new content under the name: who began with the old one ends with it.
    own.loadAdapter("fr", adapters.it);
    const changed = own.submit({ ...request, adapter: "fr" });
    let isGone = false;
    const gone = own.unloadAdapter("de").then(() => {
      isGone = true;
    });
    expect(() => own.submit({ ...request, adapter: "de" })).toThrow(
      'serve: there is no adapter "de" — there are fr.',
    );
    await turns(2);
    expect(isGone).toBe(false);
    const answers = await Promise.all([french, base, german, changed].map(answerOf));
    await gone;
    expect(own.adapters.map(({ name, users }) => [name, users])).toEqual([["fr", 0]]);
    expect(sessions.loaded).toBe(loaded);
    const single = { fr: adapters.fr, de: adapters.de };
    expect(answers[0]).toEqual(await alone({ ...request, adapter: "fr" }, single));
    expect(answers[1]).toEqual(await alone(request));
    expect(answers[2]).toEqual(await alone({ ...request, adapter: "de" }, single));
    expect(answers[3]).toEqual(await alone({ ...request, adapter: "fr" }, { fr: adapters.it }));
    // All slots can be had again.
    for (const name of ["a", "b", "c"]) own.loadAdapter(name, adapters.de);
    expect(() => own.loadAdapter("d", adapters.de)).toThrow(
      "serve: all 4 slots hold an adapter — unload one, or make the engine with more.",
    );
  });

  it("follows constraints, ends where they end, and stops at stop tokens", async () => {
    const own = await engine();
    const asked: number[] = [];
    /** Even tokens, three of them; then the text is whole. */
    const even = (): TokenConstraint & { made: number[] } => ({
      made: [],
      allowed() {
        const bits = new Uint32Array(Math.ceil(vocabSize / 32));
        if (this.made.length < 3) bits.fill(0x55555555);
        asked.push(this.made.length);
        return bits;
      },
      accept(token) {
        this.made.push(token);
      },
      isComplete() {
        return this.made.length === 3;
      },
      get isFinished() {
        return this.made.length === 3;
      },
    });
    const constraint = even();
    const { tokens, finishReason } = await own.submit({
      prompt: [1, 2, 3],
      maxNewTokens: 9,
      temperature: 2,
      seed: 4,
      constraint,
    }).result;
    expect(finishReason).toBe("stop");
    expect([...tokens]).toEqual(constraint.made);
    expect(tokens.every((token) => token % 2 === 0)).toBe(true);
    const free = await own.submit({ prompt: [1, 2, 3], maxNewTokens: 9 }).result;
    const stop = free.tokens[4]!;
    const cut = await own.submit({ prompt: [1, 2, 3], maxNewTokens: 9, stopIds: [stop] }).result;
    expect(cut.finishReason).toBe("stop");
    expect([...cut.tokens]).toEqual([...free.tokens].slice(0, free.tokens.indexOf(stop)));
    const forced = own.submit({
      prompt: [1, 2, 3],
      maxNewTokens: 4,
      logitBias: new Map([[11, 100]]),
      isEnd: () => true,
    });
    expect([...(await forced.result).tokens]).toEqual([11]);
  });

  it("fails one request without harm to the others", async () => {
    const own = await engine();
    const request = { prompt: randomPrompt(5, 12), maxNewTokens: 20, logprobs: 0 };
    const good = own.submit(request);
    const bad = own.submit({
      ...request,
      isEnd: () => {
        throw new Error("a callback that fails");
      },
    });
    await expect(bad.result).rejects.toThrow("a callback that fails");
    await expect(
      (async () => {
        for await (const _ of bad);
      })(),
    ).rejects.toThrow("a callback that fails");
    expect(await answerOf(good)).toEqual(await alone(request));
    expect(own.metrics()).toMatchObject({ requests: { failed: 1, length: 1 }, cache: { used: 0 } });
  });

  it("holds the same memory after 500 short requests as after 50", async () => {
    const own = await engine({ pages: 64, running: 16, queued: 2000 });
    const loaded = sessions.loaded;
    const wave = async (from: number, count: number): Promise<void> => {
      const handles = Array.from({ length: count }, (_, i) =>
        own.submit({ prompt: randomPrompt(from + i, 1 + (i % 20)), maxNewTokens: 4 }),
      );
      await Promise.all(handles.map(({ result }) => result));
    };
    await wave(0, 50);
    const early = own.metrics();
    await wave(50, 450);
    const late = own.metrics();
    expect(late.requests.length).toBe(500);
    expect(late.cache.used).toBe(0);
    expect(late.cache.kept + late.cache.free).toBe(early.cache.pages);
    expect(sessions.loaded).toBe(loaded);
  }, 30_000);

  it("drains: what it has is done, nothing more is taken", async () => {
    const own = await engineOf();
    const released = sessions.released;
    const handle = own.submit({ prompt: [1, 2], maxNewTokens: 6 });
    const drained = own.drain();
    expect(() => own.submit({ prompt: [1] })).toThrow("serve: the engine takes no more requests.");
    await drained;
    expect((await handle.result).finishReason).toBe("length");
    await own.close();
    expect(sessions.released).toBe(released + 1);
    const closed = await engineOf();
    const cut = closed.submit({ prompt: [1, 2], maxNewTokens: 100 });
    await turns(4);
    await closed.close();
    expect((await cut.result).finishReason).toBe("aborted");
  });

  it("counts latencies and passes", async () => {
    const own = await engine();
    await own.submit({ prompt: randomPrompt(1, 30), maxNewTokens: 10 }).result;
    const { latencies, steps, stepRows, prefills, newTokens, passSeconds, tokensPerSecond } =
      own.metrics();
    expect({ steps, stepRows, prefills, newTokens }).toEqual({
      steps: 9,
      stepRows: 9,
      prefills: 4,
      newTokens: 10,
    });
    expect(latencies.firstToken.count).toBe(1);
    expect(latencies.betweenTokens.count).toBe(9);
    expect(latencies.request.counts.at(-1)).toBe(1);
    expect(latencies.request.sum).toBeGreaterThanOrEqual(latencies.firstToken.sum);
    expect(passSeconds).toBeGreaterThan(0);
    expect(tokensPerSecond).toBeGreaterThan(0);
  });
});
