/**
 * Chats as tokens with loss masks.
 *
 * The template's rendering is cut at its special tokens and where loss begins and ends. Only the
 * template's own text is read for special tokens: contents stay text whatever is written in them.
 *
 * Loss of an assistant's turn begins where the prompt of an answer ends (`add_generation_prompt`); it
 * ends with what closes the turn, such as `<|im_end|>`, white space after that left out. A template
 * that marks `{% generation %}` says so itself.
 */
import { FormatError } from "../errors.ts";
import type { ChatTemplate, Rendering, Span } from "./chat-template.ts";
import type { ChatMessage } from "./example.ts";
import type { SpecialToken, Tokenizer } from "./tokenizer.ts";

/** Which turns carry loss: the assistant's, its last one, or everything. */
export type LossOn = "completion" | "last" | "all";

export interface Tokens {
  readonly ids: number[];
  /** 1 where the token carries loss. */
  readonly mask: number[];
}

const isAnswer = ({ role, hasLoss }: ChatMessage): boolean =>
  role === "assistant" && hasLoss !== false;

/** Special tokens in the template's own text, in order. */
function specialsIn(
  { text, contents }: Rendering,
  tokenizer: Tokenizer,
): (Span & { readonly token: SpecialToken })[] {
  const found: (Span & { token: SpecialToken })[] = [];
  const byText = new Map(tokenizer.specialTokens.map((token) => [token.text, token]));
  const search = (from: number, to: number): void => {
    for (const { 0: hit, index } of text.slice(from, to).matchAll(tokenizer.specialPattern)) {
      const start = from + index;
      found.push({ start, end: start + hit.length, token: byText.get(hit)! });
    }
  };
  let at = 0;
  for (const { start, end } of contents ?? []) {
    search(at, start);
    at = end;
  }
  search(at, text.length);
  return found;
}

/** The spans of a rendering that carry loss. */
function lossSpans(
  rendering: Rendering,
  messages: readonly ChatMessage[],
  template: ChatTemplate,
  specials: readonly Span[],
  lossOn: LossOn,
  where: string,
): Span[] {
  const { text, contents, generated } = rendering;
  if (lossOn === "all") return [{ start: 0, end: text.length }];
  if (generated) {
    const silent = (contents ?? []).filter(({ message }) => messages[message]?.hasLoss === false);
    const spans = generated.filter(
      ({ start, end }) => !silent.some((own) => own.start >= start && own.end <= end),
    );
    return lossOn === "last" ? spans.slice(-1) : spans;
  }
  let answers = messages.flatMap((message, i) => (isAnswer(message) ? [i] : []));
  if (lossOn === "last") answers = answers.slice(-1);
  return answers.map((i) => {
    const own = (contents ?? []).filter(({ message }) => message === i);
    const before = messages.slice(0, i);
    const start =
      renderedPrefix(template, before, true, text) ??
      afterOpening(template, before, text, contents ?? [], own[0]?.start) ??
      own[0]?.start;
    if (start === undefined) {
      throw new FormatError(
        `${where}: turn ${i + 1} cannot be found in what the chat template of ${template.where} makes of the chat — give a template that renders turns one after the other, or marks them with {% generation %}.`,
      );
    }
    const contentEnd = Math.max(start, own.at(-1)?.end ?? start);
    const isLast = i === messages.length - 1;
    const after = isLast
      ? text.length
      : renderedPrefix(template, messages.slice(0, i + 1), false, text);
    const end = after && Math.max(contentEnd, text.slice(0, after).trimEnd().length);
    const next = specials.find((special) => special.start >= contentEnd);
    if (end !== undefined && (end > contentEnd || next?.start !== after)) return { start, end };
    // The turn is closed by the next special token, be it the next turn's opening (as in GLM 4).
    const following = contents?.find((other) => other.start >= contentEnd && other.message !== i);
    const isOwn = next !== undefined && next.end <= (following?.start ?? text.length);
    return { start, end: isOwn ? next.end : contentEnd };
  });
}

/**
 * Where a turn's own text begins after what opens it: what the template adds to the turns before for
 * an answer to begin. For templates that render earlier turns otherwise than later ones.
 */
