/**
 * Our arm of a comparison: `node worker.js <work> <threads> <weights.safetensors>`.
 *
 * The protocol is that of bench/peers/README.md.
 */
import { OptionError } from "../../index.ts";
import { serve, type Work } from "./serve.ts";
import { adapterStep } from "./works/adapters.ts";
import { decode } from "./works/decode.ts";
import { gptAdamW, gptForwardBackward, loraJoined, loraQueryValue } from "./works/gpt.ts";
import { products } from "./works/products.ts";
import {
  realDecode,
  realDecode4,
  realDecode4Rounded,
  realDecode8,
  realLora,
  realLora4,
} from "./works/real.ts";
import { serving, servingNames } from "./works/serving.ts";
import { shapes } from "./works/shapes.ts";
import { cnnSgd, lstmAdamW } from "./works/small.ts";

const works: Readonly<Record<string, (threads: number, weights: string) => Promise<Work>>> = {
  "gpt-fwdbwd": gptForwardBackward,
  "gpt-adamw": gptAdamW,
  "lstm-adamw": lstmAdamW,
  "cnn-sgd": cnnSgd,
  "gpt2small-lora": loraJoined,
  "gpt2small-lora-qv": loraQueryValue,
  "gpt2small-decode": decode,
  "gpt2small-products": products,
  "smollm2-lora": realLora,
  "smollm2-lora-4bit": realLora4,
  "smollm2-decode": realDecode,
  "smollm2-decode-8bit": realDecode8,
  "smollm2-decode-4bit": realDecode4,
  "smollm2-decode-4bit-int8": realDecode4Rounded,
  ...Object.fromEntries(servingNames.map((name) => [name, serving(name)])),
  adapter: adapterStep,
  shapes,
};

const [name = "", threads = "1", weights = ""] = process.argv.slice(2);
const make = Object.hasOwn(works, name) ? works[name] : undefined;
if (!make) {
  throw new OptionError(
    `bench: unknown work "${name}" — known are ${Object.keys(works).join(", ")}.`,
  );
}
await serve(await make(Number(threads), weights), Number(threads));
process.exit(0);
