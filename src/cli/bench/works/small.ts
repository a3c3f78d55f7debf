/** An LSTM language model and a small convolutional classifier, as bench/peers/py/worker.py has them. */
import {
  type Backend,
  gradientOf,
  nn,
  optim,
  relu,
  reshape,
  type Tensor,
  trace,
  type Value,
} from "../../../index.ts";
import type { Work } from "../serve.ts";
import { engine, nextTokens, readWeights, updaterOf, versionOf } from "./setup.ts";

class LstmModel extends nn.Module {
  readonly #embed: nn.Embedding;
  readonly #lstm: nn.Lstm;
  readonly #head: nn.Linear;

  constructor(vocab: number, width: number, hidden: number) {
    super();
    this.#embed = this.child("embed", new nn.Embedding(vocab, width));
    this.#lstm = this.child("lstm", new nn.Lstm(width, hidden));
    this.#head = this.child("head", new nn.Linear(hidden, vocab));
  }

  /** (B, T) → (B·T, V) */
  forward(context: nn.Context, ids: Value): Value {
    const { output } = this.#lstm.forward(context, this.#embed.forward(context, ids));
    const [batch, length, hidden] = output.shape as [number, number, number];
    return this.#head.forward(context, reshape(output, [batch * length, hidden]));
  }
}

class CnnModel extends nn.Module {
  readonly #convs: readonly nn.Conv2d[];
  readonly #fc: nn.Linear;

  constructor() {
    super();
    const conv = (name: string, from: number, to: number, stride: number): nn.Conv2d =>
      this.child(name, new nn.Conv2d(from, to, 3, { stride, padding: 1 }));
    this.#convs = [conv("conv1", 3, 32, 1), conv("conv2", 32, 64, 2), conv("conv3", 64, 128, 2)];
    this.#fc = this.child("fc", new nn.Linear(128, 10));
  }

  /** (B, 3, 32, 32) → (B, 10) */
  forward(context: nn.Context, x: Value): Value {
    const y = this.#convs.reduce((h, conv) => relu(conv.forward(context, h)), x);
    return this.#fc.forward(context, nn.globalAvgPool(y));
  }
}

/** Loss of a module on one batch, gradients in place, an update. */
async function trainer(
  model: nn.Module & { forward(context: nn.Context, x: Value): Value },
  params: Record<string, Tensor>,
  x: Tensor,
  targets: Tensor,
  train: { backend: Backend; optimizer: optim.Optimizer; rate: number },
): Promise<Work["step"]> {
  const { program } = trace(
    ((own: nn.ValueRecord, input: Value, wanted: Value) => {
      const loss = nn.crossEntropy(model.forward(model.context(own), input), wanted);
      return [loss, gradientOf(loss, own)];
    }) as never,
    [params, x, targets],
  );
  const executable = await train.backend.load(program);
  const updater = updaterOf(params, train.optimizer, train.backend);
  const inputs = [...Object.values(updater.params), x, targets];
  const gradients = Object.values(updater.gradients);
  return async () => {
    const [loss] = await executable.run(inputs, [undefined, ...gradients]);
    await updater.step(train.rate);
    return { loss: loss!.item() };
  };
}

export async function lstmAdamW(threads: number, path: string): Promise<Work> {
  const backend = await engine(threads);
  const { ids, ...params } = await readWeights(path);
  const [vocab, width] = params["embed.weight"]!.shape as [number, number];
  const model = new LstmModel(vocab, width, params["lstm.weight_hh_l0"]!.shape[1]!);
  const { ids: inputs, targets } = nextTokens(ids!);
  const train = { backend, optimizer: optim.adamW(), rate: 1e-3 };
  return { ...versionOf(backend), step: await trainer(model, params, inputs, targets, train) };
}

export async function cnnSgd(threads: number, path: string): Promise<Work> {
  const backend = await engine(threads);
  const { x, y, ...params } = await readWeights(path);
  const train = { backend, optimizer: optim.sgd({ momentum: 0.9 }), rate: 0.01 };
  return {
    ...versionOf(backend),
    step: await trainer(new CnnModel(), params, x!, y!, train),
  };
}
