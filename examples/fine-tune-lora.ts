/**
 * LoRA on a file of examples: read, train, save as PEFT reads it, ask.
 *
 *   npx tsx examples/fine-tune-lora.ts [steps]
 */
import {
  applyTemplate,
  Decoder,
  defaultBackend,
  finetuneSteps,
  generateText,
  loadModel,
  loadTokenizer,
  lora,
  prepareData,
  Rng,
  saveAdapter,
  traineeOf,
} from "plasticity";
import { nodeHost } from "plasticity/node";

const steps = Number(process.argv[2] ?? 150);
const { files } = nodeHost();
const backend = await defaultBackend();
const { model, params } = await loadModel(files, "models/builtin");
const tokenizer = await loadTokenizer(files, "models/builtin");

const { train } = await prepareData(files, "data/commands/train.jsonl", tokenizer, {
  maxLength: model.sizes.maxPositions,
});
const adapter = lora(model, { rank: 16, targetModules: "all-linear" });
const trainee = traineeOf(model, params, { adapter, params: adapter.init(new Rng(0)) });

const training = finetuneSteps(trainee, train, backend, { steps });
let turn = await training.next();
while (!turn.done) {
  const { step, loss } = turn.value;
  if (step % 10 === 0 || step === steps)
    console.log(`step ${step} of ${steps}: ${loss.toFixed(3)}`);
  turn = await training.next();
}
const trained = turn.value.params;
await saveAdapter(files, "runs/example-lora", adapter, trained, { base: "models/builtin" });

const decoder = new Decoder(model, params, backend, { adapter: { adapter, params: trained } });
const prompt = "wake me at 7 am for the flight";
const { text } = await generateText(decoder, tokenizer, applyTemplate("{prompt}\n", prompt));
await decoder.release();
console.log(`${prompt}\n  ${text}\nAdapter in runs/example-lora.`);
