/** Raw examples as tokens with loss masks. */
import { FormatError, OptionError } from "../errors.ts";
import { encodeChat, encodeChatPrompt, type LossOn } from "./chat.ts";
import { type ChatTemplate, needTemplate } from "./chat-template.ts";
import type {
  ChatExample,
  ChatMessage,
  Example,
  PreferenceExample,
  RawExample,
  Turns,
} from "./example.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** How a prompt stands before its completion: `{prompt}` is replaced. */
export const defaultTemplate = "{prompt}\n";

export function applyTemplate(template: string, prompt: string): string {
  if (!template.includes("{prompt}")) {
    throw new OptionError(`template ${JSON.stringify(template)} must contain {prompt}.`);
  }
  return template.replace("{prompt}", () => prompt);
}

/** How text becomes tokens; the same for training and for asking. */
export interface PromptOptions {
  /** Of pairs; default `{prompt}` and a line break. A pair's system text stands before it. */
  readonly template?: string;
  /** Of chats; needed where there are any. */
  readonly chat?: ChatTemplate;
  /** Whether pairs are rendered as chats too; default false. */
  readonly pairsAsChats?: boolean;
  /** Whether texts and pairs begin with what the tokenizer puts there; default true. */
  readonly addBeginning?: boolean;
}

export interface EncodeExamplesOptions extends PromptOptions {
  /** Longest example in tokens; longer ones are cut at the end. */
  readonly maxLength: number;
  /**
   * What carries loss of pairs and chats: "completion" (default) all that the assistant says, "last"
   * its last turn, "all" every token. A text's tokens all do.
   */
  readonly lossOn?: LossOn;
}

export interface EncodedExamples {
  readonly examples: readonly Example[];
  /** Examples that were cut. */
  readonly cut: number;
  /** Examples left out, since nothing that carries loss was left. */
  readonly empty: number;
}

export interface EncodedExample extends Example {
  readonly isCut: boolean;
}

function turnsAs(turns: Turns, role: string): readonly ChatMessage[] {
  return typeof turns === "string" ? [{ role, content: turns }] : turns;
}

/** One answer to a preference's prompt, as an example of its own; only the answer carries loss. */
export function answerOf(example: PreferenceExample, answer: "chosen" | "rejected"): RawExample {
  const { prompt, where } = example;
  const turns = example[answer];
  const place = where === undefined ? {} : { where };
  if (typeof prompt === "string" && typeof turns === "string") {
    return { kind: "pair", prompt, completion: turns, ...place };
  }
  const asked = turnsAs(prompt, "user").map(({ role, content }) => ({
    role,
    content,
    hasLoss: false,
  }));
  return { kind: "chat", messages: [...asked, ...turnsAs(turns, "assistant")], ...place };
}

/** A pair as a chat of two turns, or three with its system text. */
function asChat(example: Extract<RawExample, { kind: "pair" }>): ChatExample {
  const { prompt, completion, system, where, label } = example;
  return {
    kind: "chat",
    messages: [
      ...(system === undefined ? [] : [{ role: "system", content: system }]),
      { role: "user", content: prompt },
      { role: "assistant", content: completion },
    ],
    ...(where !== undefined && { where }),
    ...(label !== undefined && { label }),
  };
}

function pairPrompt(example: Extract<RawExample, { kind: "pair" }>, template: string): string {
  const prompt = applyTemplate(template, example.prompt);
  return example.system === undefined ? prompt : `${example.system}\n\n${prompt}`;
}

/** What an example is encoded as: a preference as its chosen answer, a pair perhaps as a chat. */
function settle(
  example: RawExample,
  { pairsAsChats = false }: PromptOptions,
): Exclude<RawExample, PreferenceExample> {
  const answered = example.kind === "preference" ? answerOf(example, "chosen") : example;
  if (answered.kind === "pair" && pairsAsChats) return asChat(answered);
  return answered as Exclude<RawExample, PreferenceExample>;
}

/**
 * Tokens of an example. A text or pair ends with the end-of-text token; prompt and completion meet at
 * a border of tokens. A chat is as its template has it. Of a preference the chosen answer is taken.
 * @throws FormatError when a chat template refuses a chat.
 * @throws OptionError when a chat is given and no template.
 */
