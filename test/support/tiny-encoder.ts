/** Folders with tiny models and a WordPiece tokenizer, for tests of tasks. */
import type { Files } from "../../src/host/host.ts";
import { families } from "../../src/models/families.ts";
import { saveModel } from "../../src/models/folder.ts";
import { Rng } from "../../src/tensor/rng.ts";

const special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/** The words that the tokenizer knows; others are spelled by letters. */
export const words: readonly string[] = [
  ..."good bad fine poor great awful movie book film story the a was is very not".split(" "),
  ..."anna ben lives works in at paris london bank school and likes cat dog red blue".split(" "),
];

const letters = [..."abcdefghijklmnopqrstuvwxyz.,!?"];
const vocabulary = [...special, ...words, ...letters, ...letters.map((letter) => `##${letter}`)];

/** tokenizer.json of a WordPiece tokenizer with BERT's frame. */
export function wordPieceJson(): string {
  const token = (id: string, type = 0): object => ({ SpecialToken: { id, type_id: type } });
  const text = (id: string, type = 0): object => ({ Sequence: { id, type_id: type } });
  return JSON.stringify({
    version: "1.0",
    added_tokens: special.map((content, id) => ({
      ...{ id, content, special: true, single_word: false },
      ...{ lstrip: false, rstrip: false, normalized: false },
    })),
    normalizer: {
      type: "BertNormalizer",
      ...{ clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
    },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single: [token("[CLS]"), text("A"), token("[SEP]")],
      pair: [token("[CLS]"), text("A"), token("[SEP]"), text("B", 1), token("[SEP]", 1)],
      special_tokens: {
        "[CLS]": { id: "[CLS]", ids: [2], tokens: ["[CLS]"] },
        "[SEP]": { id: "[SEP]", ids: [3], tokens: ["[SEP]"] },
      },
    },
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(vocabulary.map((word, id) => [word, id])),
    },
  });
}

export const wordPieceConfig: string = JSON.stringify({
  ...{ cls_token: "[CLS]", sep_token: "[SEP]", pad_token: "[PAD]", mask_token: "[MASK]" },
  ...{ unk_token: "[UNK]", eos_token: "[SEP]" },
});

const bert = {
  model_type: "bert",
  architectures: ["BertModel"],
  vocab_size: vocabulary.length,
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  intermediate_size: 64,
  max_position_embeddings: 64,
  hidden_dropout_prob: 0.1,
};

/** Configurations of tiny models by family. */
export const tinyConfigs: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  bert,
  t5: {
    model_type: "t5",
    architectures: ["T5ForConditionalGeneration"],
    vocab_size: vocabulary.length,
    ...{ d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_heads: 4, dropout_rate: 0 },
    ...{ pad_token_id: 0, eos_token_id: 3, decoder_start_token_id: 0 },
  },
};

/** Writes a model with seeded weights and its tokenizer; returns the folder. */
export async function writeTiny(files: Files, folder: string, family: string): Promise<string> {
  const model = families[family]!(tinyConfigs[family]!);
  const { params } = model.init(new Rng(7));
  await saveModel(files, folder, model, params, {
    files: { "tokenizer.json": wordPieceJson(), "tokenizer_config.json": wordPieceConfig },
  });
  return folder;
}
