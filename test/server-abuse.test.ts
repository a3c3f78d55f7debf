/** What goes wrong with clients, and what the server makes of it: each way is tried on a real port. */
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import { defaultLimits, isLoopback, startServer } from "../src/server/node-server.ts";
import { post, serve, settingsWith, type TestServer, until } from "./support/server.ts";

let server: TestServer;
const key = "a-key-for-tests-only";

beforeAll(async () => {
  server = await serve(
    {
      keys: [key, "another-key-for-tests"],
      headMs: 400,
      limits: { ...defaultLimits, bodyMs: 500, bodyBytes: 100_000, fileBytes: 50_000, choices: 4 },
    },
    true,
  );
});
afterAll(() => server.close());

const auth = { authorization: `Bearer ${key}` };
const chat = { model: "builtin", messages: [{ role: "user", content: "Hello" }], max_tokens: 3 };
const ask = (body: unknown, headers: Readonly<Record<string, string>> = auth) =>
  post(`${server.url}/v1/chat/completions`, body, headers);

interface Refusal {
  readonly status: number;
  readonly body: { readonly error?: { readonly message: string; readonly param: string | null } };
}

describe("bodies that are wrong", () => {
  it.each([
    ["no JSON", "{", "invalid JSON at byte 1"],
    ["text after", '{"a": 1} x', "invalid JSON"],
    ["a key twice", '{"model": "a", "model": "b"}', 'key "model" stands twice'],
    ["an array", "[]", "must be a JSON object"],
    ["nothing", "", "is empty"],
    ["too deep", `${'{"messages":['.repeat(50)}1`, "nested deeper than 64 levels"],
    ["a number that overflows", '{"temperature": 1e999}', "too large"],
    ["not UTF-8 in escapes", '{"model": "\\ud800"}', "surrogate"],
    ["no model", { ...chat, model: undefined }, "Missing required parameter: 'model'."],
    ["no messages", { model: "builtin" }, "Missing required parameter: 'messages'."],
    ["no message", { ...chat, messages: [] }, "expected an array with 1 to 2048 items"],
    ["a text of messages", { ...chat, messages: "hi" }, "Invalid type for 'messages'"],
    [
      "an unknown role",
      { ...chat, messages: [{ role: "king", content: "x" }] },
      "messages[0].role",
    ],
    ["an unknown field", { ...chat, frobnicate: 1 }, "Unknown parameter: 'frobnicate'."],
    ["__proto__", '{"__proto__": {"x": 1}, "model": "builtin"}', "messages"],
    ["a text for a number", { ...chat, temperature: "1" }, "expected a decimal, but got a string"],
    ["too hot", { ...chat, temperature: 2.1 }, "Expected a value <= 2, but got 2.1"],
    ["half a token", { ...chat, max_tokens: 1.5 }, "expected an integer, but got a decimal"],
    ["no tokens", { ...chat, max_tokens: 0 }, "Expected a value >= 1, but got 0"],
    ["too many tokens", { ...chat, max_tokens: 1e15 }, "Expected a value <= 2147483648"],
    ["a huge n", { ...chat, n: 1e9 }, "Expected a value <= 128"],
    ["more answers than are taken", { ...chat, n: 5 }, "this server takes 4 at once"],
    ["a negative n", { ...chat, n: -1 }, "Expected a value >= 1"],
    ["huge top_logprobs", { ...chat, logprobs: true, top_logprobs: 21 }, "Expected a value <= 20"],
    ["top_logprobs alone", { ...chat, top_logprobs: 2 }, "needs 'logprobs'"],
    ["five stops", { ...chat, stop: ["a", "b", "c", "d", "e"] }, "0 to 4 items, but got 5"],
    ["an empty stop", { ...chat, stop: "" }, "1 to 256 characters"],
    [
      "a bias of nobody",
      { ...chat, logit_bias: { 99999999: 1 } },
      "Expected token ids from 0 to 4095",
    ],
    ["a bias too strong", { ...chat, logit_bias: { 5: 101 } }, "Expected a value <= 100"],
    [
      "a picture",
      { ...chat, messages: [{ role: "user", content: [{ type: "image_url" }] }] },
      "reads texts",
    ],
    [
      "usage without a stream",
      { ...chat, stream_options: { include_usage: true } },
      "streams alone",
    ],
    ["functions", { ...chat, functions: [] }, "takes 'tools' in its place"],
    [
      "a tool without a name",
      { ...chat, tools: [{ type: "function", function: {} }] },
      "tools[0].function.name",
    ],
    ["a choice of no tool", { ...chat, tool_choice: "required" }, "there are no tools"],
    [
      "a pattern that blows up",
      {
        ...chat,
        response_format: {
          type: "json_schema",
          json_schema: {
            name: "x",
            strict: true,
            schema: { type: "string", pattern: "(a{1,999}){1,999}" },
          },
        },
      },
      "pattern",
    ],
    [
      "a prompt that is too long",
      { ...chat, messages: [{ role: "user", content: "word ".repeat(3000) }] },
      "maximum context length is 256",
    ],
    [
      "a very long prompt",
      { ...chat, messages: [{ role: "user", content: "word ".repeat(15000) }] },
      "maximum context length is 256",
    ],
  ] as const)("%s: are refused in a sentence", async (_, body, sentence) => {
    const { status, body: answer } = (await ask(body)) as unknown as Refusal;
    expect(answer.error!.message).toContain(sentence);
    expect(status).toBe(400);
    expect(answer.error).toMatchObject({ type: "invalid_request_error" });
  });

  it("other types, sizes, paths and methods have their own statuses", async () => {
    const large = await ask({ ...chat, user: "x".repeat(200_000) });
    expect(large.status).toBe(413);
    const form = await ask(chat, { ...auth, "content-type": "text/plain" });
    expect(form.status).toBe(415);
    const model = await ask({ ...chat, model: "gpt-4o" });
    expect([model.status, (model.body as unknown as Refusal["body"]).error!.message]).toEqual([
      404,
      "The model `gpt-4o` does not exist or you do not have access to it.",
    ]);
    const nowhere = await post(`${server.url}/v1/nowhere`, {}, auth);
    expect(nowhere.status).toBe(404);
    const put = await fetch(`${server.url}/v1/chat/completions`, { method: "PUT", headers: auth });
    expect([put.status, put.headers.get("allow")]).toEqual([405, "POST"]);
  });
});

