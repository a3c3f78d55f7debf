/** Who may ask, and how often. Keys are kept as hashes, and compared in a time that tells nothing of them. */
import { OptionError } from "../index.ts";
import { ApiError } from "./errors.ts";

const [shortest, longest] = [8, 512];
const maxKeys = 10_000;

/** Who asks. */
export interface Caller {
  /** The first digits of the key's hash: names it in logs without giving it away. */
  readonly id: string;
}

async function sha256(text: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
}

/** Whether two hashes are equal; looks at all bytes in any case. */
function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i % b.length]!;
  return difference === 0;
}

interface HashedKey {
  readonly hash: Uint8Array;
  readonly caller: Caller;
}

export class KeyRing {
  readonly #keys: readonly HashedKey[];

  private constructor(keys: readonly HashedKey[]) {
    this.#keys = keys;
  }

  /** @throws OptionError for keys that are too short, too long or too many. */
  static async of(keys: readonly string[]): Promise<KeyRing> {
    if (keys.length > maxKeys) {
      throw new OptionError(`keys: at most ${maxKeys} are taken, got ${keys.length}.`);
    }
    for (const [i, { length }] of keys.entries()) {
      if (length >= shortest && length <= longest) continue;
      throw new OptionError(
        `keys: key ${i + 1} has ${length} characters, a key must have ${shortest} to ${longest} — "openssl rand -hex 24" makes one.`,
      );
    }
    const hashed = await Promise.all(
      [...new Set(keys)].map(async (key) => {
        const hash = await sha256(key);
        const id = [...hash.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, "0"));
        return { hash, caller: { id: id.join("") } };
      }),
    );
    return new KeyRing(hashed);
  }

  /** Without keys everybody may ask. */
  get isOpen(): boolean {
    return this.#keys.length === 0;
  }

  /**
   * Who sends a header `Authorization: Bearer <key>`.
   * @throws ApiError 401 for no key or a wrong one.
   */
  async check(header: string | null | undefined): Promise<Caller> {
    if (this.isOpen) return { id: "" };
    const given = /^Bearer +(\S{1,512})$/i.exec(header ?? "")?.[1];
    if (given === undefined) {
      throw new ApiError(
        401,
        "You didn't provide an API key. You need to provide it in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        { headers: { "www-authenticate": "Bearer" } },
      );
    }
    const hash = await sha256(given);
    let found: Caller | undefined;
    for (const own of this.#keys) if (isEqual(own.hash, hash)) found = own.caller;
    if (found) return found;
    throw new ApiError(401, "Incorrect API key provided.", {
      code: "invalid_api_key",
      headers: { "www-authenticate": "Bearer" },
    });
  }
}

/** Keys of a text, one a line; empty lines and those that begin with # say nothing. */
export function keysIn(text: string): string[] {
  return text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
}

export interface CallerLimits {
  /** Requests of one key that are open at once. */
  readonly openPerKey: number;
  /** Requests of all that are open at once. */
  readonly open: number;
  /** Requests of one key in a minute; none: as many as it likes. */
  readonly perMinute?: number | undefined;
}

interface Count {
  open: number;
  /** Requests that may come at once; refilled as time goes. */
  tokens: number;
  at: number;
}

/** Holds callers to their limits. */
export class CallerCounts {
  readonly #limits: CallerLimits;
  readonly #counts: Map<string, Count> = new Map();
  #open = 0;

  constructor(limits: CallerLimits) {
    this.#limits = limits;
  }

  get open(): number {
    return this.#open;
  }

  /**
   * Counts a request in; what is given back counts it out.
   * @param now milliseconds
   * @throws ApiError 429 beyond a key's limits, 503 beyond the server's.
   */
  enter({ id }: Caller, now: number): () => void {
    const { open, openPerKey, perMinute } = this.#limits;
    if (this.#open >= open) {
      throw new ApiError(503, `The server answers ${open} requests at once — try again later.`, {
        type: "unavailable_error",
        code: "unavailable",
        headers: { "retry-after": "1" },
      });
    }
    let own = this.#counts.get(id);
    if (!own) {
      own = { open: 0, tokens: perMinute ?? 0, at: now };
      this.#counts.set(id, own);
    }
    if (own.open >= openPerKey) throw tooMany(`${openPerKey} requests at once`, 1);
    if (perMinute !== undefined) {
      own.tokens = Math.min(perMinute, own.tokens + ((now - own.at) / 60_000) * perMinute);
      own.at = now;
      if (own.tokens < 1) {
        throw tooMany(`${perMinute} requests a minute`, ((1 - own.tokens) / perMinute) * 60);
      }
      own.tokens--;
    }
    own.open++;
    this.#open++;
    let isIn = true;
    const count = own;
    return () => {
      if (!isIn) return;
      isIn = false;
      count.open--;
      this.#open--;
      // Of callers without a limit by time nothing is to be remembered.
      if (count.open === 0 && perMinute === undefined) this.#counts.delete(id);
    };
  }
}

function tooMany(limit: string, seconds: number): ApiError {
  return new ApiError(429, `Rate limit reached: this key may have ${limit}.`, {
    type: "rate_limit_error",
    code: "rate_limit_exceeded",
    headers: { "retry-after": String(Math.max(1, Math.ceil(seconds))) },
  });
}
