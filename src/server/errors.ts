/** Errors as the OpenAI interface has them, and how those of this package become one. */
import { BusyError, PlasticityError, StateError } from "../index.ts";
import type { ErrorBody } from "./api-types.ts";

/** An answer that is an error. */
export class ApiError extends Error {
  readonly status: number;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    more: {
      readonly type?: string;
      readonly param?: string | undefined;
      readonly code?: string;
      readonly headers?: Readonly<Record<string, string>>;
    } = {},
  ) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.type = more.type ?? (status >= 500 ? "server_error" : "invalid_request_error");
    this.param = more.param ?? null;
    this.code = more.code ?? null;
    this.headers = more.headers ?? {};
  }

  get body(): ErrorBody {
    const { message, type, param, code } = this;
    return { error: { message, type, param, code } };
  }
}

/** The server cannot answer now, and may later. */
export class UnavailableError extends StateError {}

/** A request whose value is wrong. */
export function wrong(message: string, param?: string, code = "invalid_value"): ApiError {
  return new ApiError(400, message, { param, code });
}

export function notFound(what: string, param?: string): ApiError {
  return new ApiError(404, what, { param, code: "not_found" });
}

/** The sentence about a model that is not there, as clients know it. */
export function unknownModel(name: string): ApiError {
  const shown = name.length > 100 ? `${name.slice(0, 100)}…` : name;
  return new ApiError(
    404,
    `The model \`${shown}\` does not exist or you do not have access to it.`,
    { param: "model", code: "model_not_found" },
  );
}

const retry = { headers: { "retry-after": "1" } } as const;

/**
 * What a client is told of an error of any kind; those that are faults of ours are told without their inside.
 * @param requestId names the entry of the log that has it
 */
export function apiErrorOf(error: unknown, requestId: string): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof BusyError) {
    return new ApiError(429, error.message, {
      type: "rate_limit_error",
      code: "rate_limit_exceeded",
      ...retry,
    });
  }
  if (error instanceof UnavailableError) {
    return new ApiError(503, error.message, {
      type: "unavailable_error",
      code: "unavailable",
      ...retry,
    });
  }
  if (error instanceof PlasticityError) {
    switch (error.code) {
      case "option":
      case "shape":
      case "dtype":
      case "format":
      case "unsupported":
        return new ApiError(400, error.message, {
          code: error.code === "unsupported" ? "unsupported_value" : "invalid_value",
        });
      case "missing":
        return new ApiError(404, error.message, { code: "not_found" });
      case "state":
        return new ApiError(500, error.message, { code: "internal_error" });
    }
  }
  return new ApiError(
    500,
    `The server had an error while it answered request ${requestId} — its log says more.`,
    { code: "internal_error" },
  );
}