describe("callers", () => {
  it("need a key for every route but /health", async () => {
    for (const path of [
      "/v1/models",
      "/metrics",
      "/v1/files",
      "/v1/adapters",
      "/v1/nowhere",
      "/",
    ]) {
      expect([path, (await fetch(server.url + path)).status]).toEqual([path, 401]);
      const wrong = await fetch(server.url + path, {
        headers: { authorization: `Bearer ${key}x` },
      });
      expect([path, wrong.status]).toEqual([path, 401]);
      expect(await wrong.json()).toMatchObject({ error: { code: "invalid_api_key" } });
    }
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
    for (const given of [key, "another-key-for-tests"]) {
      const headers = { authorization: `Bearer ${given}` };
      expect((await fetch(`${server.url}/v1/models`, { headers })).status).toBe(200);
    }
    expect(JSON.stringify(server.log)).not.toContain(key);
    const told = server.log.filter(({ route }) => route === "/v1/models").map(({ key: id }) => id);
    expect(new Set(told.filter((id) => id !== undefined)).size).toBe(2);
  });

  it("of other sites are refused", async () => {
    const headers = { ...auth, origin: "https://evil.example" };
    expect((await fetch(`${server.url}/v1/models`, { headers })).status).toBe(403);
    const preflight = await fetch(`${server.url}/v1/models`, { method: "OPTIONS", headers });
    expect(preflight.headers.get("access-control-allow-origin")).toBeNull();
  });

  it("cannot be served beyond this machine without a key", async () => {
    await expect(startServer(nodeHost(), settingsWith({ host: "0.0.0.0" }))).rejects.toThrow(
      "serve: 0.0.0.0 is reached from other machines, and there is no key — give --api-key-file, or --insecure if everybody may ask.",
    );
    expect(["127.0.0.1", "localhost", "::1", "127.9.9.9"].every(isLoopback)).toBe(true);
    expect(["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.evil.com"].some(isLoopback)).toBe(false);
  });
});

