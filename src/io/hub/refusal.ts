/** What the hub refuses, in sentences. */
import { MissingError, type PlasticityError, StateError } from "../../errors.ts";
import type { HubSettings } from "./settings.ts";

/**
 * The error for an answer that is none of 2xx, told by the hub's own code where it has one.
 * @param what the answer is about; no sentence holds the token
 */
export function refusal(
  response: Response,
  what: { readonly repo: string; readonly revision: string; readonly file?: string },
  settings: HubSettings,
): PlasticityError {
  const { status, headers } = response;
  const { repo, revision, file } = what;
  const { endpoint, token } = settings;
  const page = `${endpoint.href.replace(/\/$/, "")}/${repo}`;
  const code = headers.get("x-error-code");
  const text = headers.get("x-error-message") ?? "";
  const details = { repo, revision, file, status };
  if (code === "GatedRepo") {
    return new StateError(
      token === undefined
        ? `hub: ${repo} is gated — accept its terms at ${page}, then set HF_TOKEN to a token of that account.`
        : `hub: ${repo} is gated, and the account of this token has no access — accept its terms at ${page}, and see that the token may read gated repositories.`,
      details,
    );
  }
  if (/credentials in authorization header/i.test(text) && token !== undefined) {
    return new StateError(
      `hub: ${endpoint.origin} does not accept the token — make another one and set HF_TOKEN.`,
      details,
    );
  }
  if (/access to this resource is disabled/i.test(text)) {
    return new StateError(`hub: ${endpoint.origin} has disabled ${repo} — see ${page}.`, details);
  }
  if (code === "RevisionNotFound") {
    return new MissingError(
      `hub: ${repo} has no revision "${revision}" — see ${page}/tree/main for its branches and tags.`,
      details,
    );
  }
  if (code === "EntryNotFound" || (status === 404 && file !== undefined)) {
    return new MissingError(
      `hub: ${repo} has no file "${file}" at revision "${revision}" — see ${page}/tree/${revision}.`,
      details,
    );
  }
  if (status === 407) {
    return new StateError(
      "hub: the proxy asks for a name and a password (407) — put them into HTTPS_PROXY.",
      details,
    );
  }
  if (status === 401 || status === 404 || code === "RepoNotFound") {
    return new MissingError(
      `hub: there is no repository "${repo}" at ${endpoint.origin}, or it is private — check the name; ${token === undefined ? "for a private one set HF_TOKEN" : "for a private one see that the token may read it"}.`,
      details,
    );
  }
  if (status === 403) {
    return new StateError(
      `hub: ${endpoint.origin} refuses ${repo} (403) — see ${page}, and what the token may read.`,
      details,
    );
  }
  return new StateError(
    `hub: ${endpoint.origin} answers ${status} for ${repo} — is HF_ENDPOINT a hub?`,
    details,
  );
}
