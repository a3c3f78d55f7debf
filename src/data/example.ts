/** What data is before and after it is encoded: records of known layouts, and tokens with loss masks. */
import type { JsonObject } from "../io/json.ts";

/** A call of a tool that an assistant made. */
export interface ToolCall {
  readonly id?: string;
  readonly name: string;
  readonly arguments: JsonObject;
}

export interface ChatMessage {
  /** `system`, `user`, `assistant` or `tool`; templates may know others. */
  readonly role: string;
  readonly content: string;
  /** False where the message carries no loss, whoever wrote it; default: the assistant's carry it. */
  readonly hasLoss?: boolean;
  /** Calls that an assistant's message makes. */
  readonly toolCalls?: readonly ToolCall[];
  /** The call that a tool's message answers. */
  readonly toolCallId?: string;
  /** Who speaks, or which tool. */
  readonly name?: string;
}

/** A prompt or an answer of a preference: a text, or turns of a chat. */
export type Turns = string | readonly ChatMessage[];

interface Located {
  /** Where it was read, `file:line`; begins errors about it. */
  readonly where?: string;
}

export interface TextExample extends Located {
  readonly kind: "text";
  readonly text: string;
}

export interface PairExample extends Located {
  readonly kind: "pair";
  readonly prompt: string;
  readonly completion: string;
  readonly system?: string;
  /** Whether the completion was judged good, where it was judged (KTO). */
  readonly label?: boolean;
}

export interface ChatExample extends Located {
  readonly kind: "chat";
  readonly messages: readonly ChatMessage[];
  /** Whether the last answer was judged good, where it was judged (KTO). */
  readonly label?: boolean;
}

export interface PreferenceExample extends Located {
  readonly kind: "preference";
  readonly prompt: Turns;
  readonly chosen: Turns;
  readonly rejected: Turns;
}

/** One example of a data file, before it is tokens. */
export type RawExample = TextExample | PairExample | ChatExample | PreferenceExample;

/** Token ids, and for each whether it is predicted with loss. */
export interface Example {
  readonly ids: Int32Array;
  /** 1 where the token carries loss; the first of an example never does. */
  readonly mask: Uint8Array;
  /**
   * Of a packed row: the number of each token's example, from 0, in order. Examples do not see each
   * other: attention is block-diagonal and positions restart. Absent: one example.
   */
  readonly segments?: Int32Array;
  /** Of answers that were judged one by one: true where it was judged good. */
  readonly isGood?: boolean;
}

function turnsText(turns: Turns): string {
  return typeof turns === "string" ? turns : turns.map(({ content }) => content).join("\n");
}

/**
 * The text that an example answers: of a pair or preference the prompt, of a chat what stands before
 * the assistant's first turn (all of it where there is none before), of a text itself.
 */
export function promptText(example: RawExample): string {
  switch (example.kind) {
    case "text":
      return example.text;
    case "pair":
      return example.prompt;
    case "preference":
      return turnsText(example.prompt);
    case "chat": {
      const { messages } = example;
      const first = messages.findIndex(({ role }) => role === "assistant");
      return turnsText(first > 0 ? messages.slice(0, first) : messages);
    }
  }
}