describe("names that become paths", () => {
  it("are checked", async () => {
    mkdirSync(join(server.folder, "outside"), { recursive: true });
    for (const id of [
      "..",
      "../../etc/passwd",
      "..%2f..%2fetc%2fpasswd",
      "file-/../../x",
      "%00",
      "a%2Fb",
    ]) {
      for (const path of ["/v1/files/", "/v1/fine_tuning/jobs/", "/v1/adapters/", "/v1/models/"]) {
        const answer = await fetch(`${server.url}${path}${encodeURIComponent(id)}`, {
          headers: auth,
        });
        expect([id, answer.status]).toEqual([id, 404]);
      }
    }
    const other = await serve({
      adaptersFolder: join(server.folder, "adapters"),
      engine: { slots: 1 },
    });
    try {
      mkdirSync(join(server.folder, "adapters"), { recursive: true });
      symlinkSync(join(server.folder, "outside"), join(server.folder, "adapters", "link"));
      writeFileSync(join(server.folder, "adapters", "plain"), "");
      for (const [source, status] of [
        ["../outside", 400],
        ["/etc", 400],
        ["..", 400],
        ["a/../../outside", 400],
        ["link", 404],
        ["plain", 404],
        ["missing", 404],
      ] as const) {
        const { status: given } = await post(`${other.url}/v1/adapters`, { name: "x", source });
        expect([source, given]).toEqual([source, status]);
      }
    } finally {
      await other.close();
    }
  });

  it("of uploads are kept as text, and what is no data is not kept", async () => {
    const upload = async (name: string, text: string, purpose = "fine-tune") => {
      const form = new FormData();
      form.set("purpose", purpose);
      form.set("file", new File([text], name));
      const answer = await fetch(`${server.url}/v1/files`, {
        method: "POST",
        body: form,
        headers: auth,
      });
      return [answer.status, JSON.stringify(await answer.json())] as const;
    };
    const good = '{"prompt": "a", "completion": "b"}\n';
    for (const [name, text, status, sentence] of [
      ["a.jsonl", `${good}{"prompt": 1}\n`, 400, "a.jsonl:2"],
      ["a.jsonl", "", 400, "holds no examples"],
      ["a.exe", good, 400, "must end in"],
      ["a.parquet", good, 400, "a.parquet"],
      ["a.jsonl", "x".repeat(60_000), 413, "larger than"],
      ["a.jsonl", '{"prompt": "a", "completion": "\\ud800"}', 400, "surrogate"],
    ] as const) {
      const [given, told] = await upload(name, text);
      expect([name, given, told.includes(sentence)]).toEqual([name, status, true]);
    }
    expect((await upload("a.jsonl", good, "spy"))[0]).toBe(400);
    const [status, told] = await upload("../../../../tmp/evil\u0007.jsonl", good);
    expect(status).toBe(200);
    expect(told).toContain('"filename":"evil.jsonl"');
    const { data } = await server.client.files.list();
    expect(data.map(({ filename }) => filename)).toEqual(["evil.jsonl"]);
    const raw = await fetch(`${server.url}/v1/files`, {
      method: "POST",
      headers: { ...auth, "content-type": "multipart/form-data; boundary=x" },
      body: "--y\r\nno form",
    });
    expect(raw.status).toBe(400);
  });
});

