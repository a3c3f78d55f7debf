/** X-LoRA's options; defaults are PEFT's. */
import { type OptionSpecs, readOptions } from "../../options.ts";

export interface XLoraOptions {
  /** Folders of the experts: `name=folder`, or the folder alone, whose name is then its place: 0, 1, …. */
  readonly adapters?: readonly string[];
  /** Linear layers of the gate. */
  readonly depth?: number;
  /** Width between them. */
  readonly size?: number;
  /** Share of what lies between them that is zeroed in training. */
  readonly dropout?: number;
  /** Scalings for each layer apart. */
  readonly layerwise?: boolean;
  readonly softmax?: boolean;
  readonly temperature?: number;
  /** Experts that count for a token and a layer; default all. */
  readonly topK?: number;
  /** Softmax over those alone. */
  readonly softmaxTopK?: boolean;
  /** What every expert counts in the first pass; 0 leaves them out. */
  readonly scalingPassValue?: number;
  /** Factor of all experts in the second pass. */
  readonly globalWeight?: number;
  readonly trainableAdapters?: boolean;
}

const options = {
  adapters: {
    type: "list",
    most: 64,
    about: "folders of the experts, each as name=folder or the folder alone",
  },
  depth: { type: "integer", default: 1, range: [1, 16], about: "linear layers of the gate" },
  size: {
    type: "integer",
    default: 2048,
    range: [1, 65536],
    about: "width of the gate between its layers, 2048 for models of 7 billion",
  },
  dropout: {
    type: "number",
    default: 0.2,
    range: [0, 1],
    open: [false, true],
    about: "share of the gate's inner numbers zeroed in training",
  },
  layerwise: { type: "flag", default: false, about: "scalings for each layer, not one for all" },
  softmax: { type: "flag", default: true, about: "scalings of a token sum to one" },
  temperature: {
    type: "number",
    default: 1,
    range: [0, 1000],
    open: [true, false],
    about: "of the softmax; lower is sharper",
  },
  topK: {
    type: "integer",
    range: [1, 64],
    about: "experts that count for a token; all if not given",
  },
  softmaxTopK: {
    type: "flag",
    default: false,
    about: "softmax over the chosen experts alone; needs topK",
  },
  scalingPassValue: {
    type: "number",
    default: 0,
    range: [-100, 100],
    about: "what every expert counts in the first pass; 0 is the base alone",
  },
  globalWeight: {
    type: "number",
    default: 1,
    range: [-1000, 1000],
    about: "factor of all experts in the second pass",
  },
  trainableAdapters: {
    type: "flag",
    default: false,
    about: "train the experts with the gate, which is another method",
  },
} as const satisfies OptionSpecs<XLoraOptions>;

export const xLoraOptions: OptionSpecs<XLoraOptions> = options;

/** Options with their defaults. */
export type FilledXLora = Required<Omit<XLoraOptions, "adapters" | "topK">> &
  Pick<XLoraOptions, "adapters" | "topK">;

/** @throws OptionError for an unknown option, or a value outside its range. */
export function readXLora(given: XLoraOptions): FilledXLora {
  return readOptions("x-lora", options, given);
}
