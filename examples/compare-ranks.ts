/**
 * The same data, steps and seed for several ranks, judged on examples that none of them saw.
 *
 *   npx tsx examples/compare-ranks.ts [steps]
 */
import {
  defaultBackend,
  finetune,
  loadModel,
  loadTokenizer,
  lora,
  prepareData,
  Rng,
  scoreExamples,
  traineeOf,
} from "plasticity";
import { nodeHost } from "plasticity/node";

const steps = Number(process.argv[2] ?? 30);
const { files } = nodeHost();
const backend = await defaultBackend();
const { model, params } = await loadModel(files, "models/builtin");
const tokenizer = await loadTokenizer(files, "models/builtin");
const { train, heldOut } = await prepareData(files, "data/commands/train.jsonl", tokenizer, {
  heldOutPath: "data/commands/heldout.jsonl",
  maxLength: model.sizes.maxPositions,
});

for (const rank of [2, 8, 32]) {
  const adapter = lora(model, { rank });
  const start = { adapter, params: adapter.init(new Rng(0)) };
  const trainee = traineeOf(model, params, start);
  const { params: trained } = await finetune(trainee, train, backend, { steps });
  const { nll } = await scoreExamples({ ...trainee, trained }, heldOut, backend);
  const size = Object.values(trained).reduce((sum, tensor) => sum + tensor.size, 0);
  console.log(`rank ${rank}: ${size} parameters, held-out loss ${nll.toFixed(3)}`);
}
