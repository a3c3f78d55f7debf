// A minimal Web Worker over node:worker_threads, enough for jax-js's thread pool (blob: URLs,
// postMessage, onmessage, onerror). Node has no global `Worker`, so without this jax-js is
// single-threaded there.
import { resolveObjectURL } from "node:buffer";
import { Worker as NodeWorker } from "node:worker_threads";

const PRELUDE = `
const { parentPort } = require("node:worker_threads");
globalThis.self = globalThis;
globalThis.postMessage = (message) => parentPort.postMessage(message);
parentPort.on("message", (data) => globalThis.onmessage({ data }));
`;

class WebWorker {
  onmessage = null;
  onerror = null;
  #worker;

  constructor(url) {
    this.#worker = resolveObjectURL(url)
      .text()
      .then((source) => {
        const worker = new NodeWorker(PRELUDE + source, { eval: true });
        worker.on("message", (data) => this.onmessage?.({ data }));
        worker.on("error", (error) => this.onerror?.(error));
        return worker;
      });
  }

  postMessage(message) {
    this.#worker = this.#worker.then((worker) => {
      worker.postMessage(message);
      return worker;
    });
  }
}

/** Installs the global `Worker` and makes `navigator.hardwareConcurrency` say `threads`. */
export function installWebWorker(threads) {
  globalThis.Worker = WebWorker;
  Object.defineProperty(globalThis, "navigator", {
    value: { hardwareConcurrency: threads },
    configurable: true,
  });
}
