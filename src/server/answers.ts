/** Several answers to one request: handed over together, collected, or streamed side by side. */
import type { ServeHandle, WireRequest } from "../index.ts";
import type { AnswerEnd, AnswerPiece } from "./answer.ts";
import type { ToolCallBody } from "./api-types.ts";
import { apiErrorOf } from "./errors.ts";
import type { Call, Service } from "./service.ts";
import { type EventSink, eventStream } from "./sse.ts";

/** One answer of several. */
export type Answer = AsyncGenerator<AnswerPiece, AnswerEnd, undefined>;

/**
 * Hands all choices over; when one is refused the others are ended. A client that goes ends them too.
 * @throws as `ServedEngine.submit`.
 */
export async function submitAll(
  { engine }: Service,
  call: Call,
  requests: readonly WireRequest[],
): Promise<readonly ServeHandle[]> {
  const { signal } = call.get("exchange");
  const taken = await Promise.allSettled(requests.map((request) => engine.submit(request)));
  const handles = taken.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const cancel = (): void => {
    for (const handle of handles) handle.cancel();
  };
  const refused = taken.find((one) => one.status === "rejected");
  if (refused) {
    cancel();
    throw refused.reason;
  }
  if (signal.aborted) cancel();
  else signal.addEventListener("abort", cancel, { once: true });
  return handles;
}

/** A whole answer, its calls apart from its text. */
interface Whole {
  readonly text: string;
  readonly calls: readonly ToolCallBody[];
  readonly logprobs: AnswerPiece["logprobs"];
  readonly end: AnswerEnd;
}

/** Reads an answer to its end. */
export async function collect(answer: Answer): Promise<Whole> {
  let plain = "";
  const calls: { id: string; name: string; json: string }[] = [];
  const logprobs: AnswerPiece["logprobs"][number][] = [];
  for (;;) {
    const { done, value } = await answer.next();
    if (done) {
      return {
        text: plain,
        calls: calls.map(({ id, name, json }) => ({
          id,
          type: "function",
          function: { name, arguments: json },
        })),
        logprobs,
        end: value,
      };
    }
    logprobs.push(...value.logprobs);
    for (const delta of value.deltas) {
      if (delta.kind === "text") plain += delta.text;
      else if (delta.kind === "call") calls.push({ id: delta.id, name: delta.name, json: "" });
      else calls[delta.index]!.json += delta.text;
    }
  }
}

/**
 * The answer to a request as a stream of what `produce` sends; when that fails, its other answers end and the
 * client is told.
 */
export function streamAnswers(call: Call, produce: (sink: EventSink) => Promise<void>): Response {
  const exchange = call.get("exchange");
  exchange.isStreaming = true;
  return eventStream(
    produce,
    {
      leave: () => exchange.abort(),
      errorOf: (error) => {
        // One choice that failed ends the others.
        exchange.abort();
        const known = apiErrorOf(error, exchange.id);
        if (known.status >= 500 && known !== error && error instanceof Error)
          exchange.fault = error;
        exchange.notes.error = known.code ?? known.type;
        return known.body;
      },
      onEnd: () => exchange.end(),
    },
    { "x-request-id": exchange.id },
  );
}
