/**
 * What the outside world offers. Nothing below `cli` and `server` touches files, network, clock,
 * environment or console except through the Host it was given.
 */
export interface FileInfo {
  readonly path: string;
  readonly bytes: number;
  readonly isDirectory: boolean;
}

/** An open file for positional reads. */
export interface OpenFile {
  readonly path: string;
  readonly bytes: number;
  /** Fills `into` from `offset`; fails when the file ends before. */
  read(into: Uint8Array, offset: number): Promise<void>;
  close(): Promise<void>;
}

/** A file being written beside its final name: `commit` syncs and renames, `abort` removes. */
export interface FileWriter {
  write(bytes: Uint8Array): Promise<void>;
  commit(): Promise<void>;
  abort(): Promise<void>;
}

/** Held by one process; it is free again after `release`, or when the process is gone. */
export interface FileLock {
  release(): Promise<void>;
}

export interface Files {
  /** `undefined` where nothing is there. */
  info(path: string): Promise<FileInfo | undefined>;
  list(path: string): Promise<readonly FileInfo[]>;
  open(path: string): Promise<OpenFile>;
  /** Lines or bytes in order, a chunk at a time. */
  stream(path: string): AsyncIterable<Uint8Array>;
  readBytes(path: string, limit?: number): Promise<Uint8Array<ArrayBuffer>>;
  readText(path: string, limit?: number): Promise<string>;
  /** Writes to a temporary file, syncs, renames. */
  writeText(path: string, text: string): Promise<void>;
  writeBytes(path: string, bytes: Uint8Array): Promise<void>;
  /** Appends; for logs alone. */
  append(path: string, content: string | Uint8Array): Promise<void>;
  create(path: string): Promise<FileWriter>;
  makeDirectory(path: string): Promise<void>;
  remove(path: string): Promise<void>;
  /** Takes the lock of that name; fails, and names the holder, while another one has it. */
  lock(path: string): Promise<FileLock>;
  join(...parts: readonly string[]): string;
}

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  /** Milliseconds from an arbitrary start; never goes back. */
  monotonic(): number;
}

export interface Log {
  info(message: string): void;
  warn(message: string): void;
}

export interface Host {
  readonly files: Files;
  readonly clock: Clock;
  readonly env: (name: string) => string | undefined;
  readonly fetch: typeof globalThis.fetch;
  readonly log: Log;
}
