/** A rollout as tensors of a checkpoint, and back. */
import { FormatError } from "../errors.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Rollout } from "./objectives/rollout.ts";
import type { HeldRollouts } from "./policy.ts";

const prefix = "rollout/";
const perToken = ["advantages", "old", "reference", "values", "returns"] as const;

/** Tensors by name: ids, lengths and masks of all examples, and the numbers of their tokens. */
export function packRollouts({ rollouts, metrics }: HeldRollouts): Record<string, Tensor> {
  const ints = (numbers: readonly number[]): Tensor =>
    Tensor.from(numbers, [numbers.length], "int32");
  const found: Record<string, Tensor> = {
    lengths: ints(rollouts.map(({ example }) => example.ids.length)),
    ids: ints(rollouts.flatMap(({ example }) => [...example.ids])),
    mask: ints(rollouts.flatMap(({ example }) => [...example.mask])),
  };
  for (const name of perToken) {
    const parts = rollouts.map((rollout) => {
      if (name !== "advantages") return rollout[name];
      const { advantage, example } = rollout;
      if (typeof advantage !== "number") return advantage;
      return new Float32Array(example.mask.reduce((a, b) => a + b, 0)).fill(advantage);
    });
    if (parts.some((part) => !part)) continue;
    found[name] = Tensor.from(parts.flatMap((part) => [...part!]));
  }
  for (const [name, value] of Object.entries(metrics)) {
    found[`metric/${name}`] = new Tensor("float32", [1], Float32Array.of(value));
  }
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [prefix + name, tensor]));
}

/**
 * A rollout from a state's tensors, and the tensors that are not its own.
 * @throws FormatError when its parts do not fit together.
 */
export function unpackRollouts(tensors: Readonly<Record<string, Tensor>>): {
  held: HeldRollouts | undefined;
  others: Record<string, Tensor>;
} {
  const own: Record<string, Tensor> = {};
  const others: Record<string, Tensor> = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (name.startsWith(prefix)) own[name.slice(prefix.length)] = tensor;
    else others[name] = tensor;
  }
  const { lengths, ids, mask } = own;
  if (!lengths || !ids || !mask) return { held: undefined, others };
  let [at, read] = [0, 0];
  const rollouts = Array.from(lengths.data as Int32Array, (length): Rollout => {
    if (!(length >= 1 && at + length <= ids.size && ids.size === mask.size)) {
      throw new FormatError("checkpoint: the rollout's lengths do not fit its tokens.");
    }
    const example = {
      ids: Int32Array.from((ids.data as Int32Array).subarray(at, at + length)),
      mask: Uint8Array.from((mask.data as Int32Array).subarray(at, at + length)),
    };
    at += length;
    const count = example.mask.reduce((a, b) => a + b, 0);
    const part = (name: string): Float32Array | undefined =>
      own[name] && Float32Array.from((own[name].data as Float32Array).subarray(read, read + count));
    const rest = Object.fromEntries(
      perToken.slice(1).flatMap((name) => (own[name] ? [[name, part(name)!]] : [])),
    );
    const rollout = { example, advantage: part("advantages") ?? 0, ...rest };
    read += count;
    return rollout;
  });
  const metrics = Object.fromEntries(
    Object.entries(own).flatMap(([name, tensor]) =>
      name.startsWith("metric/") ? [[name.slice(7), tensor.data[0] as number]] : [],
    ),
  );
  return { held: { rollouts, metrics }, others };
}
