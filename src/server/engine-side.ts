/** The engine's own side: the model, its engine, grammars, vectors and adapters, behind plain messages. */

import {
  type ChatTool,
  defaultBackend,
  EmbedBatcher,
  EngineHost,
  type FromEngine,
  type Grammar,
  type Host,
  jsonGrammar,
  type LanguageModel,
  type LoadedAdapter,
  type LoraAdapter,
  type LoraBank,
  loadAdapter,
  loadAnyModel,
  loadModel,
  loadTokenizer,
  loraBank,
  type OrtBackend,
  readSentenceConfig,
  ServeEngine,
  type ServeOptions,
  type ServeRequest,
  schemaGrammar,
  TextEmbedder,
  TextStream,
  type ToEngine,
  type ToolChoice,
  type ToolFormat,
  toolGrammar,
  toWire,
  vocabularyOf,
  type WireError,
  type WireRequest,
} from "../index.ts";
import type { JsonValue } from "../io/json.ts";
import { encodeAsk, openTextSide, type TextSide } from "./prompt-text.ts";
import type { EncodeAsk } from "./served.ts";

/** What an answer is held to. */
export type JsonForm =
  | { readonly kind: "json" }
  | { readonly kind: "schema"; readonly schema: JsonValue; readonly isStrict: boolean };

export type AnswerForm =
  | JsonForm
  | {
      readonly kind: "tools";
      readonly tools: readonly ChatTool[];
      readonly format: ToolFormat;
      readonly choice: ToolChoice;
      readonly isParallel: boolean;
      /** What an answer is that calls nothing; default free text. */
      readonly content?: JsonForm;
    };

/** What a request carries beside what the engine knows. */
export interface RequestExtra {
  readonly form?: AnswerForm;
  readonly stop?: readonly string[];
}

/** What is served, and how. */
export interface EngineSettings {
  readonly model: string;
  /** A model for vectors; default: the model itself. */
  readonly embedModel: string | undefined;
  readonly threads: number | undefined;
  /** Adapters that are there from the start: name and folder. */
  readonly adapters: readonly (readonly [name: string, folder: string])[];
  /** Names of those that may be left out where they cannot be loaded. */
  readonly optional: readonly string[];
  /** Adapters at once, and their largest rank; 0 slots serve the base alone. */
  readonly slots: number;
  readonly maxRank: number;
  /** Layers that adapters may sit on, as `lora` takes them; those of the adapters named above are added. */
  readonly adapterTargets: readonly string[] | "all-linear";
  /** Bytes of the cache of keys and values. */
  readonly cacheBytes: number;
  readonly engine: Pick<
    ServeOptions,
    "running" | "runningPerKey" | "queued" | "queuedPerKey" | "prefillTokens"
  >;
}

/** What is known when the model is loaded. */
export interface EngineFacts {
  readonly maxLength: number;
  readonly vocabSize: number;
  /** Adapters that were left out, and why. */
  readonly left: readonly (readonly [name: string, why: string])[];
}

export type ToSide =
  | ToEngine
  | { readonly type: "ping"; readonly id: number }
  | { readonly type: "encode"; readonly id: number; readonly ask: EncodeAsk };

export type FromSide =
  | FromEngine
  | { readonly type: "ready"; readonly facts: EngineFacts }
  | {
      readonly type: "pong";
      readonly id: number;
      /** Bytes of memory that the engine's process holds. */
      readonly memory?: number;
    }
  | { readonly type: "encoded"; readonly id: number; readonly ids: Int32Array<ArrayBuffer> }
  | { readonly type: "refused"; readonly id: number; readonly error: WireError };

/** Grammars that are kept. */
const maxGrammars = 64;

/** Grammars by what they were made of: compiling one takes longer than a step. */
class Grammars {
  readonly #text: TextSide;
  readonly #known: Map<string, Grammar> = new Map();

  constructor(text: TextSide) {
    this.#text = text;
  }

