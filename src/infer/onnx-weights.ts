/** Forms in which an exported graph holds its weights; the names are those of transformers.js. */
import type { OnnxGraph, OnnxNode, OnnxTensor } from "../io/onnx.ts";
import { onnxTypes } from "../io/onnx.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { dequantizeWeight, quantizeLinear } from "../nn/quantize.ts";
import { Tensor } from "../tensor/tensor.ts";

/**
 * fp32: as they are. fp16: matrices as float16, widened when the model is loaded or run. q8, q4: the
 * linear layers of the blocks in blocks of 32 weights (16 where 32 does not divide), MatMulNBits.
 */
export type OnnxVariant = "fp32" | "fp16" | "q8" | "q4";

export const onnxVariants: readonly OnnxVariant[] = ["fp32", "fp16", "q8", "q4"];

/** What transformers.js puts after `model` in the file's name. */
export const variantSuffix: Readonly<Record<OnnxVariant, string>> = {
  fp32: "",
  fp16: "_fp16",
  q8: "_quantized",
  q4: "_q4",
};

export interface WeightedGraph {
  readonly graph: OnnxGraph;
  /** The numbers that the stored weights stand for, as float32. */
  readonly stored: TensorRecord;
}

const bytesOf = ({ data }: Tensor): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function tensorOf(name: string, tensor: Tensor): OnnxTensor {
  return { name, type: tensor.dtype, dims: tensor.shape, data: bytesOf(tensor) };
}

function transposed(
  numbers: Float32Array,
  rows: number,
  columns: number,
): Float32Array<ArrayBuffer> {
  const result = new Float32Array(numbers.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) result[j * rows + i] = numbers[i * columns + j]!;
  }
  return result;
}

/** The block size for a row, or undefined where none divides it. */
function blockFor(inFeatures: number): number | undefined {
  return [32, 16].find((size) => inFeatures % size === 0);
}

/**
 * Puts weights into a graph whose weights are inputs.
 * @param params by the names of those inputs, float32
 */
export function withWeights(
  bare: OnnxGraph,
  model: LanguageModel,
  params: TensorRecord,
  variant: OnnxVariant,
): WeightedGraph {
  const initializers: OnnxTensor[] = [...bare.initializers];
  const nodes: OnnxNode[] = [];
  const stored: TensorRecord = {};
  const quantized = new Map<string, { n: number; k: number; block: number }>();
  const bits = variant === "q8" ? 8 : 4;
  for (const [name, tensor] of Object.entries(params)) {
    stored[name] = tensor;
    const layer = name.endsWith(".weight")
      ? model.targets.get(name.slice(0, -".weight".length))
      : undefined;
    const block = layer && blockFor(layer.inFeatures);
    if (variant === "fp16" && tensor.shape.length > 1) {
      const half = tensor.to("float16");
      stored[name] = half.to("float32");
      initializers.push(tensorOf(`${name}:fp16`, half));
      nodes.push({
        op: "Cast",
        domain: "",
        inputs: [`${name}:fp16`],
        outputs: [name],
        attributes: { to: { int: onnxTypes.float32 } },
      });
    } else if ((variant === "q8" || variant === "q4") && layer && block !== undefined) {
      const weight = quantizeLinear(layer, tensor, { bits, blockSize: block });
      const [n, k] = [layer.outFeatures, layer.inFeatures];
      const rows = dequantizeWeight(weight);
      const numbers = layer.inputsFirst ? transposed(rows, n, k) : rows;
      stored[name] = new Tensor("float32", tensor.shape, numbers);
      initializers.push(
        tensorOf(`${name}:q${bits}`, weight.packed),
        tensorOf(`${name}:scales`, weight.scales.reshape([weight.scales.size])),
      );
      quantized.set(name, { n, k, block });
    } else initializers.push(tensorOf(name, tensor));
  }
  for (const node of bare.nodes) {
    const [x, name, bias] = node.inputs;
    const form = node.op === "Gemm" ? quantized.get(name!) : undefined;
    if (!form) {
      nodes.push(node);
      continue;
    }
    const [output] = node.outputs as [string];
    nodes.push({
      op: "MatMulNBits",
      domain: "com.microsoft",
      inputs: [x!, `${name}:q${bits}`, `${name}:scales`],
      outputs: [bias === undefined ? output : `${output}:product`],
      attributes: {
        K: { int: form.k },
        N: { int: form.n },
        bits: { int: bits },
        block_size: { int: form.block },
      },
    });
    if (bias === undefined) continue;
    const inputs = [`${output}:product`, bias];
    nodes.push({ op: "Add", domain: "", inputs, outputs: [output], attributes: {} });
  }
  const inputs = bare.inputs.filter(({ name }) => !(name in params));
  return { graph: { ...bare, nodes, initializers, inputs }, stored };
}
