/**
 * Two adapters and the base model in one batch: a bank holds the adapters, each row says which it takes.
 *
 *   npx tsx examples/mix-adapters-in-a-batch.ts [steps]
 */
import {
  Decoder,
  defaultBackend,
  encodeExamples,
  finetune,
  generateTexts,
  loadModel,
  loadTokenizer,
  lora,
  loraBank,
  type RawExample,
  Rng,
  traineeOf,
} from "plasticity";
import { nodeHost } from "plasticity/node";

const steps = Number(process.argv[2] ?? 80);
const { files } = nodeHost();
const backend = await defaultBackend();
const { model, params } = await loadModel(files, "models/builtin");
const tokenizer = await loadTokenizer(files, "models/builtin");

const words = ["river", "house", "night", "letter", "garden", "horse", "winter", "window"];
const tasks: readonly ((word: string) => string)[] = [
  (word) => `the word is ${word}.`,
  (word) => `${word}, ${word} and ${word}!`,
];

const bank = loraBank(model, { slots: tasks.length, maxRank: 8 });
for (const [i, answer] of tasks.entries()) {
  const raw: RawExample[] = words.map((prompt) => ({
    kind: "pair",
    prompt,
    completion: answer(prompt),
  }));
  const { examples } = encodeExamples(raw, tokenizer, { maxLength: 64 });
  const adapter = lora(model, { rank: 4 + 4 * i });
  const start = { adapter, params: adapter.init(new Rng(i)) };
  const trainee = traineeOf(model, params, start);
  const trained = await finetune(trainee, examples, backend, { steps, batchSize: 8 });
  bank.fill(i + 1, adapter, trained.params);
}

const decoder = new Decoder(model, params, backend, { bank });
const slots = [0, 1, 2];
const prompts = slots.map(() => "garden\n");
const made = await generateTexts(decoder, tokenizer, prompts, { slots, maxNewTokens: 16 });
for (const [i, { text }] of made.entries())
  console.log(`slot ${slots[i]}: ${JSON.stringify(text)}`);
await decoder.release();
