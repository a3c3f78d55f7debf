/** `plasticity serve`, used by the official client end to end. */
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import { Decoder, generateText, loadTokenizer, nodeOrt } from "../src/index.ts";
import { loadModel } from "../src/models/folder.ts";
import { builtin, serve, type TestServer } from "./support/server.ts";

let server: TestServer;
let client: OpenAI;

beforeAll(async () => {
  server = await serve();
  client = server.client;
});
afterAll(() => server.close());

const say = (content: string): OpenAI.ChatCompletionMessageParam[] => [{ role: "user", content }];
const model = "builtin";

describe("chats", () => {
  it("are answered, in one piece and as a stream, with the same text", async () => {
    const asked = { model, messages: say("Who are you?"), temperature: 0, max_tokens: 24 };
    const whole = await client.chat.completions.create(asked);
    expect(whole.object).toBe("chat.completion");
    expect(whole.id).toMatch(/^chatcmpl-/);
    const [choice] = whole.choices;
    expect(choice!.message.role).toBe("assistant");
    expect(choice!.message.content!.length).toBeGreaterThan(5);
    expect(whole.usage!.total_tokens).toBe(
      whole.usage!.prompt_tokens + whole.usage!.completion_tokens,
    );

    const chunks: OpenAI.ChatCompletionChunk[] = [];
    const stream = await client.chat.completions.create({
      ...asked,
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0]!.choices[0]!.delta).toEqual({ role: "assistant", content: "" });
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
    expect(text).toBe(choice!.message.content);
    const reasons = chunks.flatMap(({ choices }) => choices[0]?.finish_reason ?? []);
    expect(reasons).toEqual([choice!.finish_reason]);
    const last = chunks.at(-1)!;
    expect(last.choices).toEqual([]);
    // The second time the prompt may lie in the cache.
    const { prompt_tokens_details: _, ...counts } = last.usage!;
    const { prompt_tokens_details: __, ...expected } = whole.usage!;
    expect(counts).toEqual(expected);
    expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
  });

  it("work with the client's own helper for streams", async () => {
    const runner = client.chat.completions.stream({
      model,
      messages: say("Hello"),
      max_tokens: 8,
      seed: 3,
    });
    const final = await runner.finalChatCompletion();
    expect(final.choices[0]!.message.content).toBeTypeOf("string");
    expect(final.choices[0]!.finish_reason).toMatch(/stop|length/);
  });

  it("end at stop strings, which are no part of them", async () => {
    const asked = { model, messages: say("Tell me a story."), seed: 5, max_tokens: 40 };
    const free = await client.chat.completions.create(asked);
    const text = free.choices[0]!.message.content!;
    const stop = text.slice(6, 9);
    const cut = await client.chat.completions.create({ ...asked, stop: [stop, "\u0001"] });
    expect(cut.choices[0]!.message.content).toBe(text.slice(0, text.indexOf(stop)));
    expect(cut.choices[0]!.finish_reason).toBe("stop");
    expect(cut.usage!.completion_tokens).toBeLessThan(free.usage!.completion_tokens);
  });

  it("give n choices, the same for the same seed", async () => {
    const asked = { model, messages: say("Say a word."), seed: 11, n: 3, max_tokens: 12 };
    const [first, second] = await Promise.all([
      client.chat.completions.create(asked),
      client.chat.completions.create(asked),
    ]);
    const texts = first.choices.map(({ message }) => message.content);
    expect(second.choices.map(({ message }) => message.content)).toEqual(texts);
    expect(new Set(texts).size).toBe(3);
    expect(first.choices.map(({ index }) => index)).toEqual([0, 1, 2]);
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
      chunks.push(chunk);
    }
    const joined = [0, 1, 2].map((index) =>
      chunks
        .flatMap(({ choices }) => choices)
        .filter((choice) => choice.index === index)
        .map(({ delta }) => delta.content ?? "")
        .join(""),
    );
    expect(joined).toEqual(texts);
  });

  it("give log-probabilities that add up to the bytes of the text", async () => {
    const { choices } = await client.chat.completions.create({
      model,
      messages: say("Where?"),
      temperature: 0,
      max_tokens: 10,
      logprobs: true,
      top_logprobs: 3,
    });
    const content = choices[0]!.logprobs!.content!;
    expect(content).toHaveLength(10);
    for (const { logprob, top_logprobs, token } of content) {
      expect(top_logprobs).toHaveLength(3);
      // Nothing is likelier than what a temperature of 0 takes.
      expect(top_logprobs[0]).toMatchObject({ token, logprob });
      expect(top_logprobs[1]!.logprob).toBeLessThanOrEqual(logprob);
    }
    const bytes = Uint8Array.from(content.flatMap((own) => own.bytes!));
    expect(new TextDecoder().decode(bytes).trimStart()).toBe(choices[0]!.message.content);
  });

  it("follow biases and penalties", async () => {
    const asked = { model, messages: say("Count."), temperature: 0, max_tokens: 6 };
    const { choices } = await client.chat.completions.create({
      ...asked,
      logprobs: true,
    });
    const { data } = await client.models.list();
    expect(data[0]!.id).toBe(model);
    const tokenizer = await loadTokenizer(nodeHost().files, builtin);
    const first = tokenizer.encode(choices[0]!.logprobs!.content![0]!.token)[0]!;
    const other = await client.chat.completions.create({
      ...asked,
      logit_bias: { [first]: -100 },
      presence_penalty: 1,
      frequency_penalty: 1,
    });
    expect(other.choices[0]!.message.content).not.toBe(choices[0]!.message.content);
  });

  it("are held to a JSON schema, whatever the model would rather say", async () => {
    const schema = {
      type: "object",
      properties: {
        city: { type: "string", enum: ["Paris", "Rome"] },
        days: { type: "integer", minimum: 1, maximum: 9 },
      },
      required: ["city", "days"],
      additionalProperties: false,
    };
    const { choices } = await client.chat.completions.create({
      model,
      messages: say("Plan a journey."),
      max_tokens: 60,
      seed: 1,
      response_format: {
        type: "json_schema",
        json_schema: { name: "journey", schema, strict: true },
      },
    });
    const made = JSON.parse(choices[0]!.message.content!) as { city: string; days: number };
    expect(["Paris", "Rome"]).toContain(made.city);
    expect(made.days).toBeGreaterThanOrEqual(1);
    expect(choices[0]!.finish_reason).toBe("stop");
    await expect(
      client.chat.completions.create({
        model,
        messages: say("x"),
        response_format: {
          type: "json_schema",
          json_schema: { name: "x", strict: true, schema: { type: "object", not: {} } },
        },
      }),
    ).rejects.toMatchObject({ status: 400, type: "invalid_request_error" });
  });

  const tools: OpenAI.ChatCompletionTool[] = [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "weather of a city",
        parameters: {
          type: "object",
          properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
          required: ["city"],
          additionalProperties: false,
        },
      },
    },
  ];

  it("call tools, in one piece and as a stream", async () => {
    const asked = {
      model,
      messages: say("Weather?"),
      tools,
      tool_choice: "required" as const,
      parallel_tool_calls: false,
      max_tokens: 60,
      seed: 2,
    };
    const { choices } = await client.chat.completions.create(asked);
    const [call] = choices[0]!.message.tool_calls!;
    expect(choices[0]!.finish_reason).toBe("tool_calls");
    expect(choices[0]!.message.content).toBeNull();
    expect(call!.id).toMatch(/^call_/);
    const own = (call as OpenAI.ChatCompletionMessageFunctionToolCall).function;
    expect(own.name).toBe("get_weather");
    expect(["Paris", "Rome"]).toContain((JSON.parse(own.arguments) as { city: string }).city);

    const runner = client.chat.completions.stream(asked);
    const parts: string[] = [];
    runner.on("tool_calls.function.arguments.delta", ({ arguments_delta }) =>
      parts.push(arguments_delta),
    );
    const final = await runner.finalChatCompletion();
    const streamed = final.choices[0]!.message.tool_calls![0]!;
    expect(streamed.function).toMatchObject({ name: own.name, arguments: own.arguments });
    expect(parts.length).toBeGreaterThan(1);

    // Beside a form an answer is of the form where it calls nothing.
    const schema = {
      type: "object",
      properties: { name: { type: "string", enum: ["Ann", "Bo"] } },
      required: ["name"],
      additionalProperties: false,
    };
    const { choices: formed } = await client.chat.completions.create({
      ...{ ...asked, tool_choice: "auto" },
      response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } },
    });
    const { message, finish_reason: reason } = formed[0]!;
    expect(reason).toBe("stop");
    expect(message.tool_calls).toBeUndefined();
    expect(["Ann", "Bo"]).toContain((JSON.parse(message.content!) as { name: string }).name);

    // The answer of the tool goes back into the chat.
    const after = await client.chat.completions.create({
      model,
      messages: [
        ...say("Weather?"),
        choices[0]!.message,
        { role: "tool", tool_call_id: call!.id, content: "sunny" },
      ],
      max_tokens: 5,
    });
    expect(after.choices[0]!.message.role).toBe("assistant");
  });
});