  of(form: AnswerForm): Grammar | undefined {
    const key = JSON.stringify(form);
    const known = this.#known.get(key);
    if (known) this.#known.delete(key);
    const grammar = known ?? this.#make(form);
    if (!grammar) return undefined;
    this.#known.set(key, grammar);
    if (this.#known.size > maxGrammars) this.#known.delete(this.#known.keys().next().value!);
    return grammar;
  }

  #make(form: AnswerForm): Grammar | undefined {
    const vocabulary = vocabularyOf(this.#text.tokenizer, "response_format");
    switch (form.kind) {
      case "json":
        return jsonGrammar(vocabulary);
      case "schema":
        return schemaGrammar(form.schema, vocabulary, { lenient: !form.isStrict });
      case "tools": {
        const { tools, format, choice, isParallel, content } = form;
        return toolGrammar(tools, format, vocabulary, {
          ...{ choice, isParallel },
          ...(content && {
            content:
              content.kind === "json" ? {} : { schema: content.schema, lenient: !content.isStrict },
          }),
        });
      }
    }
  }
}

/** What a request's `extra` stands for. */
function prepareWith(
  text: TextSide,
): (extra: unknown, request: WireRequest) => Pick<ServeRequest, "constraint" | "isEnd"> {
  const grammars = new Grammars(text);
  return (extra, request) => {
    const { form, stop = [] } = extra as RequestExtra;
    const grammar = form && grammars.of(form);
    const stream =
      stop.length > 0
        ? new TextStream(text.tokenizer, { stop, context: request.prompt })
        : undefined;
    return {
      ...(grammar && { constraint: grammar.start() }),
      ...(stream && {
        isEnd: (token: number) => {
          stream.push(token);
          return stream.stop !== undefined;
        },
      }),
    };
  };
}

/** A bank whose slots hold the adapters that are there, and those on the layers that are named. */
function bankFor(
  model: LanguageModel,
  { slots, maxRank, adapterTargets }: EngineSettings,
  loaded: readonly LoadedAdapter[],
): LoraBank | undefined {
  if (slots === 0) return undefined;
  const layers = loaded.flatMap(({ adapter }) => [
    ...((adapter as Partial<LoraAdapter>).layers?.entries() ?? []),
  ]);
  const rank = Math.max(maxRank, ...layers.map(([, layer]) => layer.rank));
  const plain = loraBank(model, { slots, maxRank: rank, targetModules: adapterTargets });
  const targets = [...new Set([...plain.targets, ...layers.map(([path]) => path)])];
  if (targets.length === plain.targets.length) return plain;
  return loraBank(model, { slots, maxRank: rank, targetModules: targets });
}

/** Vectors of texts; the model for them is read when the first text comes. */
function embedderOf(host: Host, backend: OrtBackend, folder: string): Pick<EmbedBatcher, "embed"> {
  let opened: Promise<EmbedBatcher> | undefined;
  const open = async (): Promise<EmbedBatcher> => {
    const { model, params } = await loadAnyModel(host.files, folder);
    const tokenizer = await loadTokenizer(host.files, folder);
    const sentence = await readSentenceConfig(host.files, folder);
    const embedder = new TextEmbedder(model, params, tokenizer, backend, {
      ...(sentence && { sentence }),
      // The interface gives vectors of length 1.
      normalize: true,
    });
    return new EmbedBatcher(embedder, {
      // A turn of the event loop: callers of one moment share a batch.
      wait: () => new Promise((resolve) => setTimeout(resolve)),
    });
  };
  return {
    embed: async (texts, signal) => {
      opened ??= open();
      opened.catch(() => {
        opened = undefined;
      });
      return (await opened).embed(texts, signal);
    },
  };
}

export interface EngineSide {
  receive(message: ToSide): void;
  close(): Promise<void>;
}

/**
 * Loads model and adapters and answers messages from then on; `post` gets the answers, the first is "ready".
 * @param memory bytes that the process holds, where that is told
 * @throws as the model's loading and `ServeEngine.create`.
 */
export async function openEngineSide(
  host: Host,
  settings: EngineSettings,
  post: (message: FromSide) => void,
  memory?: () => number,
): Promise<EngineSide> {
  const { files, clock } = host;
  const text = await openTextSide(files, settings.model);
  const { model, params } = await loadModel(files, settings.model);
  const adapters: (readonly [string, LoadedAdapter])[] = [];
  const left: (readonly [string, string])[] = [];
  const orLeaveOut = async (name: string, work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      if (!settings.optional.includes(name)) throw error;
      left.push([name, error instanceof Error ? error.message : String(error)]);
    }
  };
  for (const [name, folder] of settings.adapters) {
    await orLeaveOut(name, async () => {
      adapters.push([name, await loadAdapter(files, folder, model)]);
    });
  }
  const bank = bankFor(
    model,
    settings,
    adapters.map(([, adapter]) => adapter),
  );
  const backend = await defaultBackend({
    ...(settings.threads !== undefined && { threads: settings.threads }),
    warn: (message) => host.log.warn(message),
  });
  const engine = await ServeEngine.create(model, params, backend, clock, {
    ...settings.engine,
    cache: { bytes: settings.cacheBytes },
    ...(bank && { bank }),
  });
  for (const [name, adapter] of adapters) {
    await orLeaveOut(name, async () => void engine.loadAdapter(name, adapter));
  }
  const side = new EngineHost(engine, post, {
    loadAdapter: (source) => loadAdapter(files, String(source), model),
    embedder: embedderOf(host, backend, settings.embedModel ?? settings.model),
    prepare: prepareWith(text),
  });
  post({
    type: "ready",
    facts: { maxLength: engine.maxLength, vocabSize: model.sizes.vocabSize, left },
  });
  return {
    receive: (message) => {
      if (message.type === "ping") {
        post({ type: "pong", id: message.id, ...(memory && { memory: memory() }) });
      } else if (message.type === "encode") {
        try {
          post({ type: "encoded", id: message.id, ids: encodeAsk(text, message.ask) });
        } catch (error) {
          post({ type: "refused", id: message.id, error: toWire(error) });
        }
      } else side.receive(message);
    },
    close: () => engine.close(),
  };
}
