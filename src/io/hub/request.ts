/**
 * Requests to the hub: redirects that never carry the token to another place, tries again where that may
 * help, and what goes wrong in a sentence. No sentence and no cause holds a token or an address's query,
 * which in the addresses of stores is a signature.
 */
import { FormatError, PlasticityError, StateError } from "../../errors.ts";
import type { Host } from "../../host/host.ts";
import { type HubSettings, isLoopback } from "./settings.ts";

export interface RequestOptions {
  readonly signal?: AbortSignal;
  /** Milliseconds before the second try, doubled before each further one; default 500. */
  readonly retryDelay?: number;
  /** Tries in all, without progress between them; default 5. */
  readonly tries?: number;
  /** Milliseconds without a byte after which a connection counts as dead; default 60 s. */
  readonly stallTimeout?: number;
}

export interface Patience {
  readonly retryDelay: number;
  readonly tries: number;
  readonly stallTimeout: number;
  readonly signal: AbortSignal | undefined;
}

export function patienceOf(options: RequestOptions): Patience {
  const { retryDelay = 500, tries = 5, stallTimeout = 60_000, signal } = options;
  return { retryDelay, tries, stallTimeout, signal };
}

/** What is worth another try: a busy server, a connection that broke. */
export class Transient extends Error {
  /** Milliseconds that the server asked to wait. */
  readonly wait: number;
  /** The sentence for the user when no try is left. */
  readonly last: PlasticityError;

  constructor(last: PlasticityError, wait = 0) {
    super(last.message);
    this.last = last;
    this.wait = wait;
  }
}

const maxRedirects = 8;
const maxWait = 30_000;

/** An address without what may be a signature. */
export function shown(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

/** Waits, unless the signal comes first. */
export function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const end = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal?.addEventListener("abort", end);
  });
}

/** The word of the system or of the client for a failed connection. */
function causeCode(error: unknown): string | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth++) {
    const code = (at as { code?: unknown }).code;
    if (typeof code === "string" && /^[A-Z0-9_]{3,40}$/.test(code)) return code;
    if (at instanceof AggregateError && at.errors.length > 0) return causeCode(at.errors[0]);
  }
  return undefined;
}

/** Connections that no second try makes better. */
const lasting =
  /^(?:ENOTFOUND|ECONNREFUSED|EAI_|ENETUNREACH|EHOSTUNREACH|CERT_|DEPTH_|SELF_|UNABLE_|ERR_TLS)/;

export class HubRequests {
  readonly settings: HubSettings;
  readonly #host: Host;

  constructor(host: Host, settings: HubSettings) {
    this.#host = host;
    this.settings = settings;
  }

  /** What to do where nothing answers; a proxy that the environment names may be the reason. */
  #advice(): string {
    const { env } = this.#host;
    const proxy = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].find((name) =>
      env(name),
    );
    return proxy === undefined
      ? "check the network, or set HF_HUB_OFFLINE=1 to use what the cache has"
      : `${proxy} is set: Node 24 (and 22.21) goes through a proxy with NODE_USE_ENV_PROXY=1, older ones do not; or set HF_HUB_OFFLINE=1 to use what the cache has`;
  }

  unreachable(url: URL, error: unknown): Transient | PlasticityError {
    const code = causeCode(error);
    const sentence = new StateError(
      `hub: ${url.origin} cannot be reached${code ? ` (${code})` : ""} — ${this.#advice()}.`,
      { url: shown(url), errno: code, unreachable: true },
    );
    return code !== undefined && lasting.test(code) ? sentence : new Transient(sentence);
  }

  /** The token, for addresses of the endpoint alone. */
  #authorization(url: URL): Record<string, string> {
    const { token, endpoint } = this.settings;
    if (token === undefined || url.origin !== endpoint.origin) return {};
    return { authorization: `Bearer ${token}` };
  }

  #checkRedirect(url: URL): void {
    if (url.username !== "" || url.password !== "") {
      throw new FormatError(
        `hub: ${this.settings.endpoint.origin} redirects to an address with a password in it, on ${url.host} — nothing is fetched from there.`,
      );
    }
    const isLocal = isLoopback(this.settings.endpoint) && isLoopback(url);
    if (url.protocol === "https:" || (url.protocol === "http:" && isLocal)) return;
    throw new FormatError(
      `hub: ${this.settings.endpoint.origin} redirects to ${url.protocol}//${url.host}, which is not https — nothing is fetched from there.`,
    );
  }

  async #once(
    start: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Response> {
    let url = start;
    for (let hops = 0; hops <= maxRedirects; hops++) {
      const ask = (redirect: RequestRedirect): Promise<Response> =>
        this.#host.fetch(url.href, {
          headers: { ...headers, "accept-encoding": "identity", ...this.#authorization(url) },
          redirect,
          signal,
          // A page sends no cookies along.
          credentials: "omit",
        });
      let response: Response;
      try {
        response = await ask("manual");
        // A page does not see where a redirect leads: it follows, and drops the token at another origin.
        if (response.type === "opaqueredirect") {
          response = await ask("follow");
          this.#checkRedirect(new URL(response.url));
        }
      } catch (error) {
        if (error instanceof PlasticityError) throw error;
        throw this.unreachable(url, error);
      }
      const location = response.headers.get("location");
      if (![301, 302, 303, 307, 308].includes(response.status) || location === null) {
        return response;
      }
      await response.body?.cancel().catch(() => undefined);
      let next: URL;
      try {
        next = new URL(location, url);
      } catch {
        throw new FormatError(`hub: ${shown(url)} redirects to no address — try again later.`);
      }
      this.#checkRedirect(next);
      url = next;
    }
    throw new FormatError(
      `hub: ${shown(start)} redirects more than ${maxRedirects} times — try again later.`,
    );
  }

  /**
   * One answer, good or not; follows redirects.
   * @throws Transient where another try may help.
   */
  async send(
    url: URL,
    headers: Readonly<Record<string, string>>,
    patience: Patience,
  ): Promise<Response> {
    const { signal, stallTimeout } = patience;
    const dead = new AbortController();
    const timer = setTimeout(() => dead.abort(), stallTimeout);
    let response: Response;
    try {
      response = await this.#once(
        url,
        headers,
        signal ? AbortSignal.any([signal, dead.signal]) : dead.signal,
      );
    } catch (error) {
      if (signal?.aborted) throw stopped();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    const { status } = response;
    if (status < 500 && status !== 408 && status !== 429) return response;
    await response.body?.cancel().catch(() => undefined);
    const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
    const wait = seconds > 0 ? Math.min(maxWait, seconds * 1000) : 0;
    throw new Transient(
      new StateError(
        status === 429
          ? `hub: ${url.origin} answers that there were too many requests (429) — wait some minutes, or set HF_TOKEN for a higher limit.`
          : `hub: ${shown(url)} answers ${status} — the hub has a fault, try again later; or set HF_HUB_OFFLINE=1 to use what the cache has.`,
        { url: shown(url), status, unreachable: status !== 429 },
      ),
      wait,
    );
  }

  /** Work that is tried again after failures that may pass. */
  async again<T>(patience: Patience, work: () => Promise<T>): Promise<T> {
    for (let tried = 1; ; tried++) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof Transient)) throw error;
        if (tried >= patience.tries) throw error.last;
        await pause(
          Math.max(error.wait, Math.min(maxWait, patience.retryDelay * 2 ** (tried - 1))),
          patience.signal,
        );
        if (patience.signal?.aborted) throw stopped();
      }
    }
  }
}

export function stopped(): StateError {
  return new StateError("hub: stopped — run it again, it goes on where it was.", { aborted: true });
}
