/** What a model writes where it may call tools, taken apart as it comes: text, and calls piece by piece. */
import type { Rng } from "../tensor/rng.ts";
import type { ToolFormat } from "./tool-calls.ts";

/** A piece of an answer; joined in order they are the whole. */
export type AnswerDelta =
  | { readonly kind: "text"; readonly text: string }
  /** A call begins. */
  | { readonly kind: "call"; readonly index: number; readonly id: string; readonly name: string }
  /** More of a call's arguments, as JSON text. */
  | { readonly kind: "arguments"; readonly index: number; readonly text: string };

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/** Ids of calls: `call_` and 24 letters and digits, or as many as a format asks for. */
export function callIds(format: ToolFormat, rng: Rng): () => string {
  const { idLength } = format;
  return () => {
    let id = idLength === undefined ? "call_" : "";
    for (let i = 0; i < (idLength ?? 24); i++) {
      id += letters[Math.min(letters.length - 1, Math.floor(rng.uniform() * letters.length))]!;
    }
    return id;
  };
}

/** What of a call is being read. */
type Part = "start" | "key" | "colon" | "value" | "comma";

/** One call's JSON object, read character by character. */
class CallReader {
  /** All that was read. */
  raw = "";
  name: string | undefined;
  /** Of the arguments, what was not given yet. */
  pieces = "";
  /** The key that comes first. */
  firstKey: string | undefined;
  isDone = false;
  isWrong = false;
  readonly #argumentKeys: readonly string[];
  #part: Part = "start";
  #key = "";
  #value = "";
  #depth = 0;
  #isInString = false;
  #isEscaped = false;

  constructor({ argumentsKey }: ToolFormat) {
    // Models mix the two up.
    this.#argumentKeys = [argumentsKey, "arguments", "parameters"];
  }

