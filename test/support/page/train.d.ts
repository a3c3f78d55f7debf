import type { Files } from "../../../src/host/host.ts";
import type * as Library from "../../../src/index.ts";

type Package = typeof Library;

export function train(
  library: Package,
  backend: Library.Backend,
  files: Files,
  options: { readonly folder: string; readonly out: string; readonly steps: number },
): Promise<{ readonly losses: readonly number[]; readonly text: string }>;

export function trainTiny(
  library: Package,
  backend: Library.Backend,
  steps: number,
): Promise<readonly number[]>;

export function write(
  library: Package,
  loaded: Library.LoadedModel,
  tokenizer: Library.Tokenizer,
  adapter: Library.LoadedAdapter | undefined,
  backend: Library.Backend,
): Promise<string>;
