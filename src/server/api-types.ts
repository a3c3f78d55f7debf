/** What goes over the wire, as the OpenAI interface has it: https://platform.openai.com/docs/api-reference. */
import type { JsonObject } from "../io/json.ts";

/** Every error, also inside a stream. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | number | null;
  };
}

export interface ListBody<T> {
  readonly object: "list";
  readonly data: readonly T[];
}

/** A page of a list that has more. */
export interface PageBody<T> extends ListBody<T> {
  readonly first_id: string | null;
  readonly last_id: string | null;
  readonly has_more: boolean;
}

export interface DeletedBody {
  readonly id: string;
  readonly object: string;
  readonly deleted: true;
}

export interface ModelBody {
  readonly id: string;
  readonly object: "model";
  /** Seconds since the epoch, as all times. */
  readonly created: number;
  readonly owned_by: string;
  /** Of an adapter: the model that it adapts. */
  readonly parent?: string;
  /** Tokens of a prompt and its answer. */
  readonly max_model_len?: number;
}

export interface UsageBody {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export interface TokenLogprobBody {
  readonly token: string;
  readonly logprob: number;
  /** UTF-8 of the token; null where the tokenizer's tokens are no pieces of text. */
  readonly bytes: readonly number[] | null;
}

export interface LogprobsBody {
  readonly content: readonly (TokenLogprobBody & {
    readonly top_logprobs: readonly TokenLogprobBody[];
  })[];
  readonly refusal: null;
}

export type FinishBody = "stop" | "length" | "tool_calls";

export interface ToolCallBody {
  readonly id: string;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: string };
}

export interface ToolCallDelta {
  readonly index: number;
  readonly id?: string;
  readonly type?: "function";
  readonly function: { readonly name?: string; readonly arguments?: string };
}

export interface ChatChoice {
  readonly index: number;
  readonly message: {
    readonly role: "assistant";
    readonly content: string | null;
    readonly refusal: null;
    readonly tool_calls?: readonly ToolCallBody[];
  };
  readonly logprobs: LogprobsBody | null;
  readonly finish_reason: FinishBody;
}

export interface ChatBody {
  readonly id: string;
  readonly object: "chat.completion";
  readonly created: number;
  readonly model: string;
  readonly choices: readonly ChatChoice[];
  readonly usage: UsageBody;
  readonly system_fingerprint: string;
}

export interface ChatChunk {
  readonly id: string;
  readonly object: "chat.completion.chunk";
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly {
    readonly index: number;
    readonly delta: {
      readonly role?: "assistant";
      readonly content?: string | null;
      readonly tool_calls?: readonly ToolCallDelta[];
    };
    readonly logprobs: LogprobsBody | null;
    readonly finish_reason: FinishBody | null;
  }[];
  /** With `include_usage`: null in all chunks but the last. */
  readonly usage?: UsageBody | null;
}

/** Of `/v1/completions`, in the older form. */
export interface TextLogprobsBody {
  readonly tokens: readonly string[];
  readonly token_logprobs: readonly number[];
  readonly top_logprobs: readonly Readonly<Record<string, number>>[] | null;
  readonly text_offset: readonly number[];
}

export interface TextChoice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: TextLogprobsBody | null;
  readonly finish_reason: "stop" | "length" | null;
}

/** The whole, or a chunk of it. */
export interface TextBody {
  readonly id: string;
  readonly object: "text_completion";
  readonly created: number;
  readonly model: string;
  readonly choices: readonly TextChoice[];
  readonly usage?: UsageBody | null;
  readonly system_fingerprint: string;
}

export interface EmbeddingsBody extends ListBody<EmbeddingBody> {
  readonly model: string;
  readonly usage: { readonly prompt_tokens: number; readonly total_tokens: number };
}

export interface EmbeddingBody {
  readonly object: "embedding";
  readonly index: number;
  /** Numbers, or float32 in base64. */
  readonly embedding: readonly number[] | string;
}

export interface FileBody {
  readonly id: string;
  readonly object: "file";
  readonly bytes: number;
  readonly created_at: number;
  readonly filename: string;
  readonly purpose: string;
  readonly status: "processed";
  readonly expires_at?: number;
}

export type JobStatus =
  | "validating_files"
  | "queued"
  | "running"
  | "succeeded"
  | "failed"
  | "cancelled";

export interface HyperparametersBody {
  readonly n_epochs: number | "auto";
  readonly batch_size: number | "auto";
  readonly learning_rate_multiplier: number | "auto";
}

export interface JobBody {
  readonly id: string;
  readonly object: "fine_tuning.job";
  readonly created_at: number;
  readonly finished_at: number | null;
  readonly estimated_finish: number | null;
  readonly status: JobStatus;
  readonly model: string;
  readonly fine_tuned_model: string | null;
  readonly training_file: string;
  readonly validation_file: string | null;
  readonly hyperparameters: HyperparametersBody;
  readonly method: JsonObject;
  readonly seed: number;
  readonly trained_tokens: number | null;
  readonly error: { readonly code: string; readonly message: string; readonly param: null } | null;
  readonly organization_id: string;
  readonly result_files: readonly string[];
  readonly integrations: readonly never[];
  readonly metadata: Readonly<Record<string, string>> | null;
}

export interface JobEventBody {
  readonly id: string;
  readonly object: "fine_tuning.job.event";
  readonly created_at: number;
  readonly level: "info" | "warn" | "error";
  readonly message: string;
  readonly type: "message" | "metrics";
  readonly data: Readonly<Record<string, number>> | null;
}

export interface AdapterBody {
  readonly id: string;
  readonly object: "adapter";
  readonly base: string;
  readonly created: number;
  /** Where it came from: a folder's name or a job. */
  readonly source: string;
  /** Requests that use it now. */
  readonly users: number;
}
