/** The executable specification of the fused operators, for `infer.ts`. */
import { ShapeError } from "../errors.ts";
import { type Shape, sameShape, showShape } from "../tensor/shape.ts";
import type { AttrsOf, OpName } from "./attrs.ts";
import {
  type Infer,
  needDtype,
  needRank,
  needSameDtype,
  needSameShape,
  type Spec,
  type Value,
} from "./graph.ts";

function needFloat(where: string, value: Spec): void {
  needDtype(where, value, "float32", "float64");
}

function like(where: string): Infer<OpName> {
  return ([x]) => {
    needFloat(where, x!);
    return [{ shape: x!.shape, dtype: x!.dtype }];
  };
}

/** @throws ShapeError saying what was wanted, with all shapes. */
function need(where: string, fits: boolean, wanted: string, values: readonly Spec[]): void {
  if (fits) return;
  throw new ShapeError(
    `${where}: needs ${wanted}, got ${values.map((value) => showShape(value.shape)).join(", ")}.`,
  );
}

/** @throws DtypeError unless all are floats of one type; `resets`, bool, apart. */
function needOneFloat(where: string, floats: readonly Value[], resets?: Value): void {
  needFloat(where, floats[0]!);
  for (const value of floats) needSameDtype(where, floats[0]!, value);
  if (resets) needDtype(`${where}: resets`, resets, "bool");
}

function needChunk(where: string, chunk: number): void {
  if (Number.isInteger(chunk) && chunk >= 1) return;
  throw new ShapeError(`${where}: chunk must be a whole number from 1, got ${chunk}.`);
}

function known(where: string, dim: number | string): number {
  if (typeof dim === "number") return dim;
  throw new ShapeError(`${where}: size "${dim}" must be known here — compile for one size.`);
}

/** Chunks of a sequence; its length must be known. */
function chunksOf(where: string, length: number | string, chunk: number): number {
  return Math.ceil(known(where, length) / chunk);
}

function needChannels(where: string, x: Value, numbers: readonly Value[]): void {
  need(where, x.rank >= 2, "x (N, C, spatial…)", [x]);
  const channels = { shape: x.shape.slice(1, 2), dtype: x.dtype };
  for (const value of numbers) {
    needSameShape(`${where}: per channel`, value, channels);
    needSameDtype(where, x, value);
  }
}

/** Shapes of x, delta, a, b, c and resets of a selective scan. */
function needSelective(where: string, inputs: readonly Value[], resets?: Value): void {
  const [x, delta, a, b, c] = inputs as [Value, Value, Value, Value, Value];
  const [batch, length, channels] = x.shape as [number, number, number];
  const grid = [batch, length, a.shape[1]!];
  const fits =
    x.rank === 3 &&
    sameShape(x.shape, delta.shape) &&
    sameShape(a.shape, [channels, a.shape[1]!]) &&
    [b, c].every((value) => sameShape(value.shape, grid)) &&
    (!resets || sameShape(resets.shape, [batch, length]));
  need(where, fits, "x and delta (B, T, D), a (D, N), b and c (B, T, N), resets (B, T)", [
    x,
    delta,
    a,
    b,
    c,
    ...(resets ? [resets] : []),
  ]);
}

type Fused =
  | "softmax"
  | "logSoftmax"
  | "gelu"
  | "silu"
  | "layerNorm"
  | "rmsNorm"
  | "crossEntropy"
  | "dequantize"
  | "quantizedLinear"
  | "groupNorm"
  | "batchNorm"
  | "resize"
  | "gridSample"
  | "lstm"
  | "gru"
  | "linearRecurrence"
  | "selectiveScan"
  | "selectiveScanGradient"
  | "ssd";

