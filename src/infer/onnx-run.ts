/** Runs an exported model the ways that transformers.js does, and gives its logits. */
import type { OrtBackend, OrtTensor } from "../backend/ort/ort.ts";
import { encodeOnnx, type OnnxGraph } from "../io/onnx.ts";
import type { LanguageModelSizes } from "../models/model.ts";
import { type Dtype, viewOn } from "../tensor/dtype.ts";
import { Tensor } from "../tensor/tensor.ts";
import { exportOpsets } from "./onnx-graph.ts";

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** A graph whose large constants are inputs, and what to feed to them. */
function withInputs(
  backend: OrtBackend,
  graph: OnnxGraph,
): { bytes: Uint8Array<ArrayBuffer>; feeds: Record<string, OrtTensor> } {
  const large = graph.initializers.filter(({ data }) => data.length >= 4096);
  const feeds: Record<string, OrtTensor> = {};
  for (const { name, type, dims, data } of large) {
    const dtype = type as Dtype;
    const size = dims.reduce((a, b) => a * b, 1);
    // Constants of the graph lie anywhere in its bytes.
    const { buffer, byteOffset } = data.byteOffset % 8 === 0 ? data : data.slice();
    feeds[name] = backend.binding.tensor(dtype, viewOn(dtype, buffer, byteOffset, size), dims);
  }
  const bytes = encodeOnnx(
    {
      ...graph,
      initializers: graph.initializers.filter((tensor) => !large.includes(tensor)),
      inputs: [
        ...graph.inputs,
        ...large.map(({ name, type, dims }) => ({ name, type, shape: dims })),
      ],
    },
    exportOpsets,
  );
  return { bytes, feeds };
}

/**
 * Logits of an exported model, each from another way to read the tokens: rows in turn are read at
 * once; in two parts, the second with the cache of the first; at once after two places of padding.
 * @param source the pieces of the model's file, or its graph where it is no single file
 * @param ids int32 (rows, length)
 * @returns (rows · length, V), in the order of `ids`
 */
export async function onnxLogits(
  backend: OrtBackend,
  source: readonly Uint8Array[] | OnnxGraph,
  sizes: LanguageModelSizes,
  ids: Tensor<"int32">,
): Promise<Tensor<"float32">> {
  const { bytes, feeds: weights } = Array.isArray(source)
    ? { bytes: joined(source as readonly Uint8Array[]), feeds: {} }
    : withInputs(backend, source as OnnxGraph);
  const session = await backend.binding.session(bytes, {
    threads: backend.binding.maxThreads,
    hasStored: true,
  });
  const { nLayers, nKvHeads, headDim, vocabSize } = sizes;
  const [rows, length] = ids.shape as [number, number];
  const cacheNames = Array.from({ length: nLayers }, (_, layer) => [
    `${layer}.key`,
    `${layer}.value`,
  ]).flat();
  const emptyCache = (batch: number): Record<string, OrtTensor> =>
    Object.fromEntries(
      cacheNames.map((name) => [
        `past_key_values.${name}`,
        backend.binding.tensor("float32", new Float32Array(0), [batch, nKvHeads, 0, headDim]),
      ]),
    );
  const int64 = (values: readonly (readonly number[])[]): OrtTensor =>
    backend.binding.tensor("int64", BigInt64Array.from(values.flat(), BigInt), [
      values.length,
      values[0]!.length,
    ]);
  const run = async (
    tokens: readonly (readonly number[])[],
    mask: readonly (readonly number[])[],
    positions: readonly (readonly number[])[],
    past: Record<string, OrtTensor>,
  ): Promise<Record<string, OrtTensor>> => {
    const fetches: Record<string, null> = { logits: null };
    for (const name of cacheNames) fetches[`present.${name}`] = null;
    return session.run(
      {
        ...weights,
        ...past,
        input_ids: int64(tokens),
        attention_mask: int64(mask),
        position_ids: int64(positions),
      },
      fetches,
    );
  };

  const result = new Float32Array(rows * length * vocabSize);
  /** Copies the logits of batch row `index` from place `skip` on to a row's place `at`. */
  const put = (row: number, at: number, from: OrtTensor, index: number, skip: number): void => {
    const width = from.dims[1]!;
    const start = index * width + skip;
    const wanted = Math.min(width - skip, length - at);
    const data = from.data as Float32Array;
    result.set(
      data.subarray(start * vocabSize, (start + wanted) * vocabSize),
      (row * length + at) * vocabSize,
    );
  };
  const count = (from: number, to: number): number[] =>
    Array.from({ length: to - from }, (_, i) => from + i);
  const ones = (n: number): number[] => new Array<number>(n).fill(1);
  const rowOf = (row: number): number[] =>
    Array.from(ids.data.subarray(row * length, (row + 1) * length));
  const padding = Math.min(2, sizes.maxPositions - length);
  try {
    // Of three rows the first two are read together, the second padded; the third alone, in parts.
    for (let row = 0; row < rows; row += 3) {
      const padded = row + 1 < rows ? padding : 0;
      const first = rowOf(row);
      const zeros = new Array<number>(padded).fill(0);
      // The first row goes on for as many tokens as the second has places of padding.
      const second = row + 1 < rows ? [rowOf(row + 1)] : [];
      const out = await run(
        [[...first, ...first.slice(0, padded)], ...second.map((r) => [...zeros, ...r])],
        [ones(length + padded), ...second.map(() => [...zeros, ...ones(length)])],
        [count(0, length + padded), ...second.map(() => [...ones(padded), ...count(0, length)])],
        emptyCache(1 + second.length),
      );
      put(row, 0, out["logits"]!, 0, 0);
      if (second.length > 0) put(row + 1, 0, out["logits"]!, 1, padded);

      if (row + 2 >= rows) continue;
      const alone = rowOf(row + 2);
      const cut = Math.max(1, Math.floor(length / 2));
      const head = await run([alone.slice(0, cut)], [ones(cut)], [count(0, cut)], emptyCache(1));
      put(row + 2, 0, head["logits"]!, 0, 0);
      let past = head;
      // Token by token, as a text is generated.
      for (let at = cut; at < length; at++) {
        const cache = Object.fromEntries(
          cacheNames.map((name) => [`past_key_values.${name}`, past[`present.${name}`]!]),
        );
        past = await run([[alone[at]!]], [ones(at + 1)], [[at]], cache);
        put(row + 2, at, past["logits"]!, 0, 0);
      }
    }
  } finally {
    await session.release();
  }
  return new Tensor("float32", [rows * length, vocabSize], result);
}
