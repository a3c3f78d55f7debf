/** `POST /v1/completions`: texts continued, in the older form of the interface. */
import type { JsonValue } from "../../io/json.ts";
import { type AnswerEnd, readAnswer } from "../answer.ts";
import { collect, streamAnswers, submitAll } from "../answers.ts";
import type { TextBody, TextChoice, UsageBody } from "../api-types.ts";
import { readJson } from "../body.ts";
import { wrong } from "../errors.ts";
import {
  type Field,
  flag,
  ignored,
  isText,
  list,
  need,
  readFields,
  text,
  whole,
  wrongType,
} from "../fields.ts";
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
import { type Call, type Routes, type Service, seconds, targetOf } from "../service.ts";

const maxPrompts = 128;
const oneText = text(2 ** 24);
const ids = list(whole(0, 2 ** 31), 2 ** 20, 1);

type Prompt = string | readonly number[];

/** A text, tokens, or several of one kind. */
const prompt: Field<readonly Prompt[]> = {
  read: (value, param) => {
    if (isText(value)) return [oneText.read(value, param)];
    if (!Array.isArray(value)) throw wrongType(param, "a string or an array", value);
    const items = value as readonly JsonValue[];
    if (items.length > 0 && items.every((item) => typeof item === "number")) {
      return [ids.read(value, param)];
    }
    const item: Field<Prompt> = {
      read: (one, where) => (isText(one) ? oneText : (ids as Field<Prompt>)).read(one, where),
    };
    return list(item, maxPrompts, 1).read(value, param);
  },
};

const fields = {
  ...generationFields,
  prompt: need(prompt),
  max_tokens: whole(1, 2 ** 31),
  logprobs: whole(0, 5),
  echo: flag,
  best_of: whole(1, 128),
  suffix: ignored,
} as const;

async function answerText(call: Call, service: Service): Promise<Response> {
  const { engine, limits, tokens } = service;
  const exchange = call.get("exchange");
  const body = await readJson(call.req.raw, limits.bodyBytes, limits.bodyMs);
  const own = readFields(body, fields);
  exchange.notes.model = own.model.slice(0, 128);
  exchange.notes.stream = own.stream === true;
  const { adapter } = targetOf(service, own.model);
  only(typeof body["suffix"] !== "string", "suffix", "'suffix' is not supported by this model.");
  only(
    own.best_of === undefined || own.best_of === (own.n ?? 1),
    "best_of",
    "'best_of' other than 'n' is not supported.",
  );
  only(
    own.echo !== true || own.logprobs === undefined,
    "echo",
    "'echo' with 'logprobs' is not supported: prompts are not scored.",
  );
  only(
    own.stream_options === undefined || own.stream === true,
    "stream_options",
    "'stream_options' is for streams alone.",
  );
  const count = choicesOf(own.n, own.prompt.length, limits);
  const prompts = await Promise.all(
    own.prompt.map(async (one) =>
      typeof one === "string" ? engine.encode({ kind: "text", text: one }) : Int32Array.from(one),
    ),
  );
  if (prompts.some(({ length }) => length === 0)) {
    throw wrong("Invalid 'prompt': it has no token.", "prompt");
  }
  const stop = stopsIn(own.stop);
  const requests = prompts.flatMap((one) =>
    requestsFor(
      own,
      {
        prompt: one,
        maxNewTokens: roomFor(one.length, own.max_tokens ?? 16, engine.maxLength, limits, "prompt"),
        adapter,
        key: exchange.caller.id,
        stopIds: service.ends.text,
        logprobs: own.logprobs,
        extra: { stop },
      },
      count,
      engine.vocabSize,
    ),
  );
  const handles = await submitAll(service, call, requests);
  const answers = handles.map((handle, i) =>
    readAnswer(handle, {
      tokenizer: engine.tokenizer,
      context: prompts[Math.floor(i / count)]!,
      stop,
      isTrimmed: false,
    }),
  );
  const echoOf = (index: number): string => {
    if (own.echo !== true) return "";
    const given = own.prompt[Math.floor(index / count)]!;
    return typeof given === "string"
      ? given
      : engine.tokenizer.decode(given, { skipSpecial: true });
  };
  const [id, created] = [newId("cmpl-"), seconds(service.now())];
  const bodyOf = (choices: readonly TextChoice[]): TextBody => ({
    id,
    object: "text_completion",
    created,
    model: own.model,
    choices,
    system_fingerprint: service.fingerprint,
  });
  const usageFor = (ends: readonly AnswerEnd[]): UsageBody => {
    const usage = usageOf(ends.map((end, i) => ({ ...end.usage, isFirst: i % count === 0 })));
    exchange.notes.promptTokens = usage.prompt_tokens;
    exchange.notes.newTokens = usage.completion_tokens;
    return usage;
  };
  if (own.stream !== true) {
    const whole = await Promise.all(answers.map((answer) => collect(answer)));
    const choices = whole.map(({ text: made, logprobs, end }, index): TextChoice => {
      const echo = echoOf(index);
      return {
        index,
        text: echo + made,
        logprobs:
          own.logprobs === undefined ? null : tokens.plain(logprobs, own.logprobs, echo.length),
        finish_reason: end.finishReason,
      };
    });
    return call.json({ ...bodyOf(choices), usage: usageFor(whole.map(({ end }) => end)) });
  }
  const hasUsage = own.stream_options?.include_usage === true;
  const withUsage = (chunk: TextBody, usage: UsageBody | null): TextBody =>
    hasUsage ? { ...chunk, usage } : chunk;
  return streamAnswers(call, async (sink) => {
    const one = async (answer: (typeof answers)[number], index: number): Promise<AnswerEnd> => {
      let offset = 0;
      const say = (made: string, more: Partial<TextChoice> = {}): Promise<void> => {
        offset += made.length;
        const choice = { index, text: made, logprobs: null, finish_reason: null, ...more };
        return sink.send(withUsage(bodyOf([choice]), null));
      };
      const echo = echoOf(index);
      if (echo !== "") await say(echo);
      for (;;) {
        const { done, value } = await answer.next();
        if (done) {
          await say("", { finish_reason: value.finishReason });
          return value;
        }
        const made = value.deltas
          .map((delta) => (delta.kind === "text" ? delta.text : ""))
          .join("");
        const { logprobs } = value;
        await say(
          made,
          own.logprobs === undefined
            ? {}
            : { logprobs: tokens.plain(logprobs, own.logprobs, offset) },
        );
      }
    };
    const usage = usageFor(await Promise.all(answers.map(one)));
    if (hasUsage) await sink.send(withUsage(bodyOf([]), usage));
  });
}

export const completionRoutes: Routes = (app, service) => {
  app.post("/v1/completions", (call) => answerText(call, service));
};
