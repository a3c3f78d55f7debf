/** `plasticity eval --task zero-shot-image-classification`: classes of pictures by their names alone. */
import { nodeImages } from "../host/node-images.ts";
import type { CommandContext } from "./command.ts";
import {
  defaultPreprocessing,
  loadAnyModel,
  loadTokenizer,
  OptionError,
  readPictures,
  readPreprocessing,
  scoreZeroShot,
  type VisionTextModel,
} from "./library.ts";
import { modelFolder, openBackend } from "./models.ts";
import { showTime } from "./output.ts";
import { showMeasure } from "./task-options.ts";

/** Classes of which the whole table of counts is shown. */
const shownClasses = 12;

export async function evalZeroShot(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const task = "zero-shot-image-classification";
  const data = options["data"] as string | undefined;
  if (data === undefined) {
    throw new OptionError(
      `eval: --data is missing — ${task} reads a folder of pictures with a folder for each class.`,
    );
  }
  if (options["adapter"] !== undefined) {
    throw new OptionError(`eval: --adapter does not go with --task ${task}.`);
  }
  const name = options["model"] as string;
  const folder = modelFolder(name);
  const loaded = await loadAnyModel(host.files, folder);
  if (loaded.model.kind !== "vision-text") {
    throw new OptionError(
      `eval: a ${loaded.model.family} does not give pictures and texts vectors of one space — take a CLIP with both towers.`,
    );
  }
  const model = loaded.model as VisionTextModel;
  const found = await readPictures(host.files, data, { share: 0 });
  // A folder that has parts is judged by the one held out.
  const all = found.heldOut.length > 0 ? found.heldOut : found.train;
  const pictures = all.slice(0, (options["limit"] as number | undefined) ?? all.length);
  const given = options["labels"] as string | undefined;
  const labels = given === undefined ? found.labels : given.split(",").map((label) => label.trim());
  const { imageSize } = model.vision;
  const preprocessing =
    (await readPreprocessing(host.files, folder)) ?? defaultPreprocessing(model.family, imageSize);
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const started = host.clock.monotonic();
  let shown = 0;
  const scores = await scoreZeroShot(
    {
      ...{ files: host.files, images: await nodeImages(), model, params: loaded.params },
      ...{ tokenizer: await loadTokenizer(host.files, folder), preprocessing, backend },
    },
    pictures,
    labels,
    {
      ...(options["label-template"] !== undefined && {
        template: options["label-template"] as string,
      }),
      ...(options["top-k"] !== undefined && { k: options["top-k"] as number }),
      batchSize: options["batch-size"] as number,
      signal,
      onProgress: (done, count) => {
        const tenth = Math.floor((10 * done) / count);
        output.progress(`Judging: ${done} of ${count} pictures`, tenth > shown);
        shown = Math.max(shown, tenth);
      },
    },
  );
  const seconds = (host.clock.monotonic() - started) / 1000;
  const { confusion, classes, count, skipped, texts } = scores;
  for (const reason of skipped.slice(0, 5)) output.warn(reason);
  if (skipped.length > 0) {
    output.warn(`${skipped.length} of ${pictures.length} pictures could not be read.`);
  }
  const metrics = {
    accuracy: scores.accuracy,
    [`top${scores.k}`]: scores.topK,
    macroF1: scores.macroF1,
    loss: scores.loss,
  };
  output.line(`${name} on ${data}: ${count} pictures, ${showTime(seconds)}`);
  output.line(`${labels.length} classes, read as ${JSON.stringify(texts[0])} and so on`);
  output.line();
  output.table(
    [task, ""],
    Object.entries(metrics).map(([key, value]) => [key, showMeasure(value)]),
    ["left", "right"],
  );
  if (labels.length <= shownClasses) {
    output.line();
    output.line("Pictures of each class (rows) by answer (columns)");
    output.table(
      ["", ...labels],
      labels.map((label, i) => [label, ...confusion[i]!.map(String)]),
      ["left", ...labels.map(() => "right" as const)],
    );
  }
  output.json({
    ...{ model: name, task, data, examples: count, skipped: skipped.length, seconds, metrics },
    ...{ labels, texts, confusion },
    classes: Object.fromEntries(labels.map((label, i) => [label, classes[i]])),
  });
}
