/**
 * The model of the groups smollm2 and serve: from a path that the user gives, written once in every form that a side
 * reads. The package neither ships nor fetches it.
 */
import { resolve } from "node:path";
import {
  FormatError,
  type Host,
  type LanguageModel,
  type LoadedModel,
  loadModel,
  loadTokenizer,
  MissingError,
  nodeOrt,
  saveGguf,
  saveModel,
  verifyOnnxExport,
  withGguf,
} from "../../index.ts";

/** Where the path may stand when it is no option. */
export const realModelVariable = "PLASTICITY_BENCH_SMOLLM2";

const remedy = `name SmolLM2-135M-Instruct as a .gguf file or a folder by --model or ${realModelVariable}`;

/** Why nothing of these groups runs without a path. */
export const realModelRemedy: string = `no model was given — ${remedy}`;

/** What is read and made: the file `bench.json` beside the weights. */
export interface RealTask {
  /** 128 tokens that a decode begins with. */
  readonly prompt: readonly number[];
  /** (4, 257) tokens of training. */
  readonly rows: readonly (readonly number[])[];
  /** (512, 128) tokens that streams begin with, no two with the same first one; fewer if tokens are. */
  readonly prompts: readonly (readonly number[])[];
  /** The GGUF that was given, or the one written in its place. */
  readonly gguf: string;
}

export const realFiles = {
  task: "bench.json",
  f32: "f32.gguf",
  q8: "q8_0.gguf",
  q4: "q4_0.gguf",
} as const;

const promptLength = 128;
const promptCount = 512;
const batchRows = 4;
const rowLength = 257;

/** Plain English, so that what is decoded is text and not chance. */
const text = `The harbour lay quiet in the early morning, and the fishing boats rocked gently against the old stone wall.
A young woman named Clara walked along the quay with a basket on her arm, counting the gulls that stood on the posts.
Every spring she came here to ask the captains where they had sailed and what they had seen, because she was writing a
book about the islands to the north. Most of them told her the same stories about storms and lights, but one of them,
an old man with a grey beard, had once found a map in a bottle. He kept it folded in his coat and showed it to nobody.
On this morning, however, he waved to her from the deck of his small boat and asked her to come on board. The map was
thin and brown, and a line of red ink led from the harbour to an island that no chart has. She asked him whether he had
ever tried to follow it. He laughed and said that he had tried three times, and that each time the wind had turned.
`;

/** Writes forms of one model into a folder, each when it is first asked for. */
export class RealModel {
  readonly #host: Host;
  readonly #given: string;
  readonly #folder: string;
  #written: Promise<string> | undefined;
  #onnx: Promise<void> | undefined;
  #gguf: Promise<void> | undefined;

  /**
   * @param given a GGUF file or a folder
   * @param folder to write into; it need not exist
   */
  constructor(host: Host, given: string, folder: string) {
    this.#host = host;
    this.#given = given;
    this.#folder = folder;
  }

  /** A folder that our loader and `transformers` read, with the task. */
  async weights(): Promise<string> {
    this.#written ??= this.#write();
    return this.#written;
  }

  /** The same with `onnx/`, our export in fp32, q8 and q4. */
  async withOnnx(): Promise<string> {
    const path = await this.weights();
    this.#onnx ??= this.#writeOnnx(path);
    await this.#onnx;
    return path;
  }

  /** The same with GGUF files of float32 and 8 bits. */
  async withGguf(): Promise<string> {
    const path = await this.weights();
    this.#gguf ??= this.#writeGguf(path);
    await this.#gguf;
    return path;
  }

  get #isFile(): boolean {
    return /\.gguf$/i.test(this.#given);
  }

  async #write(): Promise<string> {
    const { files } = this.#host;
    if (!(await files.info(this.#given))) {
      throw new MissingError(`bench: ${this.#given} is not there — ${remedy}.`);
    }
    const path = this.#folder;
    const loaded = await loadModel(files, this.#given);
    const { model, params, config } = loaded;
    await saveModel(files, path, model, params, { config, files: await this.#texts() });
    const gguf = this.#isFile ? resolve(this.#given) : files.join(path, realFiles.q4);
    const task: RealTask = { ...(await this.#tokens(model)), gguf };
    await files.writeText(files.join(path, realFiles.task), JSON.stringify(task));
    return path;
  }

  async #texts(): Promise<Record<string, string>> {
    const files = withGguf(this.#host.files);
    const texts: Record<string, string> = {};
    for (const name of ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]) {
      const from = files.join(this.#given, name);
      if (await files.info(from)) texts[name] = await files.readText(from, 2 ** 27);
    }
    return texts;
  }

  async #tokens({ sizes }: LanguageModel): Promise<Omit<RealTask, "gguf">> {
    const tokenizer = await loadTokenizer(withGguf(this.#host.files), this.#given);
    const ids = tokenizer.encode(text);
    if (ids.length <= promptLength || ids.some((id) => id >= sizes.vocabSize)) {
      throw new FormatError(
        `bench: ${this.#given}: its tokenizer makes ${ids.length} tokens of the text, more than ${promptLength} below ${sizes.vocabSize} are needed.`,
      );
    }
    const rows = Array.from({ length: batchRows }, (_, row) =>
      Array.from({ length: rowLength }, (__, t) => ids[(31 * row + t) % ids.length]!),
    );
    const prompts = Array.from({ length: Math.min(promptCount, sizes.vocabSize) }, (_, i) => [
      sizes.vocabSize - 1 - i,
      ...Array.from({ length: promptLength - 1 }, (__, t) => ids[(31 * i + t) % ids.length]!),
    ]);
    return { prompt: [...ids.slice(0, promptLength)], rows, prompts };
  }

  async #writeOnnx(path: string): Promise<void> {
    const { files } = this.#host;
    const loaded: LoadedModel = await loadModel(files, path);
    const tokenizer = await loadTokenizer(files, path);
    const backend = await nodeOrt();
    const verified = await verifyOnnxExport(files, backend, loaded, {
      variants: ["fp32", "q8", "q4"],
      tokenizer,
      // Against the floats; the graph is held to 1e-4 of the engine on the stored weights besides.
      tolerance: 0.5,
    });
    await verified.write(path);
  }

  async #writeGguf(path: string): Promise<void> {
    const { files } = this.#host;
    await saveGguf(files, path, files.join(path, realFiles.f32), { dtype: "f32" });
    await saveGguf(files, path, files.join(path, realFiles.q8), { dtype: "q8_0" });
    if (!this.#isFile) {
      await saveGguf(files, path, files.join(path, realFiles.q4), { dtype: "q4_0" });
    }
  }
}
