/** What the routes stand on: an engine that serves one base model with adapters, and its text side. */
import type {
  AdapterInfo,
  ChatMessage,
  ChatTemplate,
  ServeHandle,
  ServeMetrics,
  Tokenizer,
  WireRequest,
} from "../index.ts";

/** What is to become the tokens of a prompt. */
export type EncodeAsk =
  | { readonly kind: "text"; readonly text: string }
  | {
      readonly kind: "chat";
      readonly messages: readonly ChatMessage[];
      /** As the OpenAI interface has them, for templates that know tools. */
      readonly tools?: readonly object[];
    };

export type EngineState = "loading" | "ready" | "restarting" | "closed";

/** The numbers of an engine. */
export interface EngineStats {
  readonly metrics: ServeMetrics;
  readonly adapters: readonly AdapterInfo[];
}

export interface ServedEngine {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  /** Tokens of a prompt and its answer at most; 0 while the model is loaded. */
  readonly maxLength: number;
  readonly vocabSize: number;
  readonly state: EngineState;
  /** New starts so far, where it can be started again. */
  readonly restarts?: number;
  /** Bytes that its process held when it was last asked, where it has one. */
  readonly memory?: number | undefined;
  /** @throws FormatError when the template refuses the messages. */
  encode(ask: EncodeAsk): Promise<Int32Array<ArrayBuffer>>;
  /**
   * Hands a request over; resolves when it was taken.
   * @throws OptionError for one that is wrong, BusyError when too many wait, UnavailableError while there is
   * no engine.
   */
  submit(request: WireRequest): Promise<ServeHandle>;
  embed(
    texts: readonly string[],
  ): Promise<{ readonly vectors: readonly Float32Array[]; readonly tokens: number }>;
  /** Makes a folder's adapter one that requests can name; nothing is compiled. */
  loadAdapter(name: string, folder: string): Promise<void>;
  unloadAdapter(name: string): Promise<void>;
  stats(): Promise<EngineStats>;
}
