/** The options that say how tokens are chosen, shared by `generate`, `chat` and what sets them in a chat. */
import { type OptionTable, type OptionValues, realFrom, wholeFrom } from "./command.ts";
import type { SampleOptions } from "./library.ts";

const group = "Choosing tokens";

/** Temperature 0 unless another default is given. */
export const samplingOptions = (temperature = 0): OptionTable => ({
  temperature: {
    type: "number",
    default: temperature,
    about: "0 takes the likeliest token",
    check: realFrom(0, 100),
    group,
  },
  "top-k": { type: "number", about: "keep this many likeliest tokens", check: wholeFrom(1), group },
  "top-p": {
    type: "number",
    default: 1,
    about: "keep the likeliest up to this probability",
    check: realFrom(1e-6, 1),
    group,
  },
  "min-p": {
    type: "number",
    default: 0,
    about: "keep tokens this share as likely as the likeliest",
    check: realFrom(0, 0.999),
    group,
  },
  "typical-p": {
    type: "number",
    default: 1,
    about: "keep the most typical up to this probability",
    check: realFrom(1e-6, 1),
    group,
  },
  "repetition-penalty": {
    type: "number",
    default: 1,
    about: "weaken tokens of prompt and text, above 1",
    check: realFrom(0.01, 100),
    group,
  },
  "presence-penalty": {
    type: "number",
    default: 0,
    about: "taken from logits of tokens made before",
    check: realFrom(-2, 2),
    group,
  },
  "frequency-penalty": {
    type: "number",
    default: 0,
    about: "the same for each time that they were made",
    check: realFrom(-2, 2),
    group,
  },
  seed: {
    type: "number",
    default: 0,
    about: "for temperatures above 0",
    check: wholeFrom(0, 2 ** 52),
    group,
  },
});

/** The settings that the options name. */
export function samplingOf(options: OptionValues): SampleOptions & { readonly seed: number } {
  const number = (name: string): number => options[name] as number;
  return {
    temperature: number("temperature"),
    ...(options["top-k"] !== undefined && { topK: number("top-k") }),
    topP: number("top-p"),
    minP: number("min-p"),
    typicalP: number("typical-p"),
    repetitionPenalty: number("repetition-penalty"),
    presencePenalty: number("presence-penalty"),
    frequencyPenalty: number("frequency-penalty"),
    seed: number("seed"),
  };
}

/** Text of an option in which `\n` and `\t` stand for a line break and a tab. */
export function unescaped(text: string): string {
  return text.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
}