describe("completions", () => {
  it("give the tokens that a decoder gives", async () => {
    const { files } = nodeHost();
    const { model: own, params } = await loadModel(files, builtin);
    const tokenizer = await loadTokenizer(files, builtin);
    const decoder = new Decoder(own, params, await nodeOrt({ threads: 1 }), { batchExact: true });
    const prompt = "It was a dark night";
    const expected = await generateText(decoder, tokenizer, prompt, { maxNewTokens: 20 });
    await decoder.release();
    const made = await client.completions.create({
      model,
      prompt: [prompt, "Once upon"],
      temperature: 0,
      max_tokens: 20,
      logprobs: 2,
    });
    expect(made.choices.map(({ index }) => index)).toEqual([0, 1]);
    expect(made.choices[0]!.text).toBe(expected.text);
    expect(made.choices[0]!.logprobs!.tokens!.join("")).toBe(expected.text);
    expect(Object.keys(made.choices[0]!.logprobs!.top_logprobs![0]!)).toHaveLength(2);
    const tokens = [...tokenizer.encode(prompt)];
    const again = await client.completions.create({
      model,
      prompt: tokens,
      temperature: 0,
      max_tokens: 20,
      echo: true,
      stream: true,
    });
    let text = "";
    for await (const chunk of again) text += chunk.choices[0]!.text;
    expect(text).toBe(prompt + expected.text);
  });
});

