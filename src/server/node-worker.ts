/** The worker thread that has the engine; what it is to serve is its `workerData`. */
import { parentPort, workerData } from "node:worker_threads";
import { nodeHost } from "../host/node.ts";
import { toWire, withGguf } from "../index.ts";
import { type EngineSettings, type FromSide, openEngineSide, type ToSide } from "./engine-side.ts";
import type { FromWorker } from "./node-engine.ts";

const port = parentPort!;
const post = (message: FromWorker): void => port.postMessage(message);
const host = nodeHost();

try {
  const side = await openEngineSide(
    { ...host, files: withGguf(host.files) },
    workerData as EngineSettings,
    (message: FromSide) => post(message),
  );
  port.on("message", (message: ToSide) => side.receive(message));
} catch (error) {
  post({ type: "failed", error: toWire(error) });
}
