/**
 * A language model as the ONNX graph that `@huggingface/transformers` (JavaScript) runs:
 *
 *   input_ids, position_ids    int64 (batch, sequence)
 *   attention_mask             int64 (batch, past + sequence), 0 at padding
 *   past_key_values.N.key      float32 (batch, kvHeads, past, headDim), and .value
 *   logits                     float32 (batch, sequence, vocabulary)
 *   present.N.key              float32 (batch, kvHeads, past + sequence, headDim), and .value
 *
 * Traced and lowered by the engine. What the engine leaves to its host (int64, the mask, joining the
 * cache) is added here as ONNX operators.
 */
import { spec, trace } from "../backend/compile.ts";
import { contributed, standard } from "../backend/ort/emit.ts";
import { lower } from "../backend/ort/lower.ts";
import { UnsupportedError } from "../errors.ts";
import {
  type OnnxAttribute,
  type OnnxGraph,
  type OnnxNode,
  type OnnxTensor,
  onnxTypes,
} from "../io/onnx.ts";
import { decodeOnnx } from "../io/onnx-read.ts";
import type { Value } from "../ir/graph.ts";
import type { LanguageModel, LayerPast } from "../models/model.ts";
import type { ValueRecord } from "../nn/module.ts";
import type { Dim } from "../tensor/shape.ts";

// transformers.js makes an empty cache by the name `batch_size`; other names count as 0.
const batch = "batch_size";
const sequence = "sequence_length";
const past = "past_sequence_length";
const total = "total_sequence_length";

/** Operator sets of the exported model. */
export const exportOpsets: Readonly<Record<string, number>> = { "": standard, [contributed]: 1 };

const weightPrefix = "in:0.";

/** Nodes and constants that are put around what the engine lowered. */
class Builder {
  readonly nodes: OnnxNode[] = [];
  readonly initializers: OnnxTensor[] = [];
  readonly #constants: Set<string> = new Set();

  node(
    op: string,
    inputs: readonly string[],
    output: string,
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
  ): string {
    this.nodes.push({ op, domain: "", inputs, outputs: [output], attributes });
    return output;
  }

  int64(...values: readonly number[]): string {
    const data = new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
    const name = `int64:${values.join()}`;
    return this.#constant({ name, type: "int64", dims: [values.length], data });
  }

  scalar(value: number): string {
    const data = new Uint8Array(Float32Array.of(value).buffer);
    return this.#constant({ name: `float:${value}`, type: "float32", dims: [], data });
  }

  /** The bool false. */
  get no(): string {
    return this.#constant({ name: "no", type: "bool", dims: [], data: new Uint8Array(1) });
  }

  #constant(tensor: OnnxTensor): string {
    if (!this.#constants.has(tensor.name)) this.initializers.push(tensor);
    this.#constants.add(tensor.name);
    return tensor.name;
  }
}

function traceModel(model: LanguageModel): OnnxGraph {
  const { nLayers, nKvHeads, headDim } = model.sizes;
  const kv = spec([batch, nKvHeads, past, headDim]);
  const traced = trace(
    ((
      params: ValueRecord,
      ids: Value,
      positions: Value,
      layers: readonly LayerPast[],
      pastMask: Value,
      mask: Value,
    ) => {
      const result = model.forward(model.context(params), ids, {
        positions,
        past: { layers, mask: pastMask },
        mask,
      });
      return [result.logits, result.present.map(({ keys, values }) => [keys, values])];
    }) as never,
    [
      model.specs().params,
      spec([batch, sequence], "int32"),
      spec([batch, sequence], "int32"),
      Array.from({ length: nLayers }, () => ({ keys: kv, values: kv })),
      spec([batch, 1, 1, past], "bool"),
      spec([batch, 1, 1, sequence], "bool"),
    ],
  );
  const lowered = lower(traced.program, "cpu");
  return decodeOnnx(lowered.model, "export").graph;
}

/**
 * Operators that only ONNX Runtime's CPU provider has, in standard ones: WebGPU runs them too, and
 * the CPU provider fuses them again when it loads.
 */
function standardNodes(node: OnnxNode, build: Builder): void {
  const [output] = node.outputs as [string];
  if (node.op === "QuickGelu") {
    const gate = build.node("Sigmoid", [node.inputs[0]!], `${output}:gate`);
    build.node("Mul", [node.inputs[0]!, gate], output);
  } else if (node.op === "FusedMatMul") {
    const read = (name: string): number => Number((node.attributes[name] as { int: number }).int);
    const { float: alpha } = node.attributes["alpha"] as { float: number };
    // Stacks of attention alone: (batch, heads, rows, columns).
    const turned = (input: string, side: string): string =>
      build.node("Transpose", [input], `${output}:${side}`, { perm: { ints: [0, 1, 3, 2] } });
    let [a, b] = node.inputs as [string, string];
    if (read("transA")) a = turned(a, "a");
    if (read("transB")) b = turned(b, "b");
    if (alpha === 1) build.node("MatMul", [a, b], output);
    else {
      build.node("MatMul", [a, b], `${output}:product`);
      build.node("Mul", [`${output}:product`, build.scalar(alpha)], output);
    }
  } else build.nodes.push(node);
}

