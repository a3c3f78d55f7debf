/** `plasticity embed --images`: vectors of pictures, as safetensors or lines of JSON. */
import { nodeImages } from "../host/node-images.ts";
import type { CommandContext } from "./command.ts";
import {
  defaultPreprocessing,
  findPictures,
  ImageEmbedder,
  loadAnyModel,
  OptionError,
  pictureBatches,
  readPreprocessing,
  seesPictures,
  Tensor,
  writeSafetensors,
} from "./library.ts";
import { modelFolder, openBackend } from "./models.ts";
import { showTime } from "./output.ts";

/** Options that speak of texts alone. */
const ofTexts = [
  "text",
  "data",
  "map",
  "pooling",
  "dims",
  "prompt",
  "prompt-name",
  "max-length",
  "adapter",
];

/** Files as they are given, and the pictures in folders. */
async function picturePaths({ host, options }: CommandContext): Promise<{ path: string }[]> {
  const found: { path: string }[] = [];
  for (const path of options["images"] as readonly string[]) {
    const isFolder = (await host.files.info(path))?.isDirectory === true;
    const paths = isFolder ? await findPictures(host.files, path) : [path];
    found.push(...paths.map((picture) => ({ path: picture })));
  }
  return found;
}

/** Vectors of pictures; broken ones are named and left out. */
export async function embedImages(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const wrong = ofTexts.find((name) => {
    const value = options[name];
    return Array.isArray(value) ? value.length > 0 : value !== undefined;
  });
  if (wrong !== undefined) {
    throw new OptionError(`embed: --${wrong} is for texts, leave it out with --images.`);
  }
  const out = options["out"] as string | undefined;
  const folder = modelFolder(options["model"] as string);
  const { model, params } = await loadAnyModel(host.files, folder);
  if (!seesPictures(model)) {
    throw new OptionError(
      `embed: ${folder} holds a ${model.family}, which sees no pictures — give a ViT, a ResNet or a CLIP.`,
    );
  }
  const size = model.kind === "vision" ? model.sizes.imageSize : model.vision.imageSize;
  const rule =
    (await readPreprocessing(host.files, folder)) ?? defaultPreprocessing(model.family, size);
  const images = await nodeImages();
  const pictures = await picturePaths(context);
  const embedder = new ImageEmbedder(
    model,
    params,
    rule,
    await openBackend(output, options["threads"] as number | undefined),
    {
      normalize: options["raw"] !== true,
      batchSize: Math.min(options["batch-size"] as number, Math.max(2, pictures.length)),
    },
  );
  const started = host.clock.monotonic();
  const names: string[] = [];
  const rows: Float32Array[] = [];
  let [seen, shown, skipped] = [0, 0, 0];
  try {
    const batches = pictureBatches(host.files, images, pictures, rule, embedder.batchSize);
    for await (const batch of batches) {
      if (signal.aborted) break;
      const whole = batch.flatMap((item, i) => {
        if (!("reason" in item)) return [{ picture: item, path: pictures[seen + i]!.path }];
        // Many broken pictures are one sentence, not many.
        if (++skipped <= 5) output.warn(item.reason);
        return [];
      });
      const { data } = await embedder.embed(whole.map(({ picture }) => picture));
      whole.forEach(({ path }, i) => {
        names.push(path);
        rows.push(data.slice(i * embedder.dims, (i + 1) * embedder.dims));
      });
      seen += batch.length;
      const tenth = Math.floor((10 * seen) / pictures.length);
      const left = (host.clock.monotonic() - started) * (pictures.length / seen - 1);
      output.progress(
        `Embedding: ${seen} of ${pictures.length}  ${showTime(left / 1000)} left`,
        tenth > shown,
      );
      shown = Math.max(shown, tenth);
    }
  } finally {
    await embedder.release();
  }
  if (skipped > 0) output.warn(`${skipped} of ${pictures.length} pictures could not be read.`);
  if (rows.length === 0) throw new OptionError("embed: none of the pictures can be read.");
  const about = {
    count: rows.length,
    skipped,
    dims: embedder.dims,
    normalized: options["raw"] !== true,
  };
  const line = (i: number): string => JSON.stringify({ path: names[i], embedding: [...rows[i]!] });
  if (out === undefined) {
    for (let i = 0; i < rows.length; i++) output.line(line(i));
    output.json({ ...about, paths: names, embeddings: rows.map((row) => [...row]) });
    return;
  }
  if (out.endsWith(".safetensors")) {
    const data = new Float32Array(rows.length * embedder.dims);
    rows.forEach((row, i) => {
      data.set(row, i * embedder.dims);
    });
    const vectors = new Tensor("float32", [rows.length, embedder.dims], data);
    await writeSafetensors(host.files, out, [["embeddings", vectors]], {
      paths: JSON.stringify(names),
      normalized: String(about.normalized),
    });
  } else {
    await host.files.writeText(out, rows.map((_, i) => `${line(i)}\n`).join(""));
  }
  output.line(`${rows.length} vectors of ${embedder.dims} numbers in ${out}.`);
  output.json({ ...about, out });
}
