export interface ServerOptions {
  /** Default: a free one. */
  readonly port?: number;
  /** Send the headers that shared memory, and thereby threads, ask for; default true. */
  readonly isolated?: boolean;
  /** More addresses and the folders that they show. */
  readonly roots?: Readonly<Record<string, string>>;
}

/** Starts a server on this machine alone. */
export function startServer(
  options?: ServerOptions,
): Promise<{ readonly url: string; close(): Promise<void> }>;
