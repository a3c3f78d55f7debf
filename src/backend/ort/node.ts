/**
 * ONNX Runtime in Node, through the same native binding that its package wraps, so that a step can
 * also run without yielding. The version is pinned; `contract.test.ts` holds what we rely on.
 */
import { UnsupportedError } from "../../errors.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import {
  OrtBackend,
  type OrtBinding,
  type OrtOptions,
  type OrtSession,
  type OrtTensor,
  type SessionOptions,
} from "./ort.ts";
import type { OrtTarget } from "./target.ts";

interface NativeSession {
  loadModel(buffer: ArrayBuffer, offset: number, bytes: number, options: object): void;
  run(
    feeds: Record<string, OrtTensor>,
    fetches: Record<string, OrtTensor | null>,
    options: object,
  ): Record<string, OrtTensor>;
  endProfiling(): void;
  dispose(): void;
}

interface Native {
  readonly InferenceSession: new () => NativeSession;
}

interface Common {
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => OrtTensor;
}

export interface NodeOrtOptions extends OrtOptions {
  readonly provider?: "cpu" | "webgpu";
  /** Let idle threads spin instead of sleep; faster on a quiet machine, harmful on a shared one. */
  readonly spin?: boolean;
}

const version = "1.30.0";

async function loadNative(): Promise<{ native: Native; common: Common }> {
  try {
    // Version 1.30 writes an id of the machine to ~/.cache/Microsoft and sends reports, unless told not
    // to before it loads. In a worker this is a copy of the environment: its parent must have said so.
    process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
    const { createRequire } = await import("node:module");
    const require = createRequire(import.meta.url);
    const common = require("onnxruntime-common") as Common;
    const { binding, initOrt } = require("onnxruntime-node/dist/binding.js") as {
      binding: Native;
      initOrt: () => void;
    };
    initOrt();
    return { native: binding, common };
  } catch (cause) {
    throw new UnsupportedError(
      `engine: onnxruntime-node has no binary for ${process.platform}/${process.arch}, or is not installed — run "npm install onnxruntime-node@${version} --ignore-scripts", or use the WebAssembly engine.`,
      {},
      { cause },
    );
  }
}

/** What the binding says when the outputs are written and it meets one that it cannot copy. */
const uncopied = "Tensor type (16) is not supported.";

/** Runs a quiet model: an error is what saves the copy of its results. */
function quietly(run: OrtSession["runSync"] & {}): OrtSession["runSync"] & {} {
  return (feeds, fetches) => {
    try {
      run(feeds, fetches);
    } catch (error) {
      if ((error as Error).message !== uncopied) throw error;
    }
    return {};
  };
}

/** The CPU (or WebGPU) engine of Node. */
export async function nodeOrt(options: NodeOrtOptions = {}): Promise<OrtBackend> {
  const { native, common } = await loadNative();
  const provider = options.provider ?? "cpu";
  const target: OrtTarget = provider;
  const { availableParallelism } = await import("node:os");
  const maxThreads = availableParallelism();
  const session = async (
    model: Uint8Array<ArrayBuffer>,
    { threads, withoutOptimizers = [], hasStored, isQuiet, withoutArena, profile }: SessionOptions,
  ): Promise<OrtSession> => {
    const loaded = new native.InferenceSession();
    const sessionOptions = {
      executionProviders: [provider],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      // Layouts and fusions pay for stored weights only; without them they cost a third of the loading.
      graphOptimizationLevel: hasStored ? "all" : "basic",
      // A plan of the memory costs as much again: it comes on top of what the first run took.
      enableMemPattern: false,
      // An arena keeps what the largest run took, for one model alone.
      enableCpuMemArena: !withoutArena,
      // Errors come as exceptions; ONNX Runtime would print them too.
      logSeverityLevel: 4,
      extra: {
        session: { intra_op: { allow_spinning: options.spin ? "1" : "0" } },
        ...(withoutOptimizers.length > 0 && {
          optimization: { disable_specified_optimizers: withoutOptimizers.join(";") },
        }),
      },
      ...(profile !== undefined && { enableProfiling: true, profileFilePrefix: profile }),
    };
    try {
      loaded.loadModel(model.buffer, model.byteOffset, model.byteLength, sessionOptions);
    } catch (cause) {
      if (!/WebGPU adapter|RequestAdapter/.test((cause as Error).message)) throw cause;
      throw new UnsupportedError(
        `engine: this machine has no WebGPU adapter, or no driver for it — use provider "cpu".`,
        {},
        { cause },
      );
    }
    const runLoud: OrtSession["runSync"] & {} = (feeds, fetches) => loaded.run(feeds, fetches, {});
    const runSync = isQuiet ? quietly(runLoud) : runLoud;
    return {
      runSync,
      run: (feeds, fetches) =>
        new Promise((resolve, reject) => {
          setImmediate(() => {
            try {
              resolve(runSync(feeds, fetches));
            } catch (error) {
              reject(error as Error);
            }
          });
        }),
      release: async () => {
        if (profile !== undefined) loaded.endProfiling();
        loaded.dispose();
      },
    };
  };
  const binding: OrtBinding = {
    name: `onnxruntime-node ${provider}`,
    version,
    target,
    maxThreads,
    writesInPlace: true,
    canBeQuiet: provider === "cpu",
    hasArenas: provider === "cpu",
    tensor: (dtype: Dtype, data, dims) => new common.Tensor(dtype, data, dims),
    session,
  };
  return new OrtBackend(binding, options);
}