export function encodeExample(
  example: RawExample,
  tokenizer: Tokenizer,
  options: EncodeExamplesOptions,
): EncodedExample {
  const { maxLength, lossOn = "completion", addBeginning = true } = options;
  const item = settle(example, options);
  const where = item.where ?? "data";
  let whole: ArrayLike<number>;
  let carries: (i: number) => boolean;
  if (item.kind === "chat") {
    const chat = needTemplate(options.chat, where);
    const { ids, mask } = encodeChat(item.messages, chat, tokenizer, lossOn, where);
    whole = ids;
    carries = (i) => mask[i] === 1;
  } else {
    const beginning = addBeginning ? tokenizer.beginning : [];
    const end = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
    if (item.kind === "text") {
      whole = [...beginning, ...tokenizer.encode(item.text), ...end];
      carries = (i) => i >= beginning.length;
    } else {
      const prompt = pairPrompt(item, options.template ?? defaultTemplate);
      const before = [...beginning, ...tokenizer.encode(prompt)];
      whole = [...before, ...tokenizer.encodeAfter(prompt, item.completion), ...end];
      carries = (i) => (lossOn === "all" ? i >= beginning.length : i >= before.length);
    }
  }
  const size = Math.min(whole.length, maxLength);
  const ids = new Int32Array(size);
  const mask = new Uint8Array(size);
  for (let i = 0; i < size; i++) {
    ids[i] = whole[i]!;
    mask[i] = i > 0 && carries(i) ? 1 : 0;
  }
  const isGood = "label" in item ? item.label : undefined;
  return { ids, mask, isCut: size < whole.length, ...(isGood !== undefined && { isGood }) };
}

/**
 * Tokens of examples.
 * @throws OptionError when no example carries loss.
 * @throws FormatError when a chat template refuses a chat; it names file and line.
 */
export function encodeExamples(
  raw: readonly RawExample[],
  tokenizer: Tokenizer,
  options: EncodeExamplesOptions,
): EncodedExamples {
  const examples: Example[] = [];
  let [cut, empty] = [0, 0];
  for (const item of raw) {
    const { ids, mask, isCut } = encodeExample(item, tokenizer, options);
    if (isCut) cut++;
    if (mask.includes(1)) examples.push({ ids, mask });
    else empty++;
  }
  if (examples.length === 0) throw noLoss(raw.length, options.maxLength);
  return { examples, cut, empty };
}

/** The refusal of data in which nothing can be learnt. */
export function noLoss(count: number, maxLength: number): OptionError {
  return new OptionError(
    `data: no token carries loss in any of ${count} examples — are the completions empty, or maxLength ${maxLength} too short?`,
  );
}

/** Both answers of each preference as tokens, in the order of the data. */
export interface EncodedPreferences {
  readonly chosen: readonly Example[];
  readonly rejected: readonly Example[];
  /** Pairs of which an answer was cut. */
  readonly cut: number;
  /** Pairs left out, since an answer had nothing that carries loss. */
  readonly empty: number;
}

/**
 * Tokens of preferences: each answer after its prompt, with loss on the answer alone.
 * @throws FormatError when an example is no preference.
 * @throws OptionError when none is left.
 */
export function encodePreferences(
  raw: readonly RawExample[],
  tokenizer: Tokenizer,
  options: EncodeExamplesOptions,
): EncodedPreferences {
  const chosen: Example[] = [];
  const rejected: Example[] = [];
  let [cut, empty] = [0, 0];
  for (const item of raw) {
    if (item.kind !== "preference") {
      throw new FormatError(
        `${item.where ?? "data"}: is a ${item.kind}, a preference is needed — give "prompt", "chosen" and "rejected".`,
      );
    }
    const [good, bad] = (["chosen", "rejected"] as const).map((answer) =>
      encodeExample(answerOf(item, answer), tokenizer, options),
    ) as [EncodedExample, EncodedExample];
    if (good.isCut || bad.isCut) cut++;
    if (good.mask.includes(1) && bad.mask.includes(1)) {
      chosen.push({ ids: good.ids, mask: good.mask });
      rejected.push({ ids: bad.ids, mask: bad.mask });
    } else empty++;
  }
  if (chosen.length === 0) throw noLoss(raw.length, options.maxLength);
  return { chosen, rejected, cut, empty };
}

