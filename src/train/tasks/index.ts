/** Every task by name, for surfaces: on texts, and on pictures. */
import {
  maskedLmKind,
  sequenceClassificationKind,
  tokenClassificationKind,
} from "./classify-kinds.ts";
import { imageClassificationKind } from "./picture-kind.ts";
import type { PictureTaskKind, TaskKind } from "./task.ts";
import { sentenceEmbeddingKind, seq2seqKind } from "./text-kinds.ts";

export const taskKinds: readonly TaskKind[] = [
  sequenceClassificationKind,
  tokenClassificationKind,
  maskedLmKind,
  seq2seqKind,
  sentenceEmbeddingKind,
];

/** Tasks on pictures, by name. */
export const pictureTaskKinds: readonly PictureTaskKind[] = [imageClassificationKind];