/**
 * The exported graph, with every weight an input of float32 named by its path in the model.
 * @throws UnsupportedError for a model whose graph holds a loop.
 */
export function languageModelGraph(model: LanguageModel): OnnxGraph {
  const { nLayers, nKvHeads, headDim, vocabSize } = model.sizes;
  const inner = traceModel(model);
  const build = new Builder();
  const bool = { to: { int: onnxTypes.bool } };
  const int32 = { to: { int: onnxTypes.int32 } };

  // What the engine's program takes, from what the exported model is given.
  build.node("Cast", ["input_ids"], "in:1", int32);
  build.node("Cast", ["position_ids"], "in:2", int32);
  build.node("Cast", ["attention_mask"], "mask", bool);
  build.node("Shape", ["past_key_values.0.key"], "past:shape");
  build.node("Gather", ["past:shape", build.int64(2)], "past:length", { axis: { int: 0 } });
  const end = build.int64(2 ** 31 - 1);
  const axis = build.int64(1);
  build.node("Slice", ["mask", build.int64(0), "past:length", axis], "mask:past");
  build.node("Slice", ["mask", "past:length", end, axis], "mask:new");
  const wide = build.int64(1, 2);
  build.node("Unsqueeze", ["mask:new", wide], "in:5");

  // One masked position before the past: kernels fail in many ways on an empty cache.
  build.node("Shape", ["input_ids"], "ids:shape");
  build.node("Gather", ["ids:shape", build.int64(0)], "batch", { axis: { int: 0 } });
  const join = (inputs: readonly string[], output: string, at: number): string =>
    build.node("Concat", inputs, output, { axis: { int: at } });
  join(["batch", build.int64(1)], "none:mask:shape", 0);
  build.node("Expand", [build.no, "none:mask:shape"], "none:mask");
  join(["none:mask", "mask:past"], "mask:filled", 1);
  build.node("Unsqueeze", ["mask:filled", wide], "in:4");
  join(["batch", build.int64(nKvHeads, 1, headDim)], "none:shape", 0);
  build.node("Expand", [build.scalar(0), "none:shape"], "none");
  for (let i = 0; i < nLayers; i++) {
    join(["none", `past_key_values.${i}.key`], `in:3.${i}.keys`, 2);
    join(["none", `past_key_values.${i}.value`], `in:3.${i}.values`, 2);
  }

  const rename = (name: string): string =>
    name.startsWith(weightPrefix) ? name.slice(weightPrefix.length) : name;
  for (const node of inner.nodes) {
    if (Object.values(node.attributes).some((attribute) => "graph" in attribute)) {
      throw new UnsupportedError(`export: ${node.op} holds a graph, which is not exported.`);
    }
    standardNodes({ ...node, inputs: node.inputs.map(rename) }, build);
  }

  const [logits, ...present] = inner.outputs.map((output) => output.name);
  join(["ids:shape", build.int64(vocabSize)], "logits:shape", 0);
  build.node("Reshape", [logits!, "logits:shape"], "logits");
  const parts = (["key", "value"] as const).map((part, i) => [part, i] as const);
  for (let layer = 0; layer < nLayers; layer++) {
    for (const [part, i] of parts) {
      const made = present[2 * layer + i]!;
      join([`past_key_values.${layer}.${part}`, made], `present.${layer}.${part}`, 2);
    }
  }

  const int64 = (name: string, length: string): OnnxGraph["inputs"][number] => ({
    name,
    type: "int64",
    shape: [batch, length],
  });
  const cache = (prefix: string, length: Dim): OnnxGraph["inputs"] =>
    Array.from({ length: nLayers }, (_, layer) =>
      parts.map(([part]) => ({
        name: `${prefix}.${layer}.${part}`,
        type: "float32" as const,
        shape: [batch, nKvHeads, length, headDim],
      })),
    ).flat();
  const weights = inner.inputs
    .filter(({ name }) => name.startsWith(weightPrefix))
    .map((input) => ({ ...input, name: rename(input.name) }));
  return {
    name: model.family,
    nodes: build.nodes,
    initializers: [...inner.initializers, ...build.initializers],
    inputs: [
      int64("input_ids", sequence),
      int64("attention_mask", total),
      int64("position_ids", sequence),
      ...cache("past_key_values", past),
      ...weights,
    ],
    outputs: [
      { name: "logits", type: "float32", shape: [batch, sequence, vocabSize] },
      ...cache("present", total),
    ],
  };
}
