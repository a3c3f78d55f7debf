/** Seeded weights and data, in one file for all sides of a comparison. */
import { type Host, Rng, Tensor, writeSafetensors } from "../../index.ts";
import type { RealName, WeightsName } from "./plan.ts";

/** Made here. */
type SeededName = Exclude<WeightsName, RealName>;
type Named = [name: string, tensor: Tensor];
type Shapes = Readonly<Record<string, readonly number[]>>;

const seed = 1;

/** Uniform numbers with this standard deviation. */
function spread(name: string, shape: readonly number[], deviation: number): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = new Rng(seed).fold(name).uniforms(size);
  const width = deviation * Math.sqrt(12);
  for (let i = 0; i < size; i++) data[i] = width * (data[i]! - 0.5);
  return new Tensor("float32", shape, data);
}

function whole(name: string, shape: readonly number[], below: number): Tensor {
  const rng = new Rng(seed).fold(name);
  const size = shape.reduce((a, b) => a * b, 1);
  return new Tensor(
    "int32",
    shape,
    Int32Array.from({ length: size }, () => rng.integer(below)),
  );
}

/** GPT-2's names; matrices stored (in, out). */
function* gpt(sizes: {
  layers: number;
  width: number;
  positions: number;
  vocab: number;
  ids: readonly number[];
}): Generator<Named> {
  const { layers, width, positions, vocab } = sizes;
  const matrix = (name: string, shape: readonly number[]): Named => [
    name,
    spread(name, shape, 0.02),
  ];
  const fill = (name: string, size: number, value: number): Named => [
    name,
    new Tensor("float32", [size], new Float32Array(size).fill(value)),
  ];
  yield matrix("wte.weight", [vocab, width]);
  yield matrix("wpe.weight", [positions, width]);
  const names = Array.from({ length: layers }, (_, i) => [`h.${i}.ln_1`, `h.${i}.ln_2`]).flat();
  for (const norm of [...names, "ln_f"]) {
    yield fill(`${norm}.weight`, width, 1);
    yield fill(`${norm}.bias`, width, 0);
  }
  for (let i = 0; i < layers; i++) {
    for (const [name, from, to] of [
      ["attn.c_attn", width, 3 * width],
      ["attn.c_proj", width, width],
      ["mlp.c_fc", width, 4 * width],
      ["mlp.c_proj", 4 * width, width],
    ] as const) {
      yield matrix(`h.${i}.${name}.weight`, [from, to]);
      yield fill(`h.${i}.${name}.bias`, to, 0);
    }
  }
  yield ["ids", whole("ids", sizes.ids, vocab)];
}

/** PyTorch's names and its bound 1/√fan-in. */
function* bounded(shapes: Shapes, fanIn: (name: string) => number): Generator<Named> {
  for (const [name, shape] of Object.entries(shapes)) {
    yield [name, spread(name, shape, 1 / Math.sqrt(3 * fanIn(name)))];
  }
}

const lstmShapes: Shapes = {
  "embed.weight": [2048, 256],
  "lstm.weight_ih_l0": [1024, 256],
  "lstm.weight_hh_l0": [1024, 256],
  "lstm.bias_ih_l0": [1024],
  "lstm.bias_hh_l0": [1024],
  "head.weight": [2048, 256],
  "head.bias": [2048],
};

const cnnShapes: Shapes = {
  "conv1.weight": [32, 3, 3, 3],
  "conv1.bias": [32],
  "conv2.weight": [64, 32, 3, 3],
  "conv2.bias": [64],
  "conv3.weight": [128, 64, 3, 3],
  "conv3.bias": [128],
  "fc.weight": [10, 128],
  "fc.bias": [10],
};

const cnnFanIn: Readonly<Record<string, number>> = { conv1: 27, conv2: 288, conv3: 576, fc: 128 };

const makers: Readonly<Record<SeededName, () => Iterable<Named>>> = {
  "gpt-tiny": () => gpt({ layers: 4, width: 128, positions: 128, vocab: 2048, ids: [8, 129] }),
  "gpt2-small": () => gpt({ layers: 12, width: 768, positions: 1024, vocab: 50257, ids: [2, 129] }),
  lstm: function* () {
    yield* bounded(lstmShapes, () => 256);
    yield ["ids", whole("ids", [32, 129], 2048)];
  },
  cnn: function* () {
    yield* bounded(cnnShapes, (name) => cnnFanIn[name.split(".")[0]!]!);
    yield ["x", spread("x", [32, 3, 32, 32], 1)];
    yield ["y", whole("y", [32], 10)];
  },
  none: () => [],
};

/** Writes the file of a model, once. */
export async function writeWeights(host: Host, folder: string, name: SeededName): Promise<string> {
  const path = host.files.join(folder, `${name}.safetensors`);
  if (name !== "none" && !(await host.files.info(path))) {
    await writeSafetensors(host.files, path, makers[name]());
  }
  return path;
}
