/** The text side of a model: what prompts become, and what ends answers. Both threads have one. */
import {
  type ChatTemplate,
  encodeChatPrompt,
  type Files,
  loadChatTemplate,
  loadTokenizer,
  stopIdsOf,
  type Tokenizer,
} from "../index.ts";
import type { EncodeAsk } from "./served.ts";

export interface TextSide {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
}

export async function openTextSide(files: Files, folder: string): Promise<TextSide> {
  return {
    tokenizer: await loadTokenizer(files, folder),
    template: await loadChatTemplate(files, folder),
  };
}

/** Characters of a prompt, all its parts together. */
export function sizeOf(ask: EncodeAsk): number {
  if (ask.kind === "text") return ask.text.length;
  const tools = ask.tools ? JSON.stringify(ask.tools).length : 0;
  return ask.messages.reduce(
    (sum, { content, toolCalls }) =>
      sum + content.length + (toolCalls ? JSON.stringify(toolCalls).length : 0),
    tools,
  );
}

/**
 * Tokens of a prompt.
 * @throws FormatError when the template refuses the messages.
 */
export function encodeAsk(
  { tokenizer, template }: TextSide,
  ask: EncodeAsk,
): Int32Array<ArrayBuffer> {
  if (ask.kind === "text") {
    return Int32Array.from([...tokenizer.beginning, ...tokenizer.encode(ask.text)]);
  }
  return Int32Array.from(
    encodeChatPrompt(ask.messages, template, tokenizer, "messages", ask.tools),
  );
}

/** What a model without a template would write next after its answer. */
const plainStops = ["\nUser:", "\nSystem:"] as const;

/** Strings that end an answer beside those that the request names. */
export function stopsOf(template: ChatTemplate): readonly string[] {
  return template.isPlain ? plainStops : [];
}

/** Tokens that end an answer of a chat, and of a plain text. */
export function endsOf({ tokenizer, template }: TextSide): {
  readonly chat: readonly number[];
  readonly text: readonly number[];
} {
  return { chat: stopIdsOf(tokenizer, template), text: stopIdsOf(tokenizer) };
}
