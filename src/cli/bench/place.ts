/** Where the programs of a comparison are: our worker in dist, peers in bench/peers. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Host, MissingError } from "../../index.ts";
import type { Place } from "./contest.ts";
import type { RealName, WeightsName } from "./plan.ts";
import { RealModel, realModelRemedy, realModelVariable } from "./real.ts";
import { writeWeights } from "./weights.ts";

/** The package's folder, from src/cli/bench as from dist/cli/bench. */
export const root: string = fileURLToPath(new URL("../../..", import.meta.url));

export const built: Readonly<Record<"main" | "library" | "worker", string>> = {
  main: join(root, "dist/cli/main.js"),
  library: join(root, "dist/bundle/index.js"),
  worker: join(root, "dist/cli/bench/worker.js"),
};

/** The interpreter of the Python peers. */
function findPython(host: Host, peers: string): string | undefined {
  const named = host.env("PLASTICITY_BENCH_PYTHON");
  if (named) return named;
  const own = join(peers, "py/.venv/bin/python");
  return existsSync(own) ? own : undefined;
}

/**
 * @param folder where weights files go
 * @param model the path of the real model; default what the environment names
 * @throws MissingError when the package is not built.
 */
export function placeOf(
  host: Host,
  folder: string,
  model: string | undefined = host.env(realModelVariable),
): Place {
  if (!existsSync(built.worker)) {
    throw new MissingError(`bench: ${built.worker} is not there — run "npm run build".`);
  }
  const peers = join(root, "bench/peers");
  const python = findPython(host, peers);
  const real = model ? new RealModel(host, model, join(folder, "smollm2")) : undefined;
  // Memory is read after a collection.
  const ours: Place["ours"] = (work, threads, weights) => [
    ...[process.execPath, "--expose-gc", built.worker, work, String(threads), weights],
  ];
  return {
    ours,
    theirs: (peer, threads, weights) => {
      if (peer.kind === "own") return ours(peer.work, threads, weights);
      const runtime = peer.kind === "npm" ? process.execPath : python;
      const script = join(peers, peer.script);
      if (runtime === undefined || !existsSync(script)) return undefined;
      return [runtime, script, peer.work, String(threads), weights];
    },
    weights: (name) => {
      if (name === "smollm2" && real) return real.weights();
      if (name === "smollm2-onnx" && real) return real.withOnnx();
      if (name === "smollm2-gguf" && real) return real.withGguf();
      return writeWeights(host, folder, name as Exclude<WeightsName, RealName>);
    },
    lacks: (name) => (name.startsWith("smollm2") && !real ? realModelRemedy : undefined),
  };
}
