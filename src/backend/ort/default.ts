/** The engine for this machine. */
import { UnsupportedError } from "../../errors.ts";
import { type NodeOrtOptions, nodeOrt } from "./node.ts";
import type { OrtBackend } from "./ort.ts";
import { webOrt } from "./web.ts";

export interface DefaultBackendOptions extends NodeOrtOptions {
  /** Told in one sentence when the engine is not the fast one. */
  readonly warn?: (message: string) => void;
}

/**
 * ONNX Runtime's native engine, or where this machine has no binary of it, WebAssembly.
 * @throws UnsupportedError when WebGPU is asked for and there is none.
 */
export async function defaultBackend(options: DefaultBackendOptions = {}): Promise<OrtBackend> {
  try {
    return await nodeOrt(options);
  } catch (error) {
    if (!(error instanceof UnsupportedError) || options.provider === "webgpu") throw error;
    options.warn?.(
      `onnxruntime-node has no binary for this machine: running as WebAssembly, several times slower.`,
    );
    return webOrt(options.threads === undefined ? {} : { numThreads: options.threads });
  }
}
