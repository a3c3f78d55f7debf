/** How a model does on held-out examples, before and after. */
import { sampleOf } from "./finetune-data.ts";
import type { Job } from "./finetune-job.ts";
import type { Measured } from "./finetune-report.ts";
import {
  answerAll,
  Decoder,
  type Files,
  nearestNeighbour,
  ownWeights,
  type RawExample,
  StateError,
  scoreExamples,
  streamExamples,
  type TensorRecord,
} from "./library.ts";

/** What a training leaves: its parameters, and the buffers that it changed. */
export interface Trained {
  readonly params: TensorRecord;
  readonly buffers: TensorRecord;
}

/** An adapter's buffers as a training leaves them. */
export function changedBuffers(first: TensorRecord, trained: Trained | undefined): TensorRecord {
  return Object.fromEntries(
    Object.entries(first).map(([name, tensor]) => [name, trained?.buffers[name] ?? tensor]),
  );
}

type Pair = Extract<RawExample, { kind: "pair" }>;

/** How the model does on held-out examples; `undefined` when it was told to stop. */
export async function measure(
  job: Job,
  trained: Trained | undefined,
  signal: AbortSignal,
  onProgress: (done: number) => void,
): Promise<Measured | undefined> {
  const { opened, backend, questions, data, trainee } = job;
  const score = await scoreExamples(
    trained
      ? {
          ...trainee,
          trained: trained.params,
          frozen: { ...trainee.frozen, ...trained.buffers },
        }
      : trainee,
    data.heldOut,
    backend,
    { signal },
  );
  if (!score) return undefined;
  if (!Number.isFinite(score.nll)) {
    throw new StateError(
      trained
        ? `finetune: the loss on held-out examples is ${score.nll} after training — lower the learning rate.`
        : `finetune: the loss on held-out examples is ${score.nll} before training — the model's weights may be broken.`,
    );
  }
  if (questions.length === 0) return { ...score, answers: [] };
  const decoder = decoderOf(job, trained);
  try {
    const answers = await answerAll(decoder, opened.tokenizer, questions, { onProgress, signal });
    return signal.aborted ? undefined : { ...score, answers };
  } finally {
    await decoder.release();
  }
}

function decoderOf(job: Job, trained: Trained | undefined): Decoder {
  const { opened, backend, trainee, openedAdapter } = job;
  const { model } = opened;
  const params = trained?.params ?? trainee.trained;
  const base = ownWeights(trainee);
  if (!openedAdapter) return new Decoder(model, { ...base, ...params }, backend);
  const { adapter, buffers } = openedAdapter;
  return new Decoder(model, base, backend, {
    adapter: { adapter, params, buffers: changedBuffers(buffers, trained) },
    ...(trainee.form && { form: trainee.form }),
  });
}

/** What the model does with plain text: the start of a held-out text, continued. */
export async function continuation(job: Job, trained: Trained | undefined): Promise<string> {
  const { opened } = job;
  const first = job.data.heldOutRaw[0]!;
  const text = first.kind === "text" ? first.text : sampleOf(first);
  const prompt = opened.tokenizer
    .encode(text)
    .subarray(0, Math.min(24, opened.model.sizes.maxPositions - 1));
  const decoder = decoderOf(job, trained);
  try {
    const [made] = await decoder.generate([prompt], { maxNewTokens: 40 });
    return opened.tokenizer.decode([...prompt, ...made!], { skipSpecial: true });
  } finally {
    await decoder.release();
  }
}

/** Examples above which nobody waits for their nearest neighbours. */
const nearestLimit = 20_000;

/** How often the completion of the nearest training prompt is the expected one. */
export async function nearestExact(job: Job, files: Files): Promise<number | undefined> {
  const isPair = (example: RawExample): example is Pair => example.kind === "pair";
  const asked = job.data.heldOutRaw.filter(isPair).slice(0, job.questions.length);
  if (job.data.train.count > nearestLimit || asked.length === 0) return undefined;
  const prompts = new Set(asked.map(({ prompt }) => prompt));
  const known: Pair[] = [];
  for await (const example of streamExamples(files, job.dataPath, job.read)) {
    // Held out of the same file by their prompts.
    if (isPair(example) && !prompts.has(example.prompt)) known.push(example);
  }
  if (known.length === 0) return undefined;
  const copies = nearestNeighbour(
    known,
    asked.map(({ prompt }) => prompt),
  );
  const hits = copies.filter((copy, i) => copy.trim() === asked[i]!.completion.trim());
  return hits.length / asked.length;
}
