/** A CLIP of some thousand random parameters, and a tokenizer of six words. */
import { defaultPreprocessing, type Preprocessing } from "../../src/data/images.ts";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import type { Clip } from "../../src/models/clip.ts";
import { families } from "../../src/models/families.ts";
import type { TensorRecord } from "../../src/nn/module.ts";
import { Rng } from "../../src/tensor/rng.ts";

export const clipWords: readonly string[] = [
  "[UNK]",
  "a",
  "photo",
  "of",
  "cat",
  "dog",
  "<s>",
  "</s>",
  "[PAD]",
];
export const clipTokenizer: Tokenizer = new Tokenizer(
  {
    config: undefined,
    tokenizer: JSON.stringify({
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: ["<s>", "</s>", "[PAD]"].map((content, i) => ({
        id: 6 + i,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      normalizer: null,
      pre_tokenizer: { type: "Whitespace" },
      post_processor: {
        type: "TemplateProcessing",
        single: [
          { SpecialToken: { id: "<s>", type_id: 0 } },
          { Sequence: { id: "A", type_id: 0 } },
          { SpecialToken: { id: "</s>", type_id: 0 } },
        ],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
        special_tokens: {
          "<s>": { id: "<s>", ids: [6], tokens: ["<s>"] },
          "</s>": { id: "</s>", ids: [7], tokens: ["</s>"] },
        },
      },
      decoder: null,
      model: {
        type: "WordLevel",
        vocab: Object.fromEntries(clipWords.map((word, i) => [word, i])),
        unk_token: "[UNK]",
      },
    }),
  },
  "tokenizer.json",
);
const tower = {
  hidden_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  intermediate_size: 16,
};
export const tinyClip: Clip = families["clip"]!({
  projection_dim: 6,
  text_config: {
    ...tower,
    vocab_size: 9,
    max_position_embeddings: 10,
    eos_token_id: 7,
    bos_token_id: 6,
  },
  vision_config: { ...tower, image_size: 8, patch_size: 4 },
}) as Clip;
export const clipParams: TensorRecord = tinyClip.init(new Rng(7)).params;
export const clipRule: Preprocessing = defaultPreprocessing("clip", [8, 8]);