/**
 * What an objective learns from: "any" example as it stands; "answered" ones, that have a prompt and an
 * answer; a "preference" of two answers; answers that were "judged" good or bad one by one.
 */
export type DataKind = "any" | "answered" | "preference" | "judged";

/**
 * The examples that are encoded for one of the data: both answers of a preference, chosen first, where the
 * objective compares or judges answers; else the example itself.
 * @param who the objective, for errors
 * @throws FormatError that says what data is needed.
 */
export function partsOf(raw: RawExample, kind: DataKind, who: string): readonly RawExample[] {
  const refuse = (what: string): FormatError =>
    new FormatError(`${raw.where ?? "data"}: is a ${raw.kind}${what}.`, { kind: raw.kind });
  const both = (): RawExample[] => [
    answerOf(raw as PreferenceExample, "chosen"),
    answerOf(raw as PreferenceExample, "rejected"),
  ];
  switch (kind) {
    case "any":
      return [raw];
    case "answered":
      if (raw.kind === "text") {
        throw refuse(
          `, ${who} needs prompts with answers — give "prompt" and "completion", or chats`,
        );
      }
      return [raw];
    case "preference":
      if (raw.kind === "preference") return both();
      throw refuse(`, ${who} needs preferences — give "prompt", "chosen" and "rejected"`);
    case "judged":
      if (raw.kind === "preference") {
        return both().map((answer, i) => ({ ...answer, label: i === 0 }) as RawExample);
      }
      if ((raw.kind === "pair" || raw.kind === "chat") && raw.label !== undefined) return [raw];
      throw refuse(
        ` without a label, ${who} needs answers that were judged — give "prompt", "completion" and "label" (true or false), or "prompt", "chosen" and "rejected"`,
      );
  }
}

/** What is asked and what answer is expected; nothing for texts and chats that end otherwise. */
export interface Question {
  /** Tokens up to where the answer begins, as in training. */
  readonly ids: Int32Array<ArrayBuffer>;
  /** The last thing asked, for showing. */
  readonly prompt: string;
  readonly expected: string;
}

/**
 * The question that an example answers at its end, in the tokens that training gave it.
 * @throws FormatError when a chat template refuses the chat.
 */
export function questionOf(
  example: RawExample,
  tokenizer: Tokenizer,
  options: PromptOptions = {},
): Question | undefined {
  const item = settle(example, options);
  const beginning = options.addBeginning === false ? [] : tokenizer.beginning;
  if (item.kind === "text") return undefined;
  if (item.kind === "pair") {
    const text = pairPrompt(item, options.template ?? defaultTemplate);
    const ids = Int32Array.from([...beginning, ...tokenizer.encode(text)]);
    return { ids, prompt: item.prompt, expected: item.completion };
  }
  const last = item.messages.at(-1);
  const before = item.messages.slice(0, -1);
  if (last?.role !== "assistant" || before.length === 0) return undefined;
  const where = item.where ?? "data";
  const chat = needTemplate(options.chat, where);
  return {
    ids: Int32Array.from(encodeChatPrompt(before, chat, tokenizer, where)),
    prompt: before.at(-1)!.content,
    expected: last.content,
  };
}

/** Tokens that end an answer: the tokenizer's end, and what the chat template closes a turn with. */
export function stopIdsOf(tokenizer: Tokenizer, chat?: ChatTemplate): number[] {
  const stops = new Set(tokenizer.eosId === undefined ? [] : [tokenizer.eosId]);
  if (chat) {
    const turns = [
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
    ];
    const { ids, mask } = encodeChat(turns, chat, tokenizer, "completion", chat.where);
    const last = ids[mask.lastIndexOf(1)];
    if (tokenizer.specialTokens.some(({ id }) => id === last)) stops.add(last!);
  }
  return [...stops];
}