describe("connections", () => {
  const sockets: Socket[] = [];
  afterEach(() => {
    for (const socket of sockets.splice(0)) socket.destroy();
  });

  /** A socket, and what came over it until it was closed. */
  function open(text: string): { readonly socket: Socket; readonly closed: Promise<string> } {
    const socket = connect({ port: server.port, host: "127.0.0.1", allowHalfOpen: true });
    sockets.push(socket);
    let got = "";
    socket.setEncoding("utf8").on("data", (part: string) => {
      got += part;
    });
    socket.on("error", () => {});
    socket.write(text);
    const closed = new Promise<string>((resolve) => {
      socket.on("end", () => resolve(got));
      socket.on("close", () => resolve(got));
    });
    return { socket, closed };
  }

  const head = (length: number): string =>
    `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${key}\r\nContent-Type: application/json\r\nContent-Length: ${length}\r\n`;
  const long = JSON.stringify({
    ...chat,
    max_tokens: 200,
    temperature: 0,
    stream: true,
    logit_bias: {},
  });

  const running = async (): Promise<number> => {
    const { metrics } = await server.engine.stats();
    return metrics.running + metrics.queued;
  };

  it("whose head does not come are closed", async () => {
    const started = performance.now();
    expect(await open("GET /health HTTP/1.1\r\nHost: 127.").closed).toContain("408");
    expect(performance.now() - started).toBeLessThan(5000);
  });

  it("whose body does not come are answered and closed", async () => {
    const text = await open(`${head(50)}\r\n{"model"`).closed;
    expect(text).toContain("HTTP/1.1 408");
    expect(text).toContain("did not come within 0.5 seconds");
  });

  it("that send no HTTP are refused", async () => {
    expect(await open("\u0016\u0003\u0001 nonsense\r\n\r\n").closed).toContain("400 Bad Request");
    const huge = `GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ${"x".repeat(40_000)}\r\n\r\n`;
    expect(await open(huge).closed).toContain("431");
  });

  it("that are cut in the middle of a body cost nothing", async () => {
    const { socket } = open(`${head(500)}\r\n{"model": "builtin"`);
    await new Promise((resolve) => setTimeout(resolve, 50));
    socket.destroy();
    await until(() => server.app.open.size === 0, "nothing is open");
    expect((await ask(chat)).status).toBe(200);
  });

  it("that are closed end the work for them", async () => {
    const before = (await server.engine.stats()).metrics.requests.aborted;
    const { socket } = open(`${head(long.length)}\r\n${long}`);
    await new Promise<void>((resolve) => socket.once("data", () => resolve()));
    expect(await running()).toBe(1);
    socket.destroy();
    await until(async () => (await running()) === 0, "the engine has nothing to do", 5000);
    const { requests, newTokens } = (await server.engine.stats()).metrics;
    expect(requests.aborted).toBe(before + 1);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect((await server.engine.stats()).metrics.newTokens).toBe(newTokens);
  });

  it("that are closed while an answer in one piece is made end its work too", async () => {
    const before = (await server.engine.stats()).metrics.requests.aborted;
    const leave = new AbortController();
    const asked = server.client.chat.completions.create(
      { ...chat, messages: [{ role: "user", content: "Hello" }], max_tokens: 200, n: 2 },
      { signal: leave.signal },
    );
    asked.catch(() => {});
    await until(async () => (await running()) > 0, "the engine works");
    leave.abort();
    await expect(asked).rejects.toThrow();
    await until(async () => (await running()) === 0, "the engine has nothing to do", 5000);
    expect((await server.engine.stats()).metrics.requests.aborted).toBe(before + 2);
  });

  it("that are half closed are not left hanging", async () => {
    const { socket, closed } = open(`${head(long.length)}\r\n${long}`);
    socket.end();
    await closed;
    await until(async () => (await running()) === 0, "the engine has nothing to do", 10_000);
    await until(() => server.app.open.size === 0, "nothing is open");
  });

  it("are answered within 50 ms on /health while the engine works", async () => {
    const work = Array.from({ length: 8 }, (_, i) =>
      server.client.chat.completions.create({
        model: "builtin",
        messages: [{ role: "user", content: `Tell me of number ${i}.` }],
        max_tokens: 100,
        seed: i,
      }),
    );
    await until(async () => (await running()) > 0, "the engine works");
    const times: number[] = [];
    for (let i = 0; i < 20; i++) {
      const started = performance.now();
      expect((await fetch(`${server.url}/health`)).status).toBe(200);
      times.push(performance.now() - started);
    }
    await Promise.all(work);
    // Another process may have the processor for a moment: the middle one counts.
    expect(times.sort((a, b) => a - b)[10]!).toBeLessThan(50);
  });
});

