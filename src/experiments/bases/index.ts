/** Shared bases. */
export { type MadeBase, type OpenedBase, openBase } from "./base.ts";
export {
  type BrownLm,
  type BrownLmOptions,
  brownLm,
  type LmBase,
  type LmBaseOptions,
  lmBase,
  tokensOf,
} from "./language-model.ts";
export { fashionVit, type VitBase, type VitBaseOptions, vitBase } from "./vit.ts";
