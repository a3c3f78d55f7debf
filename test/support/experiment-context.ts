/** What an experiment is given, for tests of its parts. */
import type { Backend } from "../../src/backend/backend.ts";
import { reference } from "../../src/backend/reference/reference.ts";
import type {
  BaseRecord,
  Budget,
  DataRecord,
  ExperimentContext,
} from "../../src/experiments/experiment.ts";
import { nodeHost } from "../../src/host/node.ts";
import type { Packages } from "../../src/host/packages.ts";

export function contextOf(options: {
  readonly budget: Budget;
  readonly fetch: Packages["fetch"];
  readonly backend?: Backend;
  readonly folder?: string;
  readonly signal?: AbortSignal;
}): {
  readonly context: ExperimentContext;
  readonly records: DataRecord[];
  readonly bases: BaseRecord[];
} {
  const { budget, fetch, backend = reference(), folder = "" } = options;
  const records: DataRecord[] = [];
  const bases: BaseRecord[] = [];
  return {
    records,
    bases,
    context: {
      host: nodeHost(),
      backend,
      budget,
      packages: { cacheFolder: folder, fetch, cached: async () => undefined },
      signal: options.signal ?? new AbortController().signal,
      progress: () => {},
      recordData: (record) => void records.push(record),
      recordBase: (record) => void bases.push(record),
      remember: (_, make) => make(),
      basesFolder: folder,
    },
  };
}
