/** Every task by name, for surfaces. */
import {
  maskedLmKind,
  sequenceClassificationKind,
  tokenClassificationKind,
} from "./classify-kinds.ts";
import { imageClassificationKind } from "./picture-kind.ts";
import type { AnyTaskKind } from "./task.ts";
import { sentenceEmbeddingKind, seq2seqKind } from "./text-kinds.ts";

export const taskKinds: readonly AnyTaskKind[] = [
  sequenceClassificationKind,
  tokenClassificationKind,
  maskedLmKind,
  seq2seqKind,
  sentenceEmbeddingKind,
  imageClassificationKind,
];
