/**
 * Tensors in WebGPU buffers of the device that ONNX Runtime for the web uses. Sessions read and write
 * them directly: as feeds, and as preallocated fetches.
 */
import { DtypeError, StateError } from "../../errors.ts";
import { type ArrayOf, byteSize, type Dtype, viewOn } from "../../tensor/dtype.ts";
import { type StaticShape, showShape, sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Device, DeviceStats, DeviceTensor } from "../backend.ts";
import type { OrtTensor } from "./ort.ts";

/** What we use of a GPUBuffer. */
export interface GpuBuffer {
  readonly size: number;
  mapAsync(mode: number): Promise<void>;
  getMappedRange(): ArrayBuffer;
  unmap(): void;
  destroy(): void;
}

/** What we use of a GPUDevice. */
export interface Gpu {
  readonly limits: { readonly maxBufferSize: number; readonly maxStorageBufferBindingSize: number };
  readonly queue: {
    writeBuffer(buffer: GpuBuffer, at: number, data: ArrayBuffer, from: number, size: number): void;
    submit(commands: readonly unknown[]): void;
  };
  createBuffer(options: { readonly size: number; readonly usage: number }): GpuBuffer;
  createCommandEncoder(): {
    copyBufferToBuffer(
      from: GpuBuffer,
      fromAt: number,
      to: GpuBuffer,
      toAt: number,
      size: number,
    ): void;
    finish(): unknown;
  };
  pushErrorScope(filter: "out-of-memory"): void;
  popErrorScope(): Promise<object | null>;
}

/** How the device and its tensors are had from the package. */
export interface GpuSource {
  /** The device of the package's sessions; asked once. */
  gpu(): Promise<Gpu>;
  /** A tensor of the package around a buffer. */
  wrap(buffer: GpuBuffer, dtype: Dtype, shape: StaticShape): OrtTensor;
  /** A tensor of the package that holds nothing. */
  empty(dtype: Dtype, shape: StaticShape): OrtTensor;
}

// GPUBufferUsage and GPUMapMode, which only pages define.
const [mapRead, copySource, copyTarget, storage] = [0x1, 0x4, 0x8, 0x80];
const readMode = 0x1;

/** Types that the package takes in a buffer. */
const kept: readonly Dtype[] = ["float32", "float16", "int32", "int64", "uint8", "bool"];

/** Shaders read up to four numbers at once, so a buffer ends at a multiple of 16 bytes. */
const bufferBytes = (shape: StaticShape, dtype: Dtype): number =>
  Math.ceil((sizeOf(shape) * byteSize(dtype)) / 16) * 16;

class GpuTensor implements DeviceTensor {
  readonly shape: StaticShape;
  readonly dtype: Dtype;
  readonly #device: GpuDevice;
  /** None for a tensor without elements. */
  #buffer: GpuBuffer | undefined;
  #isReleased = false;

  constructor(device: GpuDevice, shape: StaticShape, dtype: Dtype, buffer: GpuBuffer | undefined) {
    this.#device = device;
    this.shape = shape;
    this.dtype = dtype;
    this.#buffer = buffer;
  }

  /** @throws StateError after `release`, or for a tensor of another device. */
  buffer(device: GpuDevice): GpuBuffer | undefined {
    if (this.#isReleased) {
      throw new StateError(`device: the tensor of shape ${showShape(this.shape)} was released.`);
    }
    if (device !== this.#device) {
      throw new StateError("device: the tensor is of another backend — read it first.");
    }
    return this.#buffer;
  }

  read(): Promise<Tensor> {
    return this.#device.read(this);
  }

  release(): void {
    const buffer = this.buffer(this.#device);
    this.#isReleased = true;
    this.#buffer = undefined;
    this.#device.drop(buffer);
  }
}

export class GpuDevice implements Device {
  readonly #source: GpuSource;
  #tensors = 0;
  #bytes = 0;
  #uploadedBytes = 0;
  #downloadedBytes = 0;

  constructor(source: GpuSource) {
    this.#source = source;
  }

  get stats(): DeviceStats {
    return {
      tensors: this.#tensors,
      bytes: this.#bytes,
      uploadedBytes: this.#uploadedBytes,
      downloadedBytes: this.#downloadedBytes,
    };
  }