  push(character: string): void {
    this.raw += character;
    const isSpace = /\s/.test(character);
    switch (this.#part) {
      case "start":
        if (character === "{") this.#part = "key";
        else if (!isSpace) this.isWrong = true;
        return;
      case "key":
        this.#key += character;
        if (this.#inString(character)) return;
        if (character === '"') {
          this.#part = "colon";
          this.firstKey ??= textOf(this.#key.trim());
        } else if (character === "}" && this.#key.trim() === "}") this.isDone = true;
        else if (!isSpace) this.isWrong = true;
        return;
      case "colon":
        if (character === ":") {
          this.#part = "value";
          this.#value = "";
        } else if (!isSpace) this.isWrong = true;
        return;
      case "value":
        this.#inValue(character);
        return;
      case "comma":
        if (character === ",") {
          this.#part = "key";
          this.#key = "";
        } else if (character === "}") this.isDone = true;
        else if (!isSpace) this.isWrong = true;
        return;
    }
  }

  /** Whether a character is inside a string, its opening quote included. */
  #inString(character: string): boolean {
    if (this.#isInString) {
      if (this.#isEscaped) this.#isEscaped = false;
      else if (character === "\\") this.#isEscaped = true;
      else if (character === '"') {
        this.#isInString = false;
        return false;
      }
      return true;
    }
    if (character !== '"') return false;
    this.#isInString = true;
    return true;
  }

  #inValue(character: string): void {
    const wasInString = this.#isInString;
    if (this.#inString(character) || wasInString) {
      this.#take(character);
      if (!this.#isInString && this.#depth === 0) this.#endValue();
      return;
    }
    if (this.#depth === 0 && this.#value !== "" && /[\s,}]/.test(character)) {
      // A number or a word ends with what follows it.
      this.#endValue();
      if (character === ",") {
        this.#part = "key";
        this.#key = "";
      } else if (character === "}") this.isDone = true;
      return;
    }
    if (this.#depth === 0 && this.#value === "" && /\s/.test(character)) return;
    if (character === "{" || character === "[") this.#depth++;
    if (character === "}" || character === "]") this.#depth--;
    this.#take(character);
    if (this.#depth < 0) this.isWrong = true;
    else if (this.#depth === 0 && /[}\]]/.test(character)) this.#endValue();
  }

  #take(character: string): void {
    this.#value += character;
    // Arguments as a text that holds JSON are given when they are whole.
    if (this.#isArguments && !this.#value.startsWith('"')) this.pieces += character;
  }

  get #isArguments(): boolean {
    return this.#argumentKeys.includes(textOf(this.#key) ?? "");
  }

  #endValue(): void {
    this.#part = "comma";
    if (textOf(this.#key) === "name") this.name = textOf(this.#value);
    else if (this.#isArguments && this.#value.startsWith('"'))
      this.pieces += textOf(this.#value) ?? "";
  }
}

/** The text of a JSON string. */
function textOf(json: string): string | undefined {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === "string" ? value : undefined;
  } catch {
    return undefined;
  }
}

type Place = "beginning" | "text" | "opened" | "call" | "closing" | "plain";

/**
 * Takes the text of an answer as it comes and gives its pieces, as a server streams them. What looks like a call and
 * is none stays text.
 */
export class ToolStream {
  readonly #format: ToolFormat;
  readonly #id: () => string;
  readonly #names: ReadonlySet<string> | undefined;
  #place: Place;
  /** Text that was not looked at, or may belong to a mark. */
  #held = "";
  #call: CallReader;
  /** What stood between the last text and the call. */
  #before = "";
  #calls = 0;
  #isNamed = false;
  #given: AnswerDelta[] = [];

  /**
   * @param id makes the id of the next call: see `callIds`
   * @param names of the tools that there are, where answers are held to them (`toolGrammar`): JSON that does not
   * begin with one of these names is text
   */
  constructor(format: ToolFormat, id: () => string, names?: ReadonlySet<string>) {
    this.#format = format;
    this.#id = id;
    this.#names = names;
    this.#place = format.open === undefined ? "beginning" : "text";
    this.#call = new CallReader(format);
  }

  /** Calls that were begun. */
  get calls(): number {
    return this.#calls;
  }

  /** Takes text; gives what is now certain. A special token that is a mark comes as its text: see `markTokens`. */
  push(text: string): AnswerDelta[] {
    this.#held += text;
    while (this.#advance()) {}
    return this.#take();
  }

  /** Gives what was held back: no more text comes. */
  end(): AnswerDelta[] {
    if (this.#place === "call" && !this.#isNamed) this.#asText(this.#before + this.#call.raw);
    else if (this.#place === "opened") this.#asText(this.#calls === 0 ? this.#before : "");
    if (this.#place !== "closing" || this.#held.trim() !== "") this.#asText(this.#held);
    this.#held = "";
    this.#place = "plain";
    return this.#take();
  }

  #take(): AnswerDelta[] {
    const given = this.#given;
    this.#given = [];
    return given;
  }

  #asText(text: string): void {
    if (text !== "") this.#given.push({ kind: "text", text });
  }

  /** One step; whether there may be another one. */
  #advance(): boolean {
    const held = this.#held;
    if (held === "") return false;
    switch (this.#place) {
      case "plain":
        this.#asText(held);
        this.#held = "";
        return false;
      case "beginning": {
        const first = held.trimStart();
        if (first === "") return false;
        if (first[0] === "{") {
          this.#before = held.slice(0, held.length - first.length);
          this.#begin(first);
        } else this.#place = "plain";
        return true;
      }
      case "text":
        return this.#findMark(held);
      case "opened": {
        const rest = held.trimStart();
        if (rest === "") return false;
        if (this.#format.isArray && (rest[0] === "[" || rest[0] === ",")) {
          this.#before += held.slice(0, held.length - rest.length + 1);
          this.#held = rest.slice(1);
          return true;
        }
        if (rest[0] === "{") {
          this.#before += held.slice(0, held.length - rest.length);
          this.#begin(rest);
          return true;
        }
        this.#place = this.#calls > 0 ? "closing" : "plain";
        if (this.#calls === 0) this.#asText(this.#before);
        return true;
      }
      case "call":
        return this.#readCall(held);
      case "closing":
        return this.#close(held);
    }
  }

  #begin(rest: string): void {
    this.#call = new CallReader(this.#format);
    this.#isNamed = false;
    this.#held = rest;
    this.#place = "call";
  }

  /** Text up to the opening mark; white space before it is no text. */
  #findMark(held: string): boolean {
    const open = this.#format.open!;
    const at = held.indexOf(open);
    if (at >= 0) {
      const text = held.slice(0, at);
      this.#asText(text.trimEnd());
      this.#before = text.slice(text.trimEnd().length) + open;
      this.#held = held.slice(at + open.length);
      this.#place = "opened";
      return true;
    }
    let kept = Math.min(open.length - 1, held.length);
    while (!open.startsWith(held.slice(held.length - kept))) kept--;
    const sure = held.slice(0, held.length - kept).trimEnd();
    this.#asText(sure);
    this.#held = held.slice(sure.length);
    return false;
  }

  #readCall(held: string): boolean {
    const call = this.#call;
    let at = 0;
    while (at < held.length && !call.isDone && !call.isWrong) call.push(held[at++]!);
    this.#held = held.slice(at);
    if (call.isWrong || (call.isDone && call.name === undefined) || this.#isOther(call)) {
      if (!this.#isNamed) this.#asText(this.#before + call.raw);
      this.#before = "";
      this.#place = this.#isNamed ? "closing" : "plain";
      return true;
    }
    if (call.name !== undefined) {
      const index = this.#isNamed ? this.#calls - 1 : this.#calls;
      if (!this.#isNamed) {
        this.#given.push({ kind: "call", index, id: this.#id(), name: call.name });
        this.#calls++;
        this.#isNamed = true;
      }
      if (call.pieces !== "") this.#given.push({ kind: "arguments", index, text: call.pieces });
      call.pieces = "";
    }
    if (!call.isDone) return false;
    this.#before = "";
    this.#place = "closing";
    return true;
  }

  /** Whether it calls none of the tools that there are. */
  #isOther({ firstKey, name }: CallReader): boolean {
    if (!this.#names || firstKey === undefined) return false;
    return firstKey !== "name" || (name !== undefined && !this.#names.has(name));
  }

  /** After a call: its closing mark, and another call or text. */
  #close(held: string): boolean {
    const { open, close, isArray } = this.#format;
    const rest = held.trimStart();
    if (rest === "") return false;
    if (isArray && rest[0] === ",") {
      this.#held = rest;
      this.#place = "opened";
      return true;
    }
    if (isArray && rest[0] === "]") {
      this.#held = rest.slice(1);
      return true;
    }
    for (const [mark, next] of [
      [close, "closing"],
      [open, "opened"],
    ] as const) {
      if (mark === undefined) continue;
      if (rest.startsWith(mark)) {
        this.#held = rest.slice(mark.length);
        if (next === "opened") this.#before = mark;
        this.#place = next;
        return true;
      }
      if (mark.startsWith(rest)) return false;
    }
    this.#place = open === undefined ? "plain" : "text";
    this.#held = rest;
    return true;
  }
}

/** A whole answer taken apart. */
export interface ToolAnswer {
  readonly text: string;
  readonly calls: readonly {
    readonly id: string;
    readonly name: string;
    /** JSON text. */
    readonly arguments: string;
  }[];
}

/** Takes a whole answer apart. */
export function readToolAnswer(text: string, format: ToolFormat, id: () => string): ToolAnswer {
  const stream = new ToolStream(format, id);
  const calls: { id: string; name: string; arguments: string }[] = [];
  let plain = "";
  for (const delta of [...stream.push(text), ...stream.end()]) {
    if (delta.kind === "text") plain += delta.text;
    else if (delta.kind === "call") calls.push({ id: delta.id, name: delta.name, arguments: "" });
    else calls[delta.index]!.arguments += delta.text;
  }
  return { text: plain, calls };
}
