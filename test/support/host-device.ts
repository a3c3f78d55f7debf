/** A backend with a device that is host memory: the rules and the accounts of one, on any engine. */
import type {
  AnyTensor,
  Backend,
  Device,
  DeviceStats,
  DeviceTensor,
  Executable,
} from "../../src/backend/backend.ts";
import { DtypeError, StateError } from "../../src/errors.ts";
import type { Dtype } from "../../src/tensor/dtype.ts";
import type { StaticShape } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

class HostTensor implements DeviceTensor {
  readonly shape: StaticShape;
  readonly dtype: Dtype;
  readonly #device: HostDevice;
  #tensor: Tensor | undefined;

  constructor(device: HostDevice, tensor: Tensor) {
    this.#device = device;
    this.shape = tensor.shape;
    this.dtype = tensor.dtype;
    this.#tensor = tensor;
  }

  get tensor(): Tensor {
    if (!this.#tensor) throw new StateError("device: the tensor was released.");
    return this.#tensor;
  }

  async read(): Promise<Tensor> {
    this.#device.downloadedBytes += this.tensor.data.byteLength;
    return this.tensor.clone();
  }

  release(): void {
    this.#device.tensors--;
    this.#device.bytes -= this.tensor.data.byteLength;
    this.#tensor = undefined;
  }
}

class HostDevice implements Device {
  tensors = 0;
  bytes = 0;
  uploadedBytes = 0;
  downloadedBytes = 0;

  get stats(): DeviceStats {
    const { tensors, bytes, uploadedBytes, downloadedBytes } = this;
    return { tensors, bytes, uploadedBytes, downloadedBytes };
  }

  keeps(dtype: Dtype): boolean {
    return ["float32", "int32", "bool"].includes(dtype);
  }

  async allocate(shape: StaticShape, dtype: Dtype): Promise<HostTensor> {
    if (!this.keeps(dtype)) throw new DtypeError(`device: cannot keep ${dtype}.`);
    const tensor = Tensor.zeros(shape, dtype);
    this.tensors++;
    this.bytes += tensor.data.byteLength;
    return new HostTensor(this, tensor);
  }

  async upload(tensor: Tensor): Promise<HostTensor> {
    const made = await this.allocate(tensor.shape, tensor.dtype);
    made.tensor.data.set(tensor.data as never);
    this.uploadedBytes += tensor.data.byteLength;
    return made;
  }

  async run(
    executable: Executable,
    inputs: readonly AnyTensor[],
    into: readonly (AnyTensor | undefined)[],
  ): Promise<AnyTensor[]> {
    const inside = (tensor: AnyTensor): Tensor =>
      tensor instanceof Tensor ? tensor : (tensor as HostTensor).tensor;
    const outputs = await executable.run(
      inputs.map(inside),
      into.map((tensor) => tensor && inside(tensor)),
    );
    for (const input of inputs) {
      if (input instanceof Tensor) this.uploadedBytes += input.data.byteLength;
    }
    return outputs.map((output, i) => {
      const given = into[i];
      if (given && !(given instanceof Tensor)) return given;
      this.downloadedBytes += output.data.byteLength;
      return output;
    });
  }
}

/**
 * The engine with a device. Tensors of the device are memory of their own; that none is read and written
 * by one run is checked by the engine, which refuses shared memory.
 * @param loads counts the programs that were loaded and are not released
 */
export function withHostDevice(
  engine: Backend,
  loads: { open: number } = { open: 0 },
): Backend & { readonly device: Device } {
  const device = new HostDevice();
  return {
    name: `${engine.name} with a device`,
    device,
    load: async (program, options) => {
      const executable = await engine.load(program, options);
      loads.open++;
      return {
        inputs: executable.inputs,
        outputs: executable.outputs,
        run: async (inputs, into = []) => (await device.run(executable, inputs, into)) as Tensor[],
        runOnDevice: (inputs, into = []) => device.run(executable, inputs, into),
        release: async () => {
          loads.open--;
          await executable.release();
        },
      };
    },
  };
}
