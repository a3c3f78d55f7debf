import { OptionError, StateError } from "../../errors.ts";
import { type ArrayOf, byteSize, type Dtype, viewOn } from "../../tensor/dtype.ts";
import { type StaticShape, sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";

const page = 65536;
/** One WebAssembly memory addresses 4 GiB. */
export const arenaLimit: number = 65535 * page;

/**
 * Memory for tensors that both the engine and SIMD kernels use: one WebAssembly memory, allocated
 * once, since growing it would detach every view.
 */
export class Arena {
  readonly memory: WebAssembly.Memory;
  #next = 0;
  readonly #owned: WeakSet<object> = new WeakSet();

  /**
   * @param bytes what all tensors need, see `Arena.room`
   * @throws OptionError above what one memory addresses, StateError when the machine has no room.
   */
  constructor(bytes: number) {
    if (!(bytes >= 0 && bytes <= arenaLimit)) {
      throw new OptionError(`arena: needs 0 to ${arenaLimit} bytes, got ${bytes} — use several.`);
    }
    try {
      this.memory = new WebAssembly.Memory({ initial: Math.max(1, Math.ceil(bytes / page)) });
    } catch (cause) {
      throw new StateError(
        `arena: the machine has no room for ${Math.ceil(bytes / 2 ** 20)} MiB — train fewer parameters, or close other programs.`,
        { bytes },
        { cause },
      );
    }
  }

  /** Bytes a tensor takes: rounded up to a cache line, so that loops may read whole vectors. */
  static room(shape: StaticShape, dtype: Dtype): number {
    return Math.ceil((sizeOf(shape) * byteSize(dtype)) / 64) * 64;
  }

  /**
   * A zeroed tensor.
   * @throws OptionError when the memory is used up.
   */
  allocate<D extends Dtype>(shape: StaticShape, dtype: D): Tensor<D> {
    const room = Arena.room(shape, dtype);
    if (this.#next + room > this.memory.buffer.byteLength) {
      throw new OptionError(
        `arena: ${room} more bytes do not fit ${this.memory.buffer.byteLength}, ${this.#next} are used.`,
      );
    }
    const data: ArrayOf[D] = viewOn(dtype, this.memory.buffer, this.#next, sizeOf(shape));
    this.#next += room;
    this.#owned.add(data);
    return new Tensor(dtype, shape, data);
  }

  /** Whether data is that of a whole tensor of this arena; of parts a kernel would write past the end. */
  owns(data: ArrayOf[Dtype]): boolean {
    return this.#owned.has(data);
  }
}
