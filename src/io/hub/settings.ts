/** Where the hub and the cache are, as the environment says it: the variables of huggingface_hub. */
import { OptionError } from "../../errors.ts";
import type { Files, Host } from "../../host/host.ts";

export interface HubOptions {
  /** Default: HF_ENDPOINT, else https://huggingface.co. */
  readonly endpoint?: string;
  /** Default: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub. */
  readonly cacheDir?: string;
  /** Default: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file of `hf auth login`; "" for none. */
  readonly token?: string;
  /** Take everything from the cache. Default: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE. */
  readonly offline?: boolean;
}

export interface HubSettings {
  readonly endpoint: URL;
  readonly cacheDir: string;
  readonly token: string | undefined;
  readonly isOffline: boolean;
}

type Env = Host["env"];

export const defaultEndpoint = "https://huggingface.co";

const given = (env: Env, name: string): string | undefined => env(name) || undefined;

function isTrue(value: string | undefined): boolean {
  return value !== undefined && ["1", "ON", "YES", "TRUE"].includes(value.toUpperCase());
}

/** `~` at the start is the home folder. */
function expanded(env: Env, path: string): string {
  const home = given(env, "HOME") ?? given(env, "USERPROFILE");
  return home !== undefined && /^~(?=$|[/\\])/.test(path) ? home + path.slice(1) : path;
}

function hfHome(env: Env, join: Files["join"]): string {
  const named = given(env, "HF_HOME");
  if (named !== undefined) return expanded(env, named);
  const cache = given(env, "XDG_CACHE_HOME");
  if (cache !== undefined) return join(expanded(env, cache), "huggingface");
  const home = given(env, "HOME") ?? given(env, "USERPROFILE");
  // A page has no home: its files begin at their root.
  return home === undefined ? "huggingface" : join(home, ".cache", "huggingface");
}

/** The folder of the cache that other libraries share. */
export function hubCacheDir(env: Env, join: Files["join"]): string {
  const named = given(env, "HF_HUB_CACHE") ?? given(env, "HUGGINGFACE_HUB_CACHE");
  return named === undefined ? join(hfHome(env, join), "hub") : expanded(env, named);
}

export function isLoopback(url: URL): boolean {
  return /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(url.hostname);
}

/** @throws OptionError where it is no address, holds a password, or travels in the open. */
function readEndpoint(text: string): URL {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new OptionError(
      `HF_ENDPOINT: not an address — give one as ${defaultEndpoint}, or unset it.`,
    );
  }
  // Not shown: what is wrong may be a password.
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") {
    throw new OptionError(
      `HF_ENDPOINT: ${url.host} is given with a password or a query — give the address alone, and the token in HF_TOKEN.`,
    );
  }
  if (url.protocol !== "https:" && !(url.protocol === "http:" && isLoopback(url))) {
    throw new OptionError(
      `HF_ENDPOINT: ${url.protocol}//${url.host} must be an https address — http is for this machine alone.`,
    );
  }
  url.pathname = url.pathname.replace(/\/+$/, "");
  return url;
}

function checkToken(token: string, where: string): string | undefined {
  const text = token.trim();
  if (text === "") return undefined;
  // A header's own error would show the value.
  if (/^[\x21-\x7e]{1,1000}$/.test(text)) return text;
  throw new OptionError(
    `${where}: holds ${text.length} characters that are no token — copy it again from ${defaultEndpoint}/settings/tokens.`,
  );
}

async function readToken(host: Host): Promise<string | undefined> {
  const { env, files } = host;
  if (isTrue(env("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return undefined;
  for (const name of ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
    const token = checkToken(env(name) ?? "", name);
    if (token !== undefined) return token;
  }
  const named = given(env, "HF_TOKEN_PATH");
  const path =
    named === undefined ? files.join(hfHome(env, files.join), "token") : expanded(env, named);
  const found = await files.info(path);
  if (!found || found.isDirectory) return undefined;
  return checkToken(await files.readText(path, 4096), path);
}

/** @throws OptionError naming the variable that cannot be used; a token's value is in no sentence. */
export async function hubSettings(host: Host, options: HubOptions = {}): Promise<HubSettings> {
  const { env, files } = host;
  return {
    endpoint: readEndpoint(options.endpoint ?? given(env, "HF_ENDPOINT") ?? defaultEndpoint),
    cacheDir: options.cacheDir ?? hubCacheDir(env, files.join),
    token:
      options.token === undefined ? await readToken(host) : checkToken(options.token, "hub: token"),
    isOffline:
      options.offline ?? isTrue(env("HF_HUB_OFFLINE") || env("TRANSFORMERS_OFFLINE") || undefined),
  };
}
