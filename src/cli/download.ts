/** `plasticity download`: a model or an adapter from the hub into the shared cache. */
import type { Command, CommandContext } from "./command.ts";
import {
  type DownloadedModel,
  type DownloadOptions,
  type DownloadProgress,
  downloadModel,
  type Host,
  OptionError,
} from "./library.ts";
import { type Output, showBytes, showTime } from "./output.ts";

const barCells = 24;

/** `org/name  ████░░  45 %  240 MB of 538 MB  12.0 MB/s  0:25 left` */
export function progressLine(
  name: string,
  { received, total, transferred }: Omit<DownloadProgress, "file">,
  seconds: number,
): string {
  const share = total === 0 ? 1 : Math.min(1, Math.max(0, received / total));
  const full = Math.round(share * barCells);
  const rate = seconds > 0 ? transferred / seconds : 0;
  return [
    name,
    "█".repeat(full) + "░".repeat(barCells - full),
    `${Math.floor(100 * share)} %`,
    `${showBytes(received)} of ${showBytes(total)}`,
    ...(rate > 0
      ? [`${showBytes(rate)}/s`, `${showTime(Math.max(0, total - received) / rate)} left`]
      : []),
  ].join("  ");
}

/** Fetches with a progress line on a terminal, elsewhere a line per quarter. */
export async function downloadShown(
  host: Host,
  output: Output,
  name: string,
  options: DownloadOptions,
): Promise<DownloadedModel> {
  const { monotonic } = host.clock;
  const started = monotonic();
  let [drawn, quarter] = [Number.NEGATIVE_INFINITY, 0];
  const found = await downloadModel(host, name, {
    ...options,
    onProgress: (progress) => {
      const now = monotonic();
      const at = Math.floor((4 * progress.received) / Math.max(1, progress.total));
      const isMilestone = at > quarter;
      if (!isMilestone && now - drawn < 100) return;
      [drawn, quarter] = [now, Math.max(quarter, at)];
      output.progress(progressLine(name, progress, (now - started) / 1000), isMilestone);
    },
  });
  return found;
}

async function run({ host, output, options, positionals, signal }: CommandContext): Promise<void> {
  const [name] = positionals;
  if (name === undefined) {
    throw new OptionError(
      "download: nothing named — give a name on the hub: plasticity download org/name.",
    );
  }
  const { revision, file, offline } = options as {
    revision?: string;
    file?: readonly string[];
    offline?: true;
  };
  const cacheDir = options["cache-dir"] as string | undefined;
  const found = await downloadShown(host, output, name, {
    signal,
    ...(revision !== undefined && { revision }),
    ...(file !== undefined && { files: file }),
    ...(cacheDir !== undefined && { cacheDir }),
    ...(offline && { offline }),
  });
  output.json(found);
  output.table(
    ["file", "size", ""],
    found.files.map(({ path, bytes, cached }) => [
      path,
      showBytes(bytes),
      cached ? "was there" : "fetched",
    ]),
    ["left", "right"],
  );
  output.line();
  output.line(`${found.repo} at ${found.commit}`);
  output.line(found.path);
}

export const downloadCommand: Command = {
  name: "download",
  summary: "fetch a model or an adapter from the hub",
  usage: "plasticity download <org/name[@revision][:file.gguf]> [--file <path>] [--offline]",
  example: "plasticity download HuggingFaceTB/SmolLM2-135M-Instruct",
  maxPositionals: 1,
  options: {
    revision: { type: "string", about: "a branch, a tag or a commit (default main)" },
    file: {
      type: "string",
      value: "path",
      many: true,
      about: "only this file of the repository (default: what a model or an adapter needs)",
    },
    "cache-dir": {
      type: "string",
      value: "folder",
      about: "another cache than that of HF_HUB_CACHE and HF_HOME",
    },
    offline: { type: "flag", about: "ask nothing of the hub: only say what the cache has" },
  },
  run,
};