export const fusedTable: { readonly [O in Fused]: Infer<O> } = {
  softmax: like("softmax") as Infer<"softmax">,
  logSoftmax: like("logSoftmax") as Infer<"logSoftmax">,
  gelu: like("gelu") as Infer<"gelu">,
  silu: like("silu") as Infer<"silu">,
  layerNorm: ([x, weight, bias]) => {
    needFloat("layerNorm", x!);
    needRank("layerNorm", weight!, 1);
    needSameShape("layerNorm: weight", weight!, { shape: x!.shape.slice(-1), dtype: x!.dtype });
    needSameShape("layerNorm: bias", bias!, weight!);
    const row = { shape: [...x!.shape.slice(0, -1), 1], dtype: x!.dtype };
    return [x!, row, row];
  },
  rmsNorm: ([x, weight]) => {
    needFloat("rmsNorm", x!);
    needSameShape("rmsNorm: weight", weight!, { shape: x!.shape.slice(-1), dtype: x!.dtype });
    return [x!, { shape: [...x!.shape.slice(0, -1), 1], dtype: x!.dtype }];
  },
  crossEntropy: ([logits, targets]) => {
    needFloat("crossEntropy", logits!);
    needDtype("crossEntropy", targets!, "int32");
    needRank("crossEntropy: logits", logits!, 2);
    needSameShape("crossEntropy: targets", targets!, {
      shape: logits!.shape.slice(0, 1),
      dtype: "int32",
    });
    return [{ shape: logits!.shape.slice(0, 1), dtype: logits!.dtype }, logits!];
  },
  dequantize: (inputs, attrs) => {
    checkQuantized("dequantize", inputs, attrs);
    return [{ shape: [attrs.outFeatures, attrs.inFeatures], dtype: "float32" }];
  },
  quantizedLinear: ([x, ...weight], attrs) => {
    needDtype("quantizedLinear", x!, "float32");
    needRank("quantizedLinear", x!, 2);
    checkQuantized("quantizedLinear", weight, attrs);
    if (x!.shape[1] !== attrs.inFeatures) {
      throw new ShapeError(
        `quantizedLinear: input ${showShape(x!.shape)} must have ${attrs.inFeatures} features.`,
      );
    }
    return [{ shape: [x!.shape[0]!, attrs.outFeatures], dtype: "float32" }];
  },
  groupNorm: ([x, ...affine], { groups }) => {
    needFloat("groupNorm", x!);
    needChannels("groupNorm", x!, affine);
    const channels = known("groupNorm", x!.shape[1]!);
    if (!Number.isInteger(groups) || groups < 1 || channels % groups !== 0) {
      throw new ShapeError(`groupNorm: groups must divide ${channels} channels, got ${groups}.`);
    }
    const rows = { shape: [known("groupNorm", x!.shape[0]!) * groups, 1], dtype: x!.dtype };
    return [x!, rows, rows];
  },
  batchNorm: ([x, ...numbers], { training }) => {
    needFloat("batchNorm", x!);
    needChannels("batchNorm", x!, numbers);
    const channels = { shape: [x!.shape[1]!], dtype: x!.dtype };
    return training ? [x!, channels, channels] : [x!];
  },
  resize: ([x], { sizes }) => {
    needFloat("resize", x!);
    need("resize", x!.rank === sizes.length + 2, `x (N, C, ${sizes.length} spatial axes)`, [x!]);
    return [{ shape: [...x!.shape.slice(0, 2), ...sizes], dtype: x!.dtype }];
  },
  gridSample: ([x, grid]) => {
    needOneFloat("gridSample", [x!, grid!]);
    const fits =
      x!.rank === 4 && grid!.rank === 4 && grid!.shape[3] === 2 && x!.shape[0] === grid!.shape[0];
    if (!fits) {
      throw new ShapeError(
        `gridSample: needs x (N, C, H, W) and grid (N, H', W', 2), got ${showShape(x!.shape)} and ${showShape(grid!.shape)}.`,
      );
    }
    const [, height, width] = grid!.shape as [number, number, number];
    return [{ shape: [...x!.shape.slice(0, 2), height, width], dtype: x!.dtype }];
  },
  lstm: (inputs) => {
    needOneFloat("lstm", inputs);
    const [z, weight, h0, c0] = inputs as [Value, Value, Value, Value];
    const [batch, hidden] = needGates("lstm", 4, [z, weight, h0]);
    needSameShape("lstm: c0", c0, h0);
    const steps = (width: number): Spec => ({
      shape: [z.shape[0]!, batch, width],
      dtype: z.dtype,
    });
    const one = steps(hidden);
    return [one, h0, c0, one, steps(2 * hidden), one, one];
  },
  gru: (inputs) => {
    needOneFloat("gru", inputs);
    const [z, weight, h0, bias] = inputs as [Value, Value, Value, Value | undefined];
    const [batch, hidden] = needGates("gru", 3, [z, weight, h0]);
    if (bias) needSameShape("gru: bias", bias, { shape: [3 * hidden], dtype: z.dtype });
    const steps = { shape: [z.shape[0]!, batch, hidden], dtype: z.dtype };
    return [steps, h0, steps, steps, steps, steps, steps];
  },
  linearRecurrence: (inputs) => {
    needOneFloat("linearRecurrence", inputs);
    const [a, b, initial] = inputs as [Value, Value, Value];
    const fits = sameShape(a.shape, b.shape) && a.rank > 0;
    need("linearRecurrence", fits, "a and b (T, …)", [a, b]);
    const step = { shape: a.shape.slice(1), dtype: a.dtype };
    needSameShape("linearRecurrence: initial", initial, step);
    return [b];
  },
  selectiveScan: (inputs, { chunk }) => {
    const [x, , a, , , initial, resets] = inputs as Value[];
    needOneFloat("selectiveScan", inputs.slice(0, 6), resets);
    needSelective("selectiveScan", inputs, resets);
    needChunk("selectiveScan", chunk);
    const [batch, length, channels] = x!.shape as [number, number, number];
    const states = a!.shape[1] as number;
    const dtype = x!.dtype;
    needSameShape("selectiveScan: initial", initial!, { shape: [batch, channels, states], dtype });
    const chunks = chunksOf("selectiveScan", length, chunk);
    return [x!, initial!, { shape: [chunks, batch, states, channels], dtype }];
  },
  selectiveScanGradient: (inputs, { chunk }) => {
    const where = "selectiveScanGradient";
    const [x, delta, a, b, c, starts, ctY, ctState, resets] = inputs as Value[];
    needOneFloat(where, inputs.slice(0, 8), resets);
    needSelective(where, inputs, resets);
    needChunk(where, chunk);
    const [batch, length, channels] = x!.shape as [number, number, number];
    const states = a!.shape[1] as number;
    const dtype = x!.dtype;
    const chunks = chunksOf(where, length, chunk);
    needSameShape(`${where}: starts`, starts!, { shape: [chunks, batch, states, channels], dtype });
    needSameShape(`${where}: cotangent of y`, ctY!, x!);
    const state = { shape: [batch, channels, states], dtype };
    needSameShape(`${where}: cotangent of the state`, ctState!, state);
    return [x!, delta!, a!, b!, c!, state];
  },
  ssd: (inputs, { chunk }) => {
    const [x, delta, a, b, c, initial, resets] = inputs as Value[];
    needOneFloat("ssd", inputs.slice(0, 6), resets);
    needChunk("ssd", chunk);
    const [batch, length, heads, width] = x!.shape as [number, number, number, number];
    const [groups, states] = b!.shape.slice(2) as [number, number];
    const fits =
      x!.rank === 4 &&
      b!.rank === 4 &&
      sameShape(b!.shape, c!.shape) &&
      sameShape(delta!.shape, [batch, length, heads]) &&
      sameShape(a!.shape, [heads]) &&
      sameShape(b!.shape.slice(0, 2), [batch, length]) &&
      heads % groups === 0 &&
      (!resets || sameShape(resets.shape, [batch, length]));
    need(
      "ssd",
      fits,
      "x (B, T, H, P), delta (B, T, H), a (H,), b and c (B, T, G, N), resets (B, T), G dividing H",
      [x!, delta!, a!, b!, c!, ...(resets ? [resets] : [])],
    );
    const state: Shape = [batch, heads, width, states];
    const dtype = x!.dtype;
    needSameShape("ssd: initial", initial!, { shape: state, dtype });
    return [x!, initial!, { shape: [chunksOf("ssd", length, chunk), ...state], dtype }];
  },
};

