/** Bodies of requests, with caps on size, time and depth. */
import { FormatError } from "../index.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import { ApiError, wrong } from "./errors.ts";

const maxDepth = 64;
const maxValues = 500_000;

function tooLarge(limit: number): ApiError {
  return new ApiError(413, `The body of the request is larger than ${limit} bytes.`, {
    code: "request_too_large",
    // What is still on its way is not read.
    headers: { connection: "close" },
  });
}

/**
 * All bytes of a body.
 * @param ms until all of it must be there
 * @throws ApiError 413 for one that is larger than the limit, 408 for one that does not come.
 */
export async function readBody(
  request: Request,
  limit: number,
  ms: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const said = request.headers.get("content-length");
  if (said !== null && Number(said) > limit) throw tooLarge(limit);
  const reader = request.body?.getReader();
  if (!reader) return new Uint8Array(0);
  const parts: Uint8Array[] = [];
  let size = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(
        new ApiError(408, `The body of the request did not come within ${ms / 1000} seconds.`, {
          code: "request_timeout",
          headers: { connection: "close" },
        }),
      );
    }, ms);
  });
  late.catch(() => {});
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late]);
      if (done) break;
      size += value.length;
      if (size > limit) throw tooLarge(limit);
      parts.push(value);
    }
  } catch (error) {
    void reader.cancel().catch(() => {});
    if (error instanceof ApiError) throw error;
    throw new ApiError(400, "The body of the request was cut short.", { code: "incomplete_body" });
  } finally {
    clearTimeout(timer);
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/**
 * A body that is an object in JSON.
 * @throws ApiError 415 for another type, 400 for what is no such object, as `readBody`.
 */
export async function readJson(request: Request, limit: number, ms: number): Promise<JsonObject> {
  const type = (request.headers.get("content-type") ?? "").split(";")[0]!.trim().toLowerCase();
  // A page of another site cannot send this type without asking first.
  if (type !== "application/json") {
    throw new ApiError(
      415,
      `Unsupported content type: expected 'application/json', but got '${type.slice(0, 60)}'.`,
      { code: "unsupported_content_type" },
    );
  }
  const bytes = await readBody(request, limit, ms);
  if (bytes.length === 0)
    throw wrong("The body of the request is empty: it must be a JSON object.");
  try {
    const value = parseJson(bytes, "body", { maxDepth, maxValues, maxBytes: limit });
    if (isJsonObject(value)) return value;
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw wrong(
      `We could not parse the JSON body of your request: ${error.message}`,
      undefined,
      "invalid_json",
    );
  }
  throw wrong("The body of the request must be a JSON object.");
}
