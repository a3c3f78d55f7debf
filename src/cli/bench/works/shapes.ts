/** Training on 200 batch shapes, twice in turn: programs come and go, memory must not grow. */
import { type Batch, Gpt2, optim, Rng, Tensor, TrainProgram } from "../../../index.ts";
import { memorySteps } from "../own.ts";
import type { Work } from "../serve.ts";
import { engine, updaterOf, versionOf } from "./setup.ts";

const { total: totalSteps, first: firstSteps } = memorySteps;
const shapeCount = 200;
const visits = 2 * shapeCount;
/** Has no divisor in common with the count. */
const stride = 77;
const vocabSize = 256;

export async function shapes(threads: number): Promise<Work> {
  const backend = await engine(threads);
  const model = new Gpt2({ vocabSize, dModel: 64, nLayers: 2, nHeads: 4, maxPositions: 128 });
  const { params } = model.init(new Rng(0));
  const program = new TrainProgram({ model, frozen: {}, trained: params }, backend);
  const updater = updaterOf(params, optim.adamW(), backend);
  const { params: trained, gradients } = updater;
  const rng = new Rng(1);
  let done = 0;
  return {
    ...versionOf(backend),
    isAboutMemory: true,
    step: async () => {
      const visit = Math.floor((done++ * visits) / totalSteps);
      const batch = batchOf(shapeAt(visit), rng);
      const total = batch.targets.size;
      const loss = await program.lossAndGradients(batch, trained, gradients, total, rng);
      await updater.step(1e-3);
      return { loss };
    },
  };
}

/**
 * The shape of a visit: the largest first, as a trainer should, then all sizes mixed evenly. The second
 * turn begins where memory was first read, so that the shapes last visited, whose programs are kept,
 * are the same at both readings.
 */
export function shapeAt(visit: number): number {
  const place = visit < shapeCount ? visit : visit + (firstSteps * visits) / totalSteps;
  return (shapeCount - 1 + stride * place) % shapeCount;
}

/** Shape i: a batch of 1 to 8, a length of 8 to 104. */
function batchOf(i: number, rng: Rng): Batch {
  const [rows, length] = [1 + (i % 8), 8 + 4 * Math.floor(i / 8)];
  const size = rows * length;
  const tokens = (): Int32Array<ArrayBuffer> =>
    Int32Array.from({ length: size }, () => rng.integer(vocabSize));
  return {
    ids: new Tensor("int32", [rows, length], tokens()),
    targets: new Tensor("int32", [size], tokens()),
    weights: new Tensor("float32", [size], new Float32Array(size).fill(1)),
  };
}