describe("embeddings", () => {
  it("are vectors of length 1, also cut, in both encodings", async () => {
    const asked = { model, input: ["a cat", "a dog", "a cat"] };
    // The client asks for base64 unless it is told otherwise.
    const packed = await client.embeddings.create(asked);
    const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
    expect(packed.data).toHaveLength(3);
    packed.data.forEach(({ embedding }, i) => {
      expect(embedding).toHaveLength(256);
      expect(Math.hypot(...embedding)).toBeCloseTo(1, 5);
      const other = plain.data[i]!.embedding;
      expect(Math.max(...embedding.map((x, at) => Math.abs(x - other[at]!)))).toBeLessThan(1e-6);
    });
    expect(packed.data[0]!.embedding).toEqual(packed.data[2]!.embedding);
    expect(packed.data[0]!.embedding).not.toEqual(packed.data[1]!.embedding);
    expect(packed.usage.prompt_tokens).toBeGreaterThan(3);
    const cut = await client.embeddings.create({ ...asked, dimensions: 8 });
    expect(cut.data[0]!.embedding).toHaveLength(8);
    expect(Math.hypot(...cut.data[0]!.embedding)).toBeCloseTo(1, 5);
    await expect(client.embeddings.create({ ...asked, dimensions: 999 })).rejects.toThrow(
      "the model's vectors have 256 numbers, but 999 were asked for",
    );
  });
});

it("logs every request with its name, and nothing of what was said", async () => {
  const { _request_id: id } = await client.chat.completions.create({
    model,
    messages: say("a secret sentence"),
    max_tokens: 1,
  });
  const entry = server.log.find(({ request }) => request === id);
  expect(entry).toMatchObject({
    level: "info",
    event: "request",
    method: "POST",
    route: "/v1/chat/completions",
    status: 200,
    model: "builtin",
    newTokens: 1,
  });
  expect(JSON.stringify(server.log)).not.toMatch(/secret|Hello|lights/);
});
