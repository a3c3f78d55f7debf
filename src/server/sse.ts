/** Server-sent events: `data:` lines that end with `[DONE]`, or with an error object once they have begun. */

/** Milliseconds between comments that keep a silent connection open. */
const pingMs = 15_000;
/** Milliseconds for which a client may take nothing of what waits for it. */
const slowMs = 60_000;
/** Bytes that may wait. */
const highWater = 2 ** 16;

export interface EventSink {
  /** Sends an object; waits while the client takes nothing. */
  send(value: unknown): Promise<void>;
}

export interface EventOptions {
  /** Aborted when nobody listens any more: the work is to end. */
  readonly leave: () => void;
  /** The object that tells of an error. */
  readonly errorOf: (error: unknown) => unknown;
  /** Called once, when the stream has ended in any way. */
  readonly onEnd: (how: "done" | "error" | "left") => void;
}

/** The answer to a request as a stream of what `produce` sends. */
export function eventStream(
  produce: (sink: EventSink) => Promise<void>,
  { leave, errorOf, onEnd }: EventOptions,
  headers: Readonly<Record<string, string>> = {},
): Response {
  const encoder = new TextEncoder();
  let wake: (() => void) | undefined;
  let isOpen = true;
  let timer: ReturnType<typeof setInterval> | undefined;
  let waitsSince: number | undefined;

  const end = (how: "done" | "error" | "left"): void => {
    if (!isOpen) return;
    isOpen = false;
    clearInterval(timer);
    wake?.();
    onEnd(how);
  };

  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const write = (text: string): void => {
          if (isOpen) controller.enqueue(encoder.encode(text));
        };
        const isFull = (): boolean => (controller.desiredSize ?? 0) <= 0;
        timer = setInterval(() => {
          if (!isFull()) {
            write(": ping\n\n");
            return;
          }
          waitsSince ??= Date.now();
          if (Date.now() - waitsSince < slowMs) return;
          leave();
          end("left");
          controller.error(new Error("the client is too slow"));
        }, pingMs);
        (timer as { unref?: () => void }).unref?.();
        const sink: EventSink = {
          send: async (value) => {
            write(`data: ${JSON.stringify(value)}\n\n`);
            while (isOpen && isFull()) {
              await new Promise<void>((resolve) => {
                wake = resolve;
              });
            }
          },
        };
        produce(sink).then(
          () => {
            write("data: [DONE]\n\n");
            if (isOpen) controller.close();
            end("done");
          },
          (error) => {
            write(`data: ${JSON.stringify(errorOf(error))}\n\n`);
            if (isOpen) controller.close();
            end("error");
          },
        );
      },
      pull() {
        waitsSince = undefined;
        wake?.();
        wake = undefined;
      },
      cancel() {
        leave();
        end("left");
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: highWater }),
  );
  return new Response(body, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
      ...headers,
    },
  });
}
