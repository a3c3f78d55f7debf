/**
 * ONNX Runtime as WebAssembly: in a page, where it can also use WebGPU, and in Node where there is no
 * native binary. Inputs and outputs are copied into and out of its memory at every run, but for tensors of
 * the WebGPU device.
 */
import { StateError, UnsupportedError } from "../../errors.ts";
import { encodeOnnx } from "../../io/onnx.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type Gpu, type GpuBuffer, GpuDevice } from "./device.ts";
import {
  OrtBackend,
  type OrtBinding,
  type OrtOptions,
  type OrtSession,
  type OrtTensor,
  type SessionOptions,
} from "./ort.ts";

export interface WebOrtOptions extends OrtOptions {
  readonly provider?: "wasm" | "webgpu";
  /**
   * Threads of the WebAssembly module, fixed by the first session of the page or process. Default: one
   * in Node, and in pages without cross-origin isolation; else half the processors, at most four.
   */
  readonly numThreads?: number;
  /** Where the `.wasm` files of onnxruntime-web are served; default: beside the module. */
  readonly wasmPaths?: string;
}

interface WebSession {
  run(
    feeds: Record<string, OrtTensor>,
    fetches: Record<string, OrtTensor | null>,
  ): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
  endProfiling(): void;
}

/** What we use of the package, whose own types need those of a page. */
interface Web {
  readonly env: {
    logLevel: string;
    readonly wasm: { numThreads?: number; proxy?: boolean; wasmPaths?: string };
    /** There while a session is. */
    readonly webgpu: { readonly device?: Gpu | Promise<Gpu> };
  };
  readonly Tensor: {
    new (type: string, data: unknown, dims: readonly number[]): OrtTensor;
    fromGpuBuffer(
      buffer: GpuBuffer,
      options: { readonly dataType: string; readonly dims: readonly number[] },
    ): OrtTensor;
  };
  readonly InferenceSession: {
    create(model: Uint8Array, options: object): Promise<WebSession>;
  };
}

const version = "1.30.0";

const page = globalThis as {
  readonly process?: { readonly versions?: { readonly node?: string } };
  readonly crossOriginIsolated?: boolean;
  readonly navigator?: { readonly hardwareConcurrency?: number };
};

const isNode = page.process?.versions?.node !== undefined;

async function loadWeb(provider: "wasm" | "webgpu"): Promise<Web> {
  if (isNode && provider === "webgpu") {
    throw new UnsupportedError(
      'engine: onnxruntime-web has no WebGPU in Node — use nodeOrt({ provider: "webgpu" }).',
    );
  }
  try {
    // Written out, so that bundlers find them.
    const loaded: unknown = isNode
      ? await import("onnxruntime-web")
      : provider === "webgpu"
        ? await import("onnxruntime-web/webgpu")
        : await import("onnxruntime-web/wasm");
    return loaded as Web;
  } catch (cause) {
    throw new UnsupportedError(
      `engine: onnxruntime-web does not load — run "npm install onnxruntime-web@${version}".`,
      {},
      { cause },
    );
  }
}

function defaultThreads(): number {
  if (isNode || !page.crossOriginIsolated) return 1;
  return Math.max(1, Math.min(4, Math.floor((page.navigator?.hardwareConcurrency ?? 2) / 2)));
}

/**
 * Lets the page's or worker's messages be heard, as a request to stop: a run itself may resolve without
 * a turn of the event loop. Timers would wait for milliseconds.
 */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}

/** The engine of pages, and the slower one of Node. */
export async function webOrt(options: WebOrtOptions = {}): Promise<OrtBackend> {
  const provider = options.provider ?? "wasm";
  const web = await loadWeb(provider);
  const { wasm } = web.env;
  wasm.numThreads = options.numThreads ?? defaultThreads();
  // A proxy worker would copy everything once more; long jobs bring a worker of their own.
  wasm.proxy = false;
  if (options.wasmPaths !== undefined) wasm.wasmPaths = options.wasmPaths;
  web.env.logLevel = "fatal";
  const session = async (
    model: Uint8Array<ArrayBuffer>,
    { withoutOptimizers = [], hasStored, profile }: SessionOptions,
  ): Promise<OrtSession> => {
    const loaded = await web.InferenceSession.create(model, {
      executionProviders: [provider],
      // As in Node, for the reasons given there.
      graphOptimizationLevel: hasStored ? "all" : "basic",
      enableMemPattern: false,
      logSeverityLevel: 4,
      ...(withoutOptimizers.length > 0 && {
        extra: { optimization: { disable_specified_optimizers: withoutOptimizers.join(";") } },
      }),
      ...(profile !== undefined && { enableProfiling: true, profileFilePrefix: profile }),
    });
    return {
      run: async (feeds, fetches) => {
        await turn();
        return loaded.run(feeds, fetches);
      },
      release: async () => {
        if (profile !== undefined) loaded.endProfiling();
        await loaded.release();
      },
    };
  };
  const binding: OrtBinding = {
    name: `onnxruntime-web ${provider}`,
    version,
    target: provider,
    maxThreads: wasm.numThreads,
    writesInPlace: false,
    canBeQuiet: false,
    tensor: (dtype: Dtype, data, dims) => new web.Tensor(dtype, data, dims),
    session,
    ...(provider === "webgpu" && { device: deviceOf(web, session) }),
  };
  return new OrtBackend(binding, options);
}

/**
 * The device that sessions of the package share. It is lost with the last of them, so one of its own,
 * which does nothing, stays loaded.
 */
function deviceOf(web: Web, session: OrtBinding["session"]): GpuDevice {
  let found: Promise<Gpu> | undefined;
  const find = async (): Promise<Gpu> => {
    await session(nothing(), { threads: 1 });
    const gpu = await web.env.webgpu.device;
    if (!gpu) throw new StateError("engine: onnxruntime-web names no WebGPU device.");
    return gpu;
  };
  return new GpuDevice({
    gpu: () => {
      found ??= find();
      return found;
    },
    wrap: (buffer, dataType, dims) => web.Tensor.fromGpuBuffer(buffer, { dataType, dims }),
    empty: (dtype, shape) => new web.Tensor(dtype, Tensor.zeros(shape, dtype).data, shape),
  });
}

/** A model that returns its input. */
function nothing(): Uint8Array<ArrayBuffer> {
  const value = { type: "float32", shape: [1] } as const;
  const node = { op: "Identity", domain: "", inputs: ["x"], outputs: ["y"], attributes: {} };
  return encodeOnnx(
    {
      name: "nothing",
      nodes: [node],
      initializers: [],
      inputs: [{ name: "x", ...value }],
      outputs: [{ name: "y", ...value }],
    },
    { "": 21 },
  );
}
