/** The table of docs/models.md: what is done with each architecture, and how near it is to its original. */
import { families } from "../../src/models/families.ts";
import type { ModelKind } from "../../src/models/model.ts";
import type { ModelNumbers } from "./model-numbers.ts";

export const tableStart = "<!-- table: npx tsx scripts/model-table.mjs -->";
export const tableEnd = "<!-- end of the table -->";

/** By the `model_type` of config.json; `test/model-table.test.ts` holds that none is left out. */
const titles: Readonly<Record<string, string>> = {
  bert: "BERT",
  clip: "CLIP, both towers",
  clip_text_model: "CLIP, text",
  clip_vision_model: "CLIP, pictures",
  distilbert: "DistilBERT",
  gemma3_text: "Gemma 3",
  gpt2: "GPT-2",
  gpt_neox: "GPT-NeoX, Pythia",
  llama: "Llama 2, Llama 3, SmolLM2",
  mamba: "Mamba",
  mamba2: "Mamba-2",
  mistral: "Mistral",
  mt5: "mT5",
  phi3: "Phi-3, Phi-4",
  qwen2: "Qwen2, Qwen2.5",
  qwen3: "Qwen3",
  resnet: "ResNet",
  roberta: "RoBERTa",
  t5: "T5, Flan-T5",
  vit: "ViT",
  "xlm-roberta": "XLM-RoBERTa",
};

const trained: Readonly<Record<ModelKind, string>> = {
  "causal-lm": "objectives, tasks",
  encoder: "tasks",
  seq2seq: "task `seq2seq`",
  vision: "task `image-classification`",
  "vision-text": "gradients alone",
};

/** No task is for these; what they compute can be differentiated. */
const untasked: ReadonlySet<string> = new Set(["clip", "clip_text_model", "clip_vision_model"]);

function decoded({ kind, isRecurrent }: ModelNumbers): string {
  if (kind === "causal-lm") return isRecurrent ? "with a state" : "with a cache";
  return kind === "seq2seq" ? "with a cache" : "-";
}

/** Rounded up to one figure, so that other machines' last bits change nothing. */
function upTo(value: number): string {
  if (value === 0) return "0";
  const power = Math.floor(Math.log10(value));
  const figure = Math.ceil(value / 10 ** power - 1e-9);
  return figure === 10 ? `1e${power + 1}` : `${figure}e${power}`;
}

/** Lines of the table, of decoders first. */
export function modelTable(numbers: readonly ModelNumbers[]): string[] {
  const order: readonly ModelKind[] = ["causal-lm", "seq2seq", "encoder", "vision", "vision-text"];
  const rows = Object.keys(families).flatMap((family) => {
    const own = numbers.filter((number) => number.family === family);
    // A language model's records as a classifier stand for it too.
    const main = own.find(({ kind }) => kind === "causal-lm") ?? own[0];
    if (!main) return [];
    const most = (of: (number: ModelNumbers) => number): string => upTo(Math.max(...own.map(of)));
    const cells = [
      titles[family] ?? family,
      `\`${family}\``,
      "yes",
      untasked.has(family) ? trained["vision-text"] : trained[main.kind],
      "yes",
      decoded(main),
      `${own.length}`,
      most(({ outputs }) => outputs),
      most(({ gradients }) => gradients),
    ];
    return [{ place: order.indexOf(main.kind), line: `| ${cells.join(" | ")} |` }];
  });
  rows.sort((a, b) => a.place - b.place || (a.line < b.line ? -1 : 1));
  return [
    "| architecture | `model_type` | load | train | save | decode | records | outputs | gradients |",
    "|---|---|---|---|---|---|--:|--:|--:|",
    ...rows.map(({ line }) => line),
  ];
}