/** z (T, B, gates·H), weight (gates·H, H), h0 (B, H) → B and H. */
function needGates(where: string, gates: number, values: readonly Value[]): [number, number] {
  const [z, weight, h0] = values as [Value, Value, Value];
  const [batch, hidden] = h0.shape as [number, number];
  const fits =
    h0.rank === 2 &&
    sameShape(z.shape.slice(1), [batch, gates * hidden]) &&
    z.rank === 3 &&
    sameShape(weight.shape, [gates * hidden, hidden]);
  need(where, fits, `z (T, B, ${gates}H), weight (${gates}H, H) and h0 (B, H)`, values);
  return [batch, hidden];
}

/** Inputs: packed (out, blocks, bytes) uint8, scales (out, blocks) float32. */
function checkQuantized(
  where: string,
  inputs: readonly Spec[],
  attrs: AttrsOf["dequantize"],
): void {
  const blocks = attrs.inFeatures / attrs.blockSize;
  if (!Number.isInteger(blocks)) {
    throw new ShapeError(
      `${where}: ${attrs.inFeatures} input features are not a multiple of the block size ${attrs.blockSize}.`,
    );
  }
  const bytes = (attrs.blockSize * attrs.bits) / 8;
  const grid = [attrs.outFeatures, blocks];
  needSameShape(where, inputs[0]!, { shape: [...grid, bytes], dtype: "uint8" });
  needDtype(where, inputs[0]!, "uint8");
  needSameShape(where, inputs[1]!, { shape: grid, dtype: "float32" });
}
