/** `POST /v1/chat/completions`. */
import { checkTools } from "../../index.ts";
import { type AnswerEnd, type AnswerPiece, readAnswer } from "../answer.ts";
import { type Answer, collect, streamAnswers, submitAll } from "../answers.ts";
import type {
  ChatBody,
  ChatChoice,
  ChatChunk,
  FinishBody,
  ToolCallDelta,
  UsageBody,
} from "../api-types.ts";
import { readJson } from "../body.ts";
import type { AnswerForm, JsonForm } from "../engine-side.ts";
import { wrong } from "../errors.ts";
import { type Field, type FieldValues, flag, ignored, need, readFields, whole } from "../fields.ts";
import {
  choicesOf,
  generationFields,
  only,
  requestsFor,
  roomFor,
  stopsIn,
  usageOf,
} from "../generation.ts";
import { newId } from "../ids.ts";
import { askOf, messages, responseFormat, toolChoice, tools } from "../messages.ts";
import { stopsOf } from "../prompt-text.ts";
import { type Call, type Routes, type Service, seconds, targetOf } from "../service.ts";

const fields = {
  ...generationFields,
  messages: need(messages),
  max_tokens: whole(1, 2 ** 31),
  max_completion_tokens: whole(1, 2 ** 31),
  logprobs: flag,
  top_logprobs: whole(0, 20),
  response_format: responseFormat,
  tools,
  tool_choice: toolChoice,
  parallel_tool_calls: flag,
  modalities: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  reasoning_effort: ignored,
  verbosity: ignored,
  safety_identifier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
  prediction: ignored,
  audio: ignored,
  web_search_options: refused("searches no web"),
  functions: refused("takes 'tools' in its place"),
  function_call: refused("takes 'tool_choice' in its place"),
} as const;

/** A field that clients send and that would not be done. */
function refused(what: string): Field<undefined> {
  return {
    read: (_, param) => {
      throw wrong(
        `'${param}' is not supported: this server ${what}.`,
        param,
        "unsupported_parameter",
      );
    },
  };
}

type Asked = FieldValues<typeof fields>;

/** What a text is held to that calls nothing. */
function jsonFormOf({ response_format }: Asked): JsonForm | undefined {
  const type = response_format?.type ?? "text";
  if (type === "text") return undefined;
  if (type === "json_object") return { kind: "json" };
  const given = response_format?.json_schema;
  if (!given) {
    throw wrong(
      "Missing required parameter: 'response_format.json_schema'.",
      "response_format.json_schema",
      "missing_required_parameter",
    );
  }
  const { schema, strict } = given;
  if (schema === undefined) {
    throw wrong(
      "Missing required parameter: 'response_format.json_schema.schema'.",
      "response_format.json_schema.schema",
      "missing_required_parameter",
    );
  }
  return { kind: "schema", schema, isStrict: strict === true };
}

/** What an answer is held to, and whether calls are looked for in it. */
function formOf(
  own: Asked,
  service: Service,
): { readonly form: AnswerForm | undefined; readonly hasTools: boolean } {
  const { tools: known = [], tool_choice: choice, parallel_tool_calls: isParallel } = own;
  if (known.length > 0 || choice !== undefined) checkTools(known, choice);
  const content = jsonFormOf(own);
  if (known.length === 0 || choice === "none") return { form: content, hasTools: false };
  return {
    form: {
      kind: "tools",
      tools: known,
      format: service.toolFormat,
      choice: choice ?? "auto",
      isParallel: isParallel ?? true,
      ...(content && { content }),
    },
    hasTools: true,
  };
}

const finishOf = ({ finishReason, calls }: AnswerEnd, { tool_choice }: Asked): FinishBody =>
  // Who names the tool gets the plain reason, as the interface has it.
  calls > 0 && finishReason === "stop" && typeof tool_choice !== "object"
    ? "tool_calls"
    : finishReason;

