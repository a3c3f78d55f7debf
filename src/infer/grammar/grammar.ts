/** Grammars over a vocabulary, and the constraints that they give texts. */
import { StateError } from "../../errors.ts";
import type { JsonValue } from "../../io/json.ts";
import type { TokenConstraint } from "../constraint.ts";
import { JsonRules, type JsonTextOptions } from "./json-rules.ts";
import { afterByte, beforeKeys, type KeyState, withoutRepeats } from "./keys.ts";
import { Machine, type Rule, type State } from "./machine.ts";
import { Masks } from "./masks.ts";
import { ruleOfSchema } from "./schema-rules.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** What texts may be; made once, then it gives as many constraints as there are texts. */
export class Grammar {
  readonly vocabulary: Vocabulary;
  /** Places of a schema whose keywords are not held to: see `JsonTextOptions.lenient`. */
  readonly unchecked: readonly string[];
  readonly #machine: Machine;
  readonly #masks: Masks;
  readonly #hasOpenKeys: boolean;

  /** @param json where the rule was made; it is finished here */
  constructor(json: JsonRules, start: Rule, vocabulary: Vocabulary) {
    json.rules.finish(start, json.why);
    this.vocabulary = vocabulary;
    this.unchecked = json.unchecked.slice();
    this.#machine = new Machine(start, json.maxDepth);
    this.#masks = new Masks(this.#machine, vocabulary);
    this.#hasOpenKeys = json.hasOpenKeys;
  }

  /** The constraint of one text, before its first token. */
  start(): TokenConstraint {
    return new GrammarConstraint(
      this.#machine,
      this.#masks,
      this.vocabulary,
      this.#machine.start(),
      this.#hasOpenKeys ? beforeKeys : undefined,
    );
  }

  /**
   * Whether a text is one of the grammar's, special tokens aside.
   * @param text in UTF-8
   */
  accepts(text: string): boolean {
    let state: State | undefined = this.#machine.start();
    let keys: KeyState | undefined = beforeKeys;
    for (const byte of new TextEncoder().encode(text)) {
      state = this.#machine.step(state, byte);
      if (!state) return false;
      if (!this.#hasOpenKeys) continue;
      keys = state.isFree ? beforeKeys : afterByte(keys, byte);
      if (!keys) return false;
    }
    return state.isComplete;
  }
}

class GrammarConstraint implements TokenConstraint {
  readonly #machine: Machine;
  readonly #masks: Masks;
  readonly #vocabulary: Vocabulary;
  #state: State;
  /** The keys of open objects, where they are not all named. */
  #keys: KeyState | undefined;

  constructor(
    machine: Machine,
    masks: Masks,
    vocabulary: Vocabulary,
    state: State,
    keys: KeyState | undefined,
  ) {
    this.#machine = machine;
    this.#masks = masks;
    this.#vocabulary = vocabulary;
    this.#state = state;
    this.#keys = keys;
  }

  allowed(): Uint32Array {
    const own = this.#masks.of(this.#state);
    return this.#keys ? withoutRepeats(this.#keys, this.#vocabulary, own) : own;
  }

  accept(token: number): void {
    const symbols = this.#vocabulary.symbolsOf(token);
    let state: State | undefined = this.#state;
    let keys = this.#keys;
    for (const symbol of symbols ?? []) {
      state = this.#machine.step(state, symbol);
      if (!state) break;
      // A repeated key that had to end is let go: what follows is still the grammar's.
      if (keys) keys = state.isFree ? beforeKeys : (afterByte(keys, symbol) ?? keys);
    }
    if (!symbols || !state) {
      throw new StateError(`constraint: token ${token} may not come here — take one of the mask.`);
    }
    this.#state = state;
    this.#keys = keys;
  }

  isComplete(): boolean {
    return this.#state.isComplete;
  }

  get isFinished(): boolean {
    return this.#state.isFinished;
  }

  clone(): TokenConstraint {
    return new GrammarConstraint(
      this.#machine,
      this.#masks,
      this.#vocabulary,
      this.#state,
      this.#keys,
    );
  }
}

/** Grammars that were asked for last, by what they are of: requests come with the same schema again and again. */
const recent: WeakMap<Vocabulary, Map<string, Grammar>> = new WeakMap();
const maxRecent = 8;
const maxKey = 2 ** 17;

function remembered(vocabulary: Vocabulary, key: string, make: () => Grammar): Grammar {
  let own = recent.get(vocabulary);
  if (!own) {
    own = new Map();
    recent.set(vocabulary, own);
  }
  const grammar = own.get(key) ?? make();
  own.delete(key);
  if (key.length <= maxKey) own.set(key, grammar);
  if (own.size > maxRecent) own.delete(own.keys().next().value!);
  return grammar;
}

/**
 * JSON text that fits a schema; its keywords and limits are listed in the guide "Structured output". The grammars
 * of the last few schemas are kept.
 * @param schema as it was parsed; the order of its properties is that of the text
 * @throws OptionError naming the place in the schema that cannot be held to, or that nothing fits.
 */
export function schemaGrammar(
  schema: JsonValue,
  vocabulary: Vocabulary,
  options: JsonTextOptions = {},
): Grammar {
  return remembered(vocabulary, JSON.stringify(["schema", options, schema]), () => {
    const json = new JsonRules("json schema", options);
    return new Grammar(json, ruleOfSchema(json, schema), vocabulary);
  });
}

/** Any JSON object (`json_object` of the OpenAI interface). */
export function jsonGrammar(vocabulary: Vocabulary, options: JsonTextOptions = {}): Grammar {
  return remembered(vocabulary, JSON.stringify(["object", options]), () => {
    const json = new JsonRules("json object", options);
    return new Grammar(json, json.object(), vocabulary);
  });
}
