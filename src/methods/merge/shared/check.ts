/** Trying a merge that is written and has no config.json yet. */

import type { Backend } from "../../../backend/backend.ts";
import { StateError } from "../../../errors.ts";
import type { Files } from "../../../host/host.ts";
import { mergeTolerance } from "../../../infer/merge-adapter.ts";
import { loadAnyModel } from "../../../models/folder.ts";
import type { MergeRole } from "../../method.ts";
import type { MergePlan } from "./plan.ts";
import { type ModelDifference, probeMerge } from "./probe.ts";
import { memoryOf } from "./size.ts";
import type { Source } from "./source.ts";

/** Files in which one more is there, though it is not written yet. */
function withText(files: Files, path: string, text: string): Files {
  const bytes = new TextEncoder().encode(text);
  return {
    ...files,
    info: async (asked) =>
      asked === path ? { path, bytes: bytes.length, isDirectory: false } : files.info(asked),
    readBytes: async (asked, limit) =>
      asked === path ? bytes.slice() : files.readBytes(asked, limit),
    readText: async (asked, limit) => (asked === path ? text : files.readText(asked, limit)),
  };
}

interface CheckOptions {
  readonly backend?: Backend;
  readonly probeBytes?: number;
  readonly areInputsEqual: boolean;
  readonly onProgress?: (progress: {
    readonly phase: "trying";
    readonly done: number;
    readonly total: number;
    readonly name: string;
  }) => void;
}

const names = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;

/**
 * Loads the merged model strictly, runs it and every model that was merged.
 * @param text the contents of its config.json
 * @throws StateError when it gives numbers that are not finite, or others than models that are all the same.
 */
export async function probeMerged(
  files: Files,
  plan: MergePlan,
  sources: readonly Source[],
  out: string,
  text: string,
  options: CheckOptions,
): Promise<{ readonly outputs: readonly ModelDifference[]; readonly notTried?: string }> {
  const { backend, probeBytes = Infinity, areInputsEqual, onProgress = () => {} } = options;
  const home = sources[plan.home];
  const skip = (notTried: string): { outputs: []; notTried: string } => ({ outputs: [], notTried });
  if (!backend) return skip("no engine was given");
  if (!home.model) {
    return skip(
      `the architecture ${JSON.stringify(home.config["model_type"] ?? null)} is not known here`,
    );
  }
  const needed = memoryOf.probe(home.model);
  if (needed > probeBytes) {
    const gb = (bytes: number): string => `${(bytes / 1e9).toPrecision(3)} GB`;
    return skip(`it takes about ${gb(needed)} of memory, and ${gb(probeBytes)} may be taken`);
  }
  const { id } = plan.method;
  const total = sources.length + 1;
  onProgress({ phase: "trying", done: 0, total, name: "the merged model" });
  const open = () => loadAnyModel(withText(files, files.join(out, "config.json"), text), out);
  let done = 0;
  const outputs = await probeMerge(files, backend, open, sources, id, (name) =>
    onProgress({ phase: "trying", done: ++done, total, name }),
  );
  if (!areInputsEqual) return { outputs };
  const types = plan.tensors.map(({ dtype }) => names[dtype as keyof typeof names]);
  const known = types.filter((type) => type !== undefined);
  const allowed = Math.max(mergeTolerance.float32, ...known.map((type) => mergeTolerance[type]));
  const far = outputs.find(({ maxRelative }) => !(maxRelative <= allowed));
  const role = plan.method.roles.merge! as MergeRole<object>;
  const isKept = plan.tensors.every(
    ({ isCopied, options: own }) => isCopied || (role.keepsEqual?.(own) ?? true),
  );
  if (far && isKept) {
    throw new StateError(
      `${id}: all models are the same, and the merged one gives other outputs than "${far.model}": relative difference ${far.maxRelative.toPrecision(3)}, allowed is ${allowed} — nothing was kept.`,
      { difference: far },
    );
  }
  return { outputs };
}
