/** Which adapters are served under which names. */
import { OptionError } from "../index.ts";
import type { ModelBody } from "./api-types.ts";
import type { ServedEngine } from "./served.ts";

export interface ServedAdapter {
  readonly name: string;
  readonly folder: string;
  /** What is told of where it came from: no path of this machine. */
  readonly source: string;
  /** Seconds since the epoch. */
  readonly created: number;
}

/** What a request's `model` stands for. */
export interface Target {
  /** None: the base model. */
  readonly adapter: string | undefined;
}

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;

/** @throws OptionError for a name that is none. */
export function checkName(name: string): string {
  if (namePattern.test(name) && !name.includes("..")) return name;
  throw new OptionError(
    `name must be 1 to 128 letters, digits, ".", "_", "-" and ":", the first a letter or digit, got ${JSON.stringify(name.slice(0, 140))}.`,
  );
}

export class AdapterTable {
  /** The base model's own name. */
  readonly base: string;
  readonly created: number;
  readonly #engine: ServedEngine;
  readonly #adapters: Map<string, ServedAdapter>;
  readonly #loading: Set<string> = new Set();

  /** @param loaded adapters that the engine has already */
  constructor(
    base: string,
    engine: ServedEngine,
    created: number,
    loaded: readonly ServedAdapter[] = [],
  ) {
    this.base = base;
    this.#engine = engine;
    this.created = created;
    this.#adapters = new Map(loaded.map((adapter) => [adapter.name, adapter]));
  }

  get list(): readonly ServedAdapter[] {
    return [...this.#adapters.values()];
  }

  get(name: string): ServedAdapter | undefined {
    return this.#adapters.get(this.#own(name));
  }

  /** `base:adapter` and `adapter` are the same one. */
  #own(name: string): string {
    if (this.#adapters.has(name)) return name;
    return name.startsWith(`${this.base}:`) ? name.slice(this.base.length + 1) : name;
  }

  /** What a name stands for; undefined for one that is nobody's. */
  resolve(name: string): Target | undefined {
    if (name === this.base) return { adapter: undefined };
    const adapter = this.get(name);
    return adapter && { adapter: adapter.name };
  }

  /**
   * Loads a folder's adapter under a name.
   * @throws OptionError for a name that is none or taken; as the engine for a folder that does not fit.
   */
  async load(adapter: ServedAdapter): Promise<void> {
    const { name } = adapter;
    checkName(name);
    if (name === this.base || this.#adapters.has(name)) {
      throw new OptionError(`the name "${name}" is taken — unload it, or choose another one.`);
    }
    // Nobody else takes the name while it is loaded; nobody can ask for it before it is there.
    if (this.#loading.has(name)) throw new OptionError(`"${name}" is being loaded.`);
    this.#loading.add(name);
    try {
      await this.#engine.loadAdapter(name, adapter.folder);
      this.#adapters.set(name, adapter);
    } finally {
      this.#loading.delete(name);
    }
  }

  /** The engine has lost an adapter. */
  drop(name: string): void {
    this.#adapters.delete(name);
  }

  /** Takes an adapter away: no request can name it from now on; false for a name that is nobody's. */
  async unload(name: string): Promise<boolean> {
    const own = this.#own(name);
    if (!this.#adapters.delete(own)) return false;
    await this.#engine.unloadAdapter(own);
    return true;
  }

  /** As `/v1/models` lists them, the base first. */
  get models(): readonly ModelBody[] {
    const { maxLength } = this.#engine;
    const more = maxLength > 0 ? { max_model_len: maxLength } : {};
    return [
      { id: this.base, object: "model", created: this.created, owned_by: "plasticity", ...more },
      ...this.list.map(
        ({ name, created }): ModelBody => ({
          id: name.startsWith("ft:") ? name : `${this.base}:${name}`,
          object: "model",
          created,
          owned_by: "plasticity",
          parent: this.base,
          ...more,
        }),
      ),
    ];
  }
}
