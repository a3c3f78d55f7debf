/**
 * A run in a folder that is stopped half way and taken up again: the losses are those of a run that
 * nobody stopped.
 *
 *   npx tsx examples/resume-a-run.ts [steps]
 */
import {
  defaultBackend,
  type FinetuneOptions,
  Finetuner,
  finetune,
  isRun,
  loadModel,
  loadTokenizer,
  lora,
  prepareData,
  Rng,
  Run,
  traineeOf,
  trainRun,
} from "plasticity";
import { nodeHost } from "plasticity/node";

const settings: FinetuneOptions = { steps: Number(process.argv[2] ?? 40), seed: 1 };
const host = nodeHost();
const backend = await defaultBackend();
const { model, params } = await loadModel(host.files, "models/builtin");
const tokenizer = await loadTokenizer(host.files, "models/builtin");
const { train } = await prepareData(host.files, "data/commands/train.jsonl", tokenizer, {
  maxLength: model.sizes.maxPositions,
});
const adapter = lora(model, { rank: 8 });
const trainee = traineeOf(model, params, { adapter, params: adapter.init(new Rng(1)) });

const folder = "runs/example-resumed";
if (await host.files.info(folder)) await host.files.remove(folder);

/** Goes on with the run in the folder, or begins it; ends after so many steps of its own. */
async function go(most: number): Promise<readonly number[]> {
  const run = (await isRun(host.files, folder))
    ? await Run.open(host.files, folder)
    : await Run.create(host.files, folder, { settings });
  const tuner = await Finetuner.create(trainee, train, backend, settings);
  const stop = new AbortController();
  let made = 0;
  try {
    const result = await trainRun(run, tuner, host, {
      signal: stop.signal,
      onStart: (step) => console.log(`at step ${step} of ${tuner.steps}`),
      onStep: () => {
        if (++made === most) stop.abort();
      },
    });
    if (!result.isStopped) await run.finish({ loss: result.losses.at(-1) });
    return result.losses;
  } finally {
    await tuner.release();
    await run.release();
  }
}

await go(Math.floor(settings.steps! / 2));
const losses = await go(Infinity);
const undisturbed = await finetune(trainee, train, backend, settings);
const isSame = losses.every((loss, i) => loss === undisturbed.losses[i]);
console.log(`${losses.length} steps; every loss is that of an undisturbed training: ${isSame}`);