function afterOpening(
  template: ChatTemplate,
  before: readonly ChatMessage[],
  text: string,
  contents: readonly Span[],
  contentAt: number | undefined,
): number | undefined {
  if (contentAt === undefined || before.length === 0) return undefined;
  try {
    const [closed, open] = [template.prompt(before, false), template.prompt(before, true)];
    const opening = open.startsWith(closed) ? open.slice(closed.length) : "";
    if (opening === "") return undefined;
    const at = text.lastIndexOf(opening, contentAt - opening.length);
    const previous = contents.filter(({ end }) => end <= contentAt).at(-1)?.end ?? 0;
    return at >= previous ? at + opening.length : undefined;
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}

/** The length of a beginning's rendering, where the whole begins with it. */
function renderedPrefix(
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  isPrompt: boolean,
  whole: string,
): number | undefined {
  if (messages.length === 0) return isPrompt ? undefined : 0;
  try {
    const text = template.prompt(messages, isPrompt);
    return whole.startsWith(text) ? text.length : undefined;
  } catch (error) {
    // Some templates take no chat that ends with this turn.
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}

/**
 * Tokens of a chat.
 * @param where begins errors: the chat's file and line.
 * @throws FormatError when the template refuses the chat, or hides where a turn is.
 */
export function encodeChat(
  messages: readonly ChatMessage[],
  template: ChatTemplate,
  tokenizer: Tokenizer,
  lossOn: LossOn,
  where: string,
): Tokens {
  const rendering = template.render(messages, where);
  const writer = writeTokens(rendering, messages, template, tokenizer, where, (specials) =>
    lossSpans(rendering, messages, template, specials, lossOn, where),
  );
  closeLast(writer, rendering, messages, tokenizer);
  return writer;
}

/**
 * Tokens of a chat up to where the assistant goes on, as `encodeChat` gives them.
 * @param tools what the assistant may call, as the OpenAI interface has them
 * @throws FormatError when the template refuses the chat, or a tool or a call holds a special token's text.
 */
export function encodeChatPrompt(
  messages: readonly ChatMessage[],
  template: ChatTemplate,
  tokenizer: Tokenizer,
  where: string,
  tools?: readonly object[],
): readonly number[] {
  const calls = messages.flatMap(({ toolCalls }) => toolCalls ?? []);
  checkToolText([...(tools ?? []), ...calls], tokenizer, where);
  const rendering = template.render(messages, where, true, tools);
  return writeTokens(rendering, messages, template, tokenizer, where, () => []).ids;
}

/** What tools and calls say stands in the template's own text, where special tokens are read. */
function checkToolText(said: readonly object[], tokenizer: Tokenizer, where: string): void {
  const found = said.length > 0 && JSON.stringify(said).match(tokenizer.specialPattern)?.[0];
  if (!found) return;
  throw new FormatError(
    `${where}: a tool or a call of one holds ${JSON.stringify(found)}, which is a special token — take it out of the text.`,
  );
}

function writeTokens(
  rendering: Rendering,
  messages: readonly ChatMessage[],
  template: ChatTemplate,
  tokenizer: Tokenizer,
  where: string,
  spansOf: (specials: readonly Span[]) => readonly Span[],
): TokenWriter {
  if (!rendering.contents) {
    const written = messages
      .map(({ content }) => content.match(tokenizer.specialPattern)?.[0])
      .find((text) => text !== undefined);
    if (written !== undefined) {
      throw new FormatError(
        `${where}: a message holds ${JSON.stringify(written)}, and the chat template of ${template.where} changes messages so that it cannot be told from a special token — take it out of the text.`,
      );
    }
  }
  const specials = specialsIn(rendering, tokenizer);
  const writer = new TokenWriter(tokenizer, rendering.text, spansOf(specials));
  // The plain template names no token for the beginning; a model's own does.
  if (template.isPlain) writer.begin();
  let at = 0;
  for (const { start, end, token } of specials) {
    writer.text(at, start, token.strips.left);
    writer.special(token, start);
    at = end;
  }
  writer.text(at, rendering.text.length, false);
  return writer;
}

/** Ends a chat whose template closes its last answer with nothing, so that a model learns to stop. */
function closeLast(
  writer: TokenWriter,
  rendering: Rendering,
  messages: readonly ChatMessage[],
  { eosId }: Tokenizer,
): void {
  const end = rendering.contents?.at(-1)?.end;
  const isOpen = end !== undefined && rendering.text.slice(end).trim() === "";
  const isAnswered = isAnswer(messages.at(-1)!) && writer.mask.at(-1) === 1;
  if (isOpen && isAnswered && eosId !== undefined) writer.push([eosId], true);
}

/** Writes tokens in order; borders of loss are borders of tokens. */
class TokenWriter implements Tokens {
  readonly ids: number[] = [];
  readonly mask: number[] = [];
  readonly #tokenizer: Tokenizer;
  readonly #text: string;
  readonly #spans: readonly Span[];
  #last: SpecialToken | undefined;

  constructor(tokenizer: Tokenizer, text: string, spans: readonly Span[]) {
    this.#tokenizer = tokenizer;
    this.#text = text;
    this.#spans = spans;
  }

  #hasLoss(at: number): boolean {
    return this.#spans.some(({ start, end }) => start <= at && at < end);
  }

  push(ids: ArrayLike<number>, hasLoss: boolean): void {
    for (let i = 0; i < ids.length; i++) {
      this.ids.push(ids[i]!);
      this.mask.push(hasLoss ? 1 : 0);
    }
  }

  begin(): void {
    this.push(this.#tokenizer.beginning, false);
  }

  special(token: SpecialToken, at: number): void {
    this.push([token.id], this.#hasLoss(at));
    this.#last = token;
  }

  /** Text between special tokens. */
  text(from: number, to: number, isStripped: boolean): void {
    let [start, end] = [from, to];
    const text = this.#text;
    if (this.#last?.strips.right) {
      while (start < end && /\s/.test(text[start]!)) start++;
    }
    if (isStripped) while (end > start && /\s/.test(text[end - 1]!)) end--;
    if (start >= end) return;
    const borders = this.#spans
      .flatMap((span) => [span.start, span.end])
      .filter((border) => border > start && border < end)
      .sort((a, b) => a - b);
    let piece = start;
    let before: string | undefined;
    for (const border of [...borders, end]) {
      if (border === piece) continue;
      const part = text.slice(piece, border);
      const ids =
        before === undefined ? this.#first(part) : this.#tokenizer.encodeAfter(before, part);
      this.push(ids, this.#hasLoss(piece));
      before = part;
      piece = border;
    }
  }

  /** The first piece after a special token, or of the whole. */
  #first(part: string): ArrayLike<number> {
    const last = this.#last;
    const tokenizer = this.#tokenizer;
    if (!last || part.search(tokenizer.specialPattern) >= 0) {
      return tokenizer.encode(part);
    }
    // Some tokenizers treat a text's beginning otherwise than what follows a special token.
    const ids = tokenizer.encode(last.text + part, { allowSpecial: true });
    return ids[0] === last.id ? ids.subarray(1) : tokenizer.encode(part);
  }
}
