/**
 * Text as it is made, ended by a stop string, by a limit or by leaving the loop.
 *
 *   npx tsx examples/stream-text.ts [prompt]
 */
import { Decoder, defaultBackend, loadModel, loadTokenizer, streamText } from "plasticity";
import { nodeHost } from "plasticity/node";

const prompt = process.argv[2] ?? "It was a dark night, and the old man";
const { files } = nodeHost();
const { model, params } = await loadModel(files, "models/builtin");
const tokenizer = await loadTokenizer(files, "models/builtin");
const decoder = new Decoder(model, params, await defaultBackend());

const text = streamText(decoder, tokenizer, prompt, {
  maxNewTokens: 80,
  temperature: 0.8,
  topP: 0.95,
  seed: 7,
  stop: ["\n\n"],
  // Whatever aborts ends the text, not the program.
  signal: AbortSignal.timeout(30_000),
});
process.stdout.write(prompt);
let piece = await text.next();
for (; !piece.done; piece = await text.next()) process.stdout.write(piece.value);
const { tokens, finishReason } = piece.value;
console.log(`\n(${tokens.length} tokens, ended by: ${finishReason})`);
await decoder.release();