  keeps(dtype: Dtype): boolean {
    return kept.includes(dtype);
  }

  async allocate(shape: StaticShape, dtype: Dtype): Promise<GpuTensor> {
    if (!this.keeps(dtype)) {
      throw new DtypeError(`device: WebGPU buffers hold ${kept.join(", ")}, got ${dtype}.`);
    }
    const size = bufferBytes(shape, dtype);
    let buffer: GpuBuffer | undefined;
    if (size > 0) {
      const gpu = await this.#source.gpu();
      const { maxBufferSize, maxStorageBufferBindingSize } = gpu.limits;
      const most = Math.min(maxBufferSize, maxStorageBufferBindingSize);
      if (size > most) {
        throw new StateError(
          `device: a tensor of shape ${showShape(shape)} takes ${size} bytes, a buffer of this device holds ${most} — use a smaller model, or the CPU.`,
        );
      }
      gpu.pushErrorScope("out-of-memory");
      buffer = gpu.createBuffer({ size, usage: storage | copySource | copyTarget });
      if (await gpu.popErrorScope()) {
        buffer.destroy();
        throw new StateError(
          `device: no room for ${size} bytes more, ${this.#bytes} are held — use a smaller model or batch, or the CPU.`,
        );
      }
      this.#bytes += size;
    }
    this.#tensors++;
    return new GpuTensor(this, shape, dtype, buffer);
  }

  async upload(tensor: Tensor): Promise<GpuTensor> {
    const made = await this.allocate(tensor.shape, tensor.dtype);
    const buffer = made.buffer(this);
    if (!buffer) return made;
    const gpu = await this.#source.gpu();
    const { data } = tensor;
    const whole = data.byteLength - (data.byteLength % 4);
    gpu.queue.writeBuffer(buffer, 0, data.buffer, data.byteOffset, whole);
    if (whole < data.byteLength) {
      // The queue copies multiples of four bytes.
      const rest = new Uint8Array(4);
      rest.set(new Uint8Array(data.buffer, data.byteOffset + whole, data.byteLength - whole));
      gpu.queue.writeBuffer(buffer, whole, rest.buffer, 0, 4);
    }
    this.count(data.byteLength, 0);
    return made;
  }

  /** The contents of a tensor of this device. */
  async read(tensor: GpuTensor): Promise<Tensor> {
    const { shape, dtype } = tensor;
    const buffer = tensor.buffer(this);
    if (!buffer) return Tensor.zeros(shape, dtype);
    const gpu = await this.#source.gpu();
    const staging = gpu.createBuffer({ size: buffer.size, usage: mapRead | copyTarget });
    try {
      const encoder = gpu.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
      gpu.queue.submit([encoder.finish()]);
      await staging.mapAsync(readMode);
      // Mapped memory goes with the buffer.
      const bytes = staging.getMappedRange().slice(0, sizeOf(shape) * byteSize(dtype));
      this.count(0, bytes.byteLength);
      const data: ArrayOf[Dtype] = viewOn(dtype, bytes, 0, sizeOf(shape));
      return new Tensor(dtype, shape, data);
    } finally {
      staging.destroy();
    }
  }

  /** Counts a tensor as gone and frees its buffer. */
  drop(buffer: GpuBuffer | undefined): void {
    this.#tensors--;
    if (!buffer) return;
    this.#bytes -= buffer.size;
    // What the queue was given before still runs.
    buffer.destroy();
  }

  /** Counts what crosses between host and device. */
  count(uploadedBytes: number, downloadedBytes: number): void {
    this.#uploadedBytes += uploadedBytes;
    this.#downloadedBytes += downloadedBytes;
  }

  /** A tensor as a session takes it. */
  wrap(tensor: DeviceTensor): OrtTensor {
    if (!(tensor instanceof GpuTensor)) {
      throw new StateError("device: the tensor is of another backend — read it first.");
    }
    const buffer = tensor.buffer(this);
    return buffer
      ? this.#source.wrap(buffer, tensor.dtype, tensor.shape)
      : this.#source.empty(tensor.dtype, tensor.shape);
  }
}
