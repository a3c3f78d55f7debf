/** Turns of a chat with a model: its template, its history, and what still fits. */
import { encodeChatPrompt } from "../data/chat.ts";
import type { ChatTemplate } from "../data/chat-template.ts";
import { stopIdsOf } from "../data/encode.ts";
import type { ChatMessage } from "../data/example.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError } from "../errors.ts";
import type { Decoder } from "./decoder.ts";
import { PromptMemory } from "./memory.ts";
import { type GeneratedText, generateText, type TextOptions } from "./text.ts";

export interface ConversationOptions {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  /** Positions that the model has, prompt and answer together. */
  readonly maxPositions: number;
  /** Stands before all turns. */
  readonly system?: string;
}

export interface Reply extends GeneratedText {
  /** Messages at the start that did not fit and were forgotten. */
  readonly dropped: number;
}

/** What a model without a template would write next after its answer. */
const plainStops = ["\nUser:", "\nSystem:"];

export class Conversation {
  #decoder: Decoder;
  readonly #options: ConversationOptions;
  readonly #memory = new PromptMemory();
  readonly #stopIds: readonly number[];
  #system: string | undefined;
  #turns: ChatMessage[] = [];

  constructor(decoder: Decoder, options: ConversationOptions) {
    this.#decoder = decoder;
    this.#options = options;
    this.#system = options.system;
    this.#stopIds = stopIdsOf(options.tokenizer, options.template);
  }

  /** All messages, the system's first. */
  get messages(): readonly ChatMessage[] {
    return [
      ...(this.#system === undefined ? [] : [{ role: "system", content: this.#system }]),
      ...this.#turns,
    ];
  }

  get system(): string | undefined {
    return this.#system;
  }

  /** What stands before all turns from now on; they stay. */
  set system(text: string | undefined) {
    this.#system = text;
  }

  /** Forgets all turns; what the system said stays. */
  reset(): void {
    this.#turns = [];
  }

  /** Goes on with another decoder of the same tokenizer, as after an adapter was loaded. */
  use(decoder: Decoder): void {
    this.#decoder = decoder;
    this.#memory.clear();
  }

  /**
   * The model's answer to a message; both join the history, also when the answer was ended early. Of a
   * history that leaves no room for an answer, the oldest turns are forgotten.
   * @param options `maxNewTokens` is what the answer should have room for; default 64.
   * @throws OptionError when the message alone is too long; the history is then as before.
   */
  async reply(text: string, options: Omit<TextOptions, "memory" | "stopIds"> = {}): Promise<Reply> {
    const { tokenizer, template, maxPositions } = this.#options;
    const asked = [...this.#turns, { role: "user", content: text }];
    // At least half of the positions are for what was said.
    const room = Math.min(options.maxNewTokens ?? 64, Math.floor(maxPositions / 2));
    let dropped = 0;
    const encode = (): Int32Array => {
      const system = this.#system === undefined ? [] : [{ role: "system", content: this.#system }];
      const messages = [...system, ...asked.slice(dropped)];
      return Int32Array.from(encodeChatPrompt(messages, template, tokenizer, "chat"));
    };
    let ids = encode();
    while (ids.length > maxPositions - room && dropped < asked.length - 1) {
      do dropped++;
      while (dropped < asked.length - 1 && asked[dropped]!.role !== "user");
      ids = encode();
    }
    if (ids.length >= maxPositions) {
      throw new OptionError(
        `chat: the message takes ${ids.length} tokens with what stands around it, the model has ${maxPositions} positions — shorten it.`,
      );
    }
    const made = await generateText(this.#decoder, tokenizer, ids, {
      ...options,
      stop: [...(options.stop ?? []), ...(template.isPlain ? plainStops : [])],
      stopIds: this.#stopIds,
      memory: this.#memory,
    });
    const answer = { role: "assistant", content: made.text.trim() };
    this.#turns = [...asked.slice(dropped), answer];
    return { ...made, dropped };
  }
}
