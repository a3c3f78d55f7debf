/** The process that has the engine. It is told what to serve, and ends with the process that started it. */
import { nodeHost } from "../host/node.ts";
import { toWire, withGguf } from "../index.ts";
import { type EngineSide, openEngineSide, type ToSide } from "./engine-side.ts";
import type { FromWorker, ToWorker } from "./node-engine.ts";

// Who started it decides when it ends: a Ctrl-C reaches both at once.
process.on("SIGINT", () => {});
process.on("SIGTERM", () => {});
process.once("disconnect", () => process.exit(0));

const post = (message: FromWorker): void => {
  // A failure is that of a closed channel, and then this process ends.
  process.send?.(message, () => {});
};
const host = nodeHost();
let side: EngineSide | undefined;

process.on("message", (message: ToWorker) => {
  if (message.type !== "start") {
    side?.receive(message satisfies ToSide);
    return;
  }
  openEngineSide({ ...host, files: withGguf(host.files) }, message.settings, post, () =>
    process.memoryUsage.rss(),
  ).then(
    (opened) => {
      side = opened;
    },
    (error: unknown) => post({ type: "failed", error: toWire(error) }),
  );
});
