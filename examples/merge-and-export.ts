/**
 * An adapter written into its base model, then the whole for transformers.js; logits are compared
 * before a byte is written.
 *
 *   npx tsx examples/merge-and-export.ts [steps]
 */
import {
  defaultBackend,
  finetune,
  loadModel,
  loadTokenizer,
  lora,
  mergeAdapter,
  prepareData,
  Rng,
  saveAdapter,
  traineeOf,
  verifyOnnxExport,
} from "plasticity";
import { nodeHost } from "plasticity/node";

const steps = Number(process.argv[2] ?? 30);
const { files } = nodeHost();
const backend = await defaultBackend();
const base = await loadModel(files, "models/builtin");
const tokenizer = await loadTokenizer(files, "models/builtin");
const { train } = await prepareData(files, "data/commands/train.jsonl", tokenizer, {
  maxLength: base.model.sizes.maxPositions,
});
const adapter = lora(base.model, { rank: 8 });
const start = { adapter, params: adapter.init(new Rng(0)) };
const trainee = traineeOf(base.model, base.params, start);
const { params } = await finetune(trainee, train, backend, { steps });

const folder = { adapter: "runs/example-adapter", out: "runs/example-merged" };
const exported = "runs/example-onnx";
for (const old of [...Object.values(folder), exported]) {
  if (await files.info(old)) await files.remove(old);
}
await saveAdapter(files, folder.adapter, adapter, params, { base: base.path });
const merge = await mergeAdapter(files, backend, { model: base.path, ...folder }, { tokenizer });
console.log(`merged into ${folder.out}: logits differ by ${merge.difference.maxRelative}`);

const merged = await loadModel(files, folder.out);
const onnx = await verifyOnnxExport(files, backend, merged, {
  variants: ["fp32", "q4"],
  tokenizer,
});
for (const { file, bytes, difference } of onnx.variants) {
  console.log(`${file}: ${bytes} bytes, logits differ by ${difference.maxRelative.toFixed(6)}`);
}
console.log(`exported to ${exported}: ${(await onnx.write(exported)).join(", ")}`);