async function answerChat(call: Call, service: Service): Promise<Response> {
  const { engine, limits, tokens } = service;
  const exchange = call.get("exchange");
  const own = readFields(await readJson(call.req.raw, limits.bodyBytes, limits.bodyMs), fields);
  exchange.notes.model = own.model.slice(0, 128);
  exchange.notes.stream = own.stream === true;
  const { adapter } = targetOf(service, own.model);
  only(
    own.top_logprobs === undefined || own.logprobs === true,
    "top_logprobs",
    "'top_logprobs' needs 'logprobs' to be true.",
  );
  only(
    own.stream_options === undefined || own.stream === true,
    "stream_options",
    "'stream_options' is for streams alone.",
  );
  const count = choicesOf(own.n, 1, limits);
  const { form, hasTools } = formOf(own, service);
  const prompt = await engine.encode(
    askOf(own.messages, hasTools ? (own.tools ?? []) : [], engine.template.text),
  );
  const asked = own.max_completion_tokens ?? own.max_tokens;
  const room = roomFor(prompt.length, asked, engine.maxLength, limits, "messages");
  const stop = [...stopsIn(own.stop), ...stopsOf(engine.template)];
  const requests = requestsFor(
    own,
    {
      prompt,
      maxNewTokens: room,
      adapter,
      key: exchange.caller.id,
      stopIds: service.ends.chat,
      logprobs: own.logprobs === true ? (own.top_logprobs ?? 0) : undefined,
      extra: { ...(form && { form }), stop },
    },
    count,
    engine.vocabSize,
  );
  const handles = await submitAll(service, call, requests);
  const answers = handles.map((handle) =>
    readAnswer(handle, {
      tokenizer: engine.tokenizer,
      context: prompt,
      stop,
      tools: hasTools ? service.toolFormat : undefined,
      toolNames: new Set((own.tools ?? []).map((tool) => tool.function.name)),
      isTrimmed: engine.template.isPlain,
    }),
  );
  const head = {
    id: newId("chatcmpl-"),
    created: seconds(service.now()),
    model: own.model,
    system_fingerprint: service.fingerprint,
  } as const;
  if (own.stream === true) return stream(call, service, own, head, answers);
  const whole = await Promise.all(answers.map((answer) => collect(answer)));
  const usage = usageOf(whole.map(({ end }, i) => ({ ...end.usage, isFirst: i === 0 })));
  exchange.notes.promptTokens = usage.prompt_tokens;
  exchange.notes.newTokens = usage.completion_tokens;
  const choices = whole.map(
    ({ text: content, calls, logprobs, end }, index): ChatChoice => ({
      index,
      message: {
        role: "assistant",
        content: calls.length > 0 && content === "" ? null : content,
        refusal: null,
        ...(calls.length > 0 && { tool_calls: calls }),
      },
      logprobs: own.logprobs === true ? tokens.chat(logprobs) : null,
      finish_reason: finishOf(end, own),
    }),
  );
  const { id, created, model, system_fingerprint } = head;
  const body: ChatBody = {
    id,
    object: "chat.completion",
    created,
    model,
    choices,
    usage,
    system_fingerprint,
  };
  return call.json(body);
}

type Delta = ChatChunk["choices"][number]["delta"];

/** Deltas of chunks: text and calls apart. */
function deltasOf({ deltas }: AnswerPiece): Delta[] {
  return deltas.map((delta): Delta => {
    if (delta.kind === "text") return { content: delta.text };
    const { index } = delta;
    const call: ToolCallDelta =
      delta.kind === "call"
        ? { index, id: delta.id, type: "function", function: { name: delta.name, arguments: "" } }
        : { index, function: { arguments: delta.text } };
    return { tool_calls: [call] };
  });
}

function stream(
  call: Call,
  service: Service,
  own: Asked,
  head: Pick<ChatChunk, "id" | "created" | "model" | "system_fingerprint">,
  answers: readonly Answer[],
): Response {
  const exchange = call.get("exchange");
  const hasUsage = own.stream_options?.include_usage === true;
  const chunk = (choices: ChatChunk["choices"], usage: UsageBody | null = null): ChatChunk => {
    const { id, created, model, system_fingerprint } = head;
    const object = "chat.completion.chunk" as const;
    const plain = { id, object, created, model, system_fingerprint, choices };
    return hasUsage ? { ...plain, usage } : plain;
  };
  return streamAnswers(call, async (sink) => {
    const one = async (answer: Answer, index: number): Promise<AnswerEnd> => {
      const say = (
        delta: Delta,
        logprobs: AnswerPiece["logprobs"] = [],
        finish_reason: FinishBody | null = null,
      ): Promise<void> =>
        sink.send(
          chunk([
            {
              index,
              delta,
              logprobs: logprobs.length > 0 ? service.tokens.chat(logprobs) : null,
              finish_reason,
            },
          ]),
        );
      await say({ role: "assistant", content: "" });
      for (;;) {
        const { done, value } = await answer.next();
        if (done) {
          await say({}, [], finishOf(value, own));
          return value;
        }
        const [first = {}, ...others] = deltasOf(value);
        await say(first, value.logprobs);
        for (const delta of others) await say(delta);
      }
    };
    const ends = await Promise.all(answers.map(one));
    const usage = usageOf(ends.map((end, i) => ({ ...end.usage, isFirst: i === 0 })));
    exchange.notes.promptTokens = usage.prompt_tokens;
    exchange.notes.newTokens = usage.completion_tokens;
    if (hasUsage) await sink.send(chunk([], usage));
  });
}

export const chatRoutes: Routes = (app, service) => {
  app.post("/v1/chat/completions", (call) => answerChat(call, service));
};
