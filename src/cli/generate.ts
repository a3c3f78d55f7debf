/** `plasticity generate`: continue a text, as it comes. */
import { type Command, type CommandContext, realFrom, wholeFrom } from "./command.ts";
import { applyTemplate, Decoder, loadAdapter, OptionError } from "./library.ts";
import { modelOption, openBackend, openModel, threadsOption } from "./models.ts";
import { showCount } from "./output.ts";

async function run({ host, output, options, signal }: CommandContext): Promise<void> {
  const prompt = options["prompt"] as string | undefined;
  if (prompt === undefined) {
    throw new OptionError("generate: --prompt is missing — give the text to continue.");
  }
  const opened = await openModel(host, options["model"] as string);
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const folder = options["adapter"] as string | undefined;
  const adapter =
    folder === undefined ? undefined : await loadAdapter(host.files, folder, opened.model);
  const template = (options["template"] as string).replaceAll("\\n", "\n");
  const text = options["as-example"] === true ? applyTemplate(template, prompt) : prompt;
  const { tokenizer } = opened;
  const ids = tokenizer.encode(text);
  const decoder = new Decoder(opened.model, opened.params, backend, adapter ? { adapter } : {});
  const started = host.clock.monotonic();
  const made: number[] = [];
  let written = 0;
  try {
    await decoder.generate([ids], {
      maxNewTokens: options["max-new-tokens"] as number,
      temperature: options["temperature"] as number,
      ...(options["top-k"] !== undefined && { topK: options["top-k"] as number }),
      topP: options["top-p"] as number,
      minP: options["min-p"] as number,
      seed: options["seed"] as number,
      stopIds: tokenizer.eosId === undefined ? [] : [tokenizer.eosId],
      signal,
      onToken: (_, token) => {
        made.push(token);
        // A character may take several tokens: show what no longer changes.
        const whole = tokenizer.decode(made, { skipSpecial: true });
        if (whole.endsWith("\ufffd")) return;
        output.write(whole.slice(written));
        written = whole.length;
      },
    });
  } finally {
    await decoder.release();
  }
  const seconds = (host.clock.monotonic() - started) / 1000;
  output.line();
  output.warn(`${made.length} tokens, ${showCount(made.length / seconds)} tokens/s`);
  output.json({
    prompt: text,
    text: tokenizer.decode(made, { skipSpecial: true }),
    tokens: made,
    promptTokens: ids.length,
    seconds,
  });
}

export const generateCommand: Command = {
  name: "generate",
  summary: "continue a text",
  usage: "plasticity generate --prompt <text> [--model <folder>] [--adapter <folder>]",
  example: 'plasticity generate --prompt "It was a dark night" --temperature 0.8 --seed 7',
  options: {
    prompt: { type: "string", value: "text", about: "the text to continue" },
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "an adapter folder to use with the model" },
    "as-example": { type: "flag", about: "put the prompt into the template that finetune uses" },
    template: { type: "string", value: "text", default: "{prompt}\\n", about: "that template" },
    "max-new-tokens": {
      type: "number",
      default: 64,
      about: "tokens to make",
      check: wholeFrom(1, 1 << 20),
    },
    temperature: {
      type: "number",
      default: 0,
      about: "0 takes the likeliest token",
      check: realFrom(0, 100),
    },
    "top-k": { type: "number", about: "keep this many likeliest tokens", check: wholeFrom(1) },
    "top-p": {
      type: "number",
      default: 1,
      about: "keep the likeliest up to this probability",
      check: realFrom(1e-6, 1),
    },
    "min-p": {
      type: "number",
      default: 0,
      about: "keep tokens this share as likely as the likeliest",
      check: realFrom(0, 0.999),
    },
    seed: {
      type: "number",
      default: 0,
      about: "for temperatures above 0",
      check: wholeFrom(0, 2 ** 52),
    },
    threads: threadsOption,
  },
  run,
};
