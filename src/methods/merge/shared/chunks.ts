/**
 * Elementwise arithmetic over arrays of any length, four numbers at a time: a part of each array is copied into
 * a small WebAssembly memory, a kernel runs over it, and the result is copied out. In float32.
 */
import { Arena } from "../../../backend/simd/arena.ts";
import { Kernel } from "../../../backend/simd/kernel.ts";
import type { Value } from "../../../ir/graph.ts";
import type { Tensor } from "../../../tensor/tensor.ts";

const part = 8192;

/** Numbers of an array, or factors of them as whole numbers. */
export type ChunkInput = Float32Array | Uint8Array;

/** An elementwise function of arrays and numbers. */
export class ChunkedKernel {
  readonly #kernel: Kernel;
  readonly #names: readonly string[];
  readonly #arena: Arena;
  readonly #views: readonly Tensor<"float32">[];

  /**
   * @param count arrays that it takes; @param scalars names of its numbers
   * @param body what it gives for one element of each array
   */
  constructor(
    count: number,
    scalars: readonly string[],
    body: (arrays: readonly Value[], scalars: Readonly<Record<string, Value>>) => Value,
  ) {
    this.#names = Array.from({ length: count }, (_, i) => `array${i}`);
    this.#kernel = new Kernel({
      arrays: this.#names,
      scalars,
      body: (arrays, numbers) => ({
        write: {
          array0: body(
            this.#names.map((name) => arrays[name]!),
            numbers,
          ),
        },
      }),
    });
    this.#arena = new Arena(count * Arena.room([part], "float32"));
    this.#views = this.#names.map(() => this.#arena.allocate([part], "float32"));
  }

  /** @param inputs arrays of one length, as many as it takes */
  run(
    inputs: readonly ChunkInput[],
    scalars: Readonly<Record<string, number>>,
  ): Float32Array<ArrayBuffer> {
    const size = inputs[0].length;
    const result = new Float32Array(size);
    const arrays = Object.fromEntries(this.#names.map((name, i) => [name, this.#views[i]]));
    const [first] = this.#views;
    for (let start = 0; start < size; start += part) {
      const end = Math.min(size, start + part);
      for (let k = 0; k < inputs.length; k++)
        this.#views[k].data.set(inputs[k].subarray(start, end));
      // What stands behind the end is of an earlier part, and is not copied out.
      this.#kernel.run(this.#arena, arrays, scalars);
      result.set(end - start === part ? first.data : first.data.subarray(0, end - start), start);
    }
    return result;
  }
}

const made = new Map<string, ChunkedKernel>();

/** The kernel of a name, made once. */
export function chunkedKernel(name: string, make: () => ChunkedKernel): ChunkedKernel {
  const found = made.get(name) ?? make();
  made.set(name, found);
  return found;
}
