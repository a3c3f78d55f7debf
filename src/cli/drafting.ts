/** The options that let a drafter propose tokens, and what is told of its passes. */
import type { CommandContext, OptionTable } from "./command.ts";
import {
  type Drafter,
  type NamedDrafter,
  OptionError,
  type PassCount,
  parseDrafter,
  Rng,
  type Tokenizer,
  tokenizeFile,
} from "./library.ts";

const group = "Drafting";

export const draftingOptions: OptionTable = {
  decode: {
    type: "string",
    value: "method",
    about: "draft tokens, check many in a pass: aded, aded:depth=8,nodes=15",
    group,
  },
  "draft-corpus": {
    type: "string",
    value: "file",
    about: "a text whose n-grams the drafter begins with",
    group,
  },
};

/**
 * The method that `--decode` names, checked before a model is read.
 * @throws OptionError for an unknown method or option, and a corpus that is missing or has no use.
 */
export function namedDrafter(
  { options }: CommandContext,
  command: string,
): NamedDrafter | undefined {
  const [text, corpus] = [options["decode"], options["draft-corpus"]] as (string | undefined)[];
  if (text === undefined) {
    if (corpus === undefined) return undefined;
    throw new OptionError(`${command}: --draft-corpus has no use without --decode.`);
  }
  const named = parseDrafter(`${command}: --decode`, text);
  if (named.corpus === "needed" && corpus === undefined) {
    throw new OptionError(
      `${command}: --decode ${named.id} needs --draft-corpus — give a text file like what will be written.`,
    );
  }
  if (named.corpus === "unused" && corpus !== undefined) {
    throw new OptionError(
      `${command}: --decode ${named.id} reads no corpus — leave --draft-corpus out.`,
    );
  }
  return named;
}

/** A drafter for a model's vocabulary, its corpus read if there is one. */
export async function openDrafter(
  { host, options }: CommandContext,
  named: NamedDrafter,
  vocabSize: number,
  tokenizer: Tokenizer,
): Promise<Drafter> {
  const path = options["draft-corpus"] as string | undefined;
  const corpus =
    path === undefined ? {} : { corpus: (await tokenizeFile(host.files, path, tokenizer)).tokens };
  return named.make({ vocabSize, rng: new Rng(0), ...corpus });
}

/** For people: "31 passes, 2.06 tokens a pass, 3 choices within rounding". */
export function showPasses({ passes, tokensPerPass, close }: PassCount): string {
  const words = [`${passes} ${passes === 1 ? "pass" : "passes"}`];
  if (passes > 0) words.push(`${tokensPerPass.toFixed(2)} tokens a pass`);
  if (close > 0) words.push(`${close} ${close === 1 ? "choice" : "choices"} within rounding`);
  return words.join(", ");
}

/** For programs. */
export function passesJson(
  { passes, tokensPerPass, drafted, accepted, close }: PassCount,
  drafter: Drafter,
): Readonly<Record<string, unknown>> {
  return {
    passes,
    tokensPerPass: passes === 0 ? null : tokensPerPass,
    drafted,
    accepted,
    close,
    drafterBytes: drafter.bytes,
  };
}
