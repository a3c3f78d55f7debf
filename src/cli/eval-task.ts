/** `plasticity eval --task`: measures of a model that was trained for a task. */
import { nodeImages } from "../host/node-images.ts";
import type { CommandContext } from "./command.ts";
import {
  type AnyTaskKind,
  headedModel,
  type LoadedAdapter,
  loadAdapter,
  loadAnyModel,
  loadTokenizer,
  OptionError,
  type PretrainedModel,
  Rng,
  readSentenceConfig,
  readTaskFile,
  type TensorRecord,
  taskTrainee,
  type VisionModel,
  withLabels,
} from "./library.ts";
import { modelFolder, openBackend } from "./models.ts";
import { showTime } from "./output.ts";
import { showMeasure, taskSettings } from "./task-options.ts";

interface Opened {
  readonly model: PretrainedModel;
  readonly params: TensorRecord;
  readonly adapter: LoadedAdapter | undefined;
}

/** The model, with the head that the adapter's folder describes where the model has none. */
async function open({ host, options }: CommandContext, path: string): Promise<Opened> {
  const loaded = await loadAnyModel(host.files, path);
  const folder = options["adapter"] as string | undefined;
  if (folder === undefined) return { ...loaded, adapter: undefined };
  const hasHead = (await host.files.info(host.files.join(folder, "task.json"))) !== undefined;
  const { model, params } = hasHead
    ? headed(loaded.model, loaded.params, await readTaskFile(host.files, folder))
    : loaded;
  return { model, params, adapter: await loadAdapter(host.files, folder, model) };
}

function headed(
  model: PretrainedModel,
  params: TensorRecord,
  head: Awaited<ReturnType<typeof readTaskFile>>,
): { model: PretrainedModel; params: TensorRecord } {
  const rng = new Rng(0);
  return model.kind === "vision"
    ? withLabels(model as VisionModel, params, head.labels, rng)
    : headedModel(model, params, head, rng);
}

export async function evalTask(kind: AnyTaskKind, context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const data = options["data"] as string | undefined;
  if (data === undefined) {
    throw new OptionError(`eval: --data is missing — ${kind.name} reads ${kind.data}.`);
  }
  const name = options["model"] as string;
  const path = modelFolder(name);
  const { model, params, adapter } = await open(context, path);
  const tokenizer = kind.reads === "pictures" ? undefined : await loadTokenizer(host.files, path);
  const sentence = await readSentenceConfig(host.files, path);
  const taken = {
    ...taskSettings(options, new Rng(0), sentence),
    judgeOnly: true,
    folder: path,
  };
  const opened = { model, params };
  const task =
    kind.reads === "pictures"
      ? await kind.open(host.files, opened, await nodeImages(), data, taken)
      : await kind.open(host.files, opened, tokenizer!, data, taken);
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const started = host.clock.monotonic();
  output.progress("Judging");
  const metrics = await task.measure(taskTrainee(task, adapter), backend, {
    batchSize: options["batch-size"] as number,
    signal,
  });
  const seconds = (host.clock.monotonic() - started) / 1000;
  if (task.cut > 0)
    output.warn(`${task.cut} texts were cut to ${String(options["max-length"] ?? 256)} tokens.`);
  output.line(`${name} on ${data}: ${task.heldOut.count} examples, ${showTime(seconds)}`);
  output.line();
  output.table(
    [kind.name, ""],
    Object.entries(metrics).map(([key, value]) => [key, showMeasure(value)]),
    ["left", "right"],
  );
  output.json({
    model: name,
    task: kind.name,
    data,
    examples: task.heldOut.count,
    seconds,
    metrics,
  });
}
