/** GPT steps: loss and gradients, full training, LoRA. */
import {
  add,
  type Backend,
  type Batch,
  concat,
  dot,
  expand,
  Gpt2,
  lora,
  nn,
  optim,
  Rng,
  Tensor,
  type Trainee,
  TrainProgram,
  type Value,
} from "../../../index.ts";
import type { Work } from "../serve.ts";
import { engine, nextTokens, readWeights, updaterOf, versionOf } from "./setup.ts";

interface Loaded {
  readonly model: Gpt2;
  readonly params: Record<string, Tensor>;
  readonly batch: Batch;
  /** Σ weights of the batch. */
  readonly total: number;
}

/** The model and batch of a weights file. */
export async function loadGpt(path: string, nHeads?: number): Promise<Loaded> {
  const { ids, ...tensors } = await readWeights(path);
  const [vocabSize, dModel] = tensors["wte.weight"]!.shape as [number, number];
  const nLayers = Object.keys(tensors).filter((name) => name.endsWith(".ln_1.weight")).length;
  const model = new Gpt2({
    vocabSize,
    dModel,
    nLayers,
    nHeads: nHeads ?? dModel / 64,
    maxPositions: tensors["wpe.weight"]!.shape[0]!,
  });
  const params = Object.fromEntries(
    [...model.slots()].map(([name]) => [name, tensors[name.replace(/^transformer\./, "")]!]),
  );
  const data = nextTokens(ids!);
  const total = data.targets.size;
  const weights = new Tensor("float32", [total], new Float32Array(total).fill(1));
  return { model, params, batch: { ...data, weights }, total };
}

/** One batch, again and again. */
export function trainer(
  trainee: Trainee,
  { batch, total }: Pick<Loaded, "batch" | "total">,
  backend: Backend,
  rate: number,
  options: ConstructorParameters<typeof TrainProgram>[2] = {},
) {
  const program = new TrainProgram(trainee, backend, options);
  const updater = updaterOf(trainee.trained, optim.adamW(), backend);
  const { params, gradients } = updater;
  const rng = new Rng(0);
  return async (): Promise<{ loss: number }> => {
    const loss = await program.lossAndGradients(batch, params, gradients, total, rng);
    if (rate > 0) await updater.step(rate);
    return { loss };
  };
}

const tinyHeads = 4;

async function tiny(threads: number, path: string, rate: number): Promise<Work> {
  const backend = await engine(threads);
  const loaded = await loadGpt(path, tinyHeads);
  const trainee: Trainee = { model: loaded.model, frozen: {}, trained: loaded.params };
  return { ...versionOf(backend), step: trainer(trainee, loaded, backend, rate) };
}

export const gptForwardBackward = (threads: number, path: string): Promise<Work> =>
  tiny(threads, path, 0);

export const gptAdamW = (threads: number, path: string): Promise<Work> => tiny(threads, path, 1e-3);

const rank = 8;
const alpha = 16;

/** LoRA on c_attn, as PEFT does it for GPT-2. */
export function joined({ model, params }: Loaded): Trainee {
  const adapter = lora(model, { targetModules: ["c_attn"], rank, alpha });
  return {
    model,
    frozen: params,
    trained: adapter.init(new Rng(0)),
    adapt: (values) => adapter.context(values),
  };
}

/** LoRA on the first and last third of c_attn's outputs: q and v. */
function queryValue({ model, params }: Loaded): Trainee {
  const { dModel } = model.sizes;
  const trained: Record<string, Tensor> = {};
  const layers = [...model.targets].filter(([path]) => path.endsWith("c_attn"));
  const names = (path: string, part: string): [a: string, b: string] => [
    `${path}.${part}.lora_A.weight`,
    `${path}.${part}.lora_B.weight`,
  ];
  for (const [path] of layers) {
    for (const part of ["q", "v"]) {
      const [a, b] = names(path, part);
      const numbers = nn.kaimingUniform(new Rng(0).fold(a), [rank, dModel]);
      trained[a] = new Tensor("float32", [rank, dModel], numbers);
      trained[b] = Tensor.zeros([dModel, rank], "float32");
    }
  }
  return {
    model,
    frozen: params,
    trained,
    adapt: (values) => {
      const delta = (path: string, part: string, x: Value): Value => {
        const [a, b] = names(path, part);
        const inner = dot(x, values[a]!, { transB: true });
        return dot(inner, values[b]!, { transB: true, alpha: alpha / rank });
      };
      const site =
        (path: string): nn.SiteFn =>
        (x, y) => {
          const none = expand(x.graph.lift(0), [x.shape[0]!, dModel]);
          return add(y, concat([delta(path, "q", x), none, delta(path, "v", x)], 1));
        };
      return { sites: new Map(layers.map(([path, layer]) => [layer, site(path)])) };
    },
  };
}

async function small(
  threads: number,
  path: string,
  adapt: (loaded: Loaded) => Trainee,
): Promise<Work> {
  const backend = await engine(threads);
  const loaded = await loadGpt(path);
  return { ...versionOf(backend), step: trainer(adapt(loaded), loaded, backend, 1e-4) };
}

export const loraJoined = (threads: number, path: string): Promise<Work> =>
  small(threads, path, joined);

export const loraQueryValue = (threads: number, path: string): Promise<Work> =>
  small(threads, path, queryValue);
