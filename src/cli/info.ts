/** `plasticity info`: what is in a model, an adapter or a file. */
import type { Command, CommandContext } from "./command.ts";
import { ggufReport, onnxReport, safetensorsReport } from "./info/files.ts";
import { adapterReport, modelReport } from "./info/folders.ts";
import { print, type Report } from "./info/report.ts";
import { MissingError, OptionError, UnsupportedError } from "./library.ts";
import { modelFolder } from "./models.ts";

async function report({ host, options, positionals }: CommandContext): Promise<Report> {
  const { files } = host;
  const [name] = positionals;
  if (name === undefined) {
    throw new OptionError(
      'info: nothing named — give a folder or a file: plasticity info <path>, or "builtin".',
    );
  }
  const path = modelFolder(name);
  const found = await files.info(path);
  if (!found) throw new MissingError(`${path}: no such file or folder — check the path.`);
  const withTensors = options["tensors"] === true;
  if (found.isDirectory) {
    const has = async (file: string): Promise<boolean> =>
      (await files.info(files.join(path, file))) !== undefined;
    // A folder may hold both; an adapter's says more.
    if (await has("adapter_config.json")) {
      return adapterReport(files, path, options["model"] as string | undefined);
    }
    if (await has("config.json")) return modelReport(files, path, withTensors);
    throw new MissingError(
      `${path}: has neither config.json (a model) nor adapter_config.json (an adapter) — name such a folder, or one file.`,
    );
  }
  const file = await files.open(path);
  const start = new Uint8Array(Math.min(4, file.bytes));
  await file.read(start, 0);
  await file.close();
  if (String.fromCharCode(...start) === "GGUF") return ggufReport(files, path, withTensors);
  const ending = /\.([a-z0-9]+)$/i.exec(path)?.[1]?.toLowerCase();
  if (ending === "safetensors") return safetensorsReport(files, path, withTensors);
  if (ending === "onnx") return onnxReport(files, path, withTensors);
  if (ending === "gguf") return ggufReport(files, path, withTensors);
  throw new UnsupportedError(
    `${path}: its kind is not known by "${ending ?? "no ending"}" — known are .safetensors, .onnx and .gguf.`,
  );
}

export const infoCommand: Command = {
  name: "info",
  summary: "what is in a model, an adapter or a file",
  usage: "plasticity info <folder|file> [--tensors] [--model <folder>]",
  example: "plasticity info builtin",
  options: {
    tensors: { type: "flag", about: "list every tensor" },
    model: {
      type: "string",
      value: "folder",
      about: "for an adapter: a model to try whether it fits",
    },
  },
  maxPositionals: 1,
  run: async (context) => print(context.output, await report(context)),
};