describe("an engine that ends", () => {
  it("costs its clients a clear error, and comes back", async () => {
    const own = await serve();
    try {
      const { client } = own;
      const stream = await client.chat.completions.create({
        model: "builtin",
        messages: [{ role: "user", content: "Hello" }],
        max_tokens: 200,
        temperature: 0,
        stream: true,
      });
      let chunks = 0;
      const read = async (): Promise<void> => {
        for await (const _ of stream) if (++chunks === 5) await own.engine.crash();
      };
      await expect(read()).rejects.toThrow(
        "The engine ended while it worked on this request; it is started again — send the request once more.",
      );
      expect(chunks).toBeGreaterThanOrEqual(5);
      const health = await fetch(`${own.url}/health`);
      expect(health.status).toBe(503);
      expect(await health.json()).toMatchObject({ error: { type: "unavailable_error" } });
      const refused = await post(`${own.url}/v1/chat/completions`, chat);
      expect([refused.status, refused.headers.get("retry-after")]).toEqual([503, "1"]);
      await until(() => own.engine.state === "ready", "the engine is back");
      expect((await post(`${own.url}/v1/chat/completions`, chat)).status).toBe(200);
      expect(own.engine.restarts).toBe(1);
      expect(own.log.some(({ event }) => event === "engine ended")).toBe(true);
      const numbers = await (await fetch(`${own.url}/metrics`)).text();
      expect(numbers).toContain("plasticity_engine_restarts_total 1");
    } finally {
      await own.close();
    }
  });
});

describe("an engine that hangs", () => {
  it.skipIf(process.platform === "win32")("is ended and started again", async () => {
    const own = await serve({ hangMs: 1000 });
    try {
      const asked = post(`${own.url}/v1/chat/completions`, { ...chat, max_tokens: 100 });
      await until(() => own.app.open.size > 0, "a request is open");
      // Alive, and never to answer: as a loop without an end.
      process.kill(own.engine.pid!, "SIGSTOP");
      const answer = await asked;
      expect(answer.status).toBe(503);
      expect((answer.body as { error: { message: string } }).error.message).toContain(
        "The engine ended while it worked on this request",
      );
      await until(() => own.engine.state === "ready", "the engine is back");
      expect(own.log.find(({ event }) => event === "engine ended")).toMatchObject({
        cause: "it gave no sign of life for 1000 ms",
      });
      // An engine that works is left alone.
      await new Promise((resolve) => setTimeout(resolve, 1500));
      expect((await post(`${own.url}/v1/chat/completions`, chat)).status).toBe(200);
      expect(own.engine.restarts).toBe(1);
    } finally {
      await own.close();
    }
  });
});

describe("a server that ends", () => {
  it("lets open requests end, and refuses new ones", async () => {
    const own = await serve();
    const asked = own.client.chat.completions.create({
      model: "builtin",
      messages: [{ role: "user", content: "Hello" }],
      max_tokens: 60,
      temperature: 0,
    });
    await until(() => own.app.open.size > 0, "a request is open");
    const closed = own.close(30_000);
    const { choices } = await asked;
    expect(choices[0]!.message.content!.length).toBeGreaterThan(0);
    await closed;
    await expect(fetch(`${own.url}/health`)).rejects.toThrow();
  });

  it("tells those that do not end in time", async () => {
    const own = await serve();
    const stream = await own.client.chat.completions.create({
      model: "builtin",
      messages: [{ role: "user", content: "Hello" }],
      max_tokens: 240,
      temperature: 0,
      stream: true,
    });
    const read = async (): Promise<void> => {
      let chunks = 0;
      for await (const _ of stream) if (++chunks === 3) void own.close(0);
    };
    await expect(read()).rejects.toThrow("The request was ended before its answer was whole.");
    await own.close();
  });
});
