/** Greedy decoding of 128 tokens after a prompt of 128. */
import { Decoder } from "../../../index.ts";
import type { Work } from "../serve.ts";
import { loadGpt } from "./gpt.ts";
import { engine, versionOf } from "./setup.ts";

const length = 128;

export async function decode(threads: number, path: string): Promise<Work> {
  const backend = await engine(threads);
  const { model, params, batch } = await loadGpt(path);
  const decoder = new Decoder(model, params, backend);
  const prompt = (batch["ids"]!.data as Int32Array).slice(0, length);
  return {
    ...versionOf(backend),
    step: async () => {
      const [tokens] = await decoder.generate([prompt], { maxNewTokens: length, temperature: 0 });
      return { tokens: [...tokens!] };
    },
  };
}
