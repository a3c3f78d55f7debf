/** Commands: one description of options serves parsing, checking and help. */
import { type Host, OptionError } from "../index.ts";
import type { Output } from "./output.ts";

export interface OptionDescription {
  readonly type: "string" | "number" | "flag";
  /** What it is, with its unit; the default is shown from `default`. */
  readonly about: string;
  readonly default?: string | number;
  /** The word that stands for the value in help. */
  readonly value?: string;
  /** A sentence on what is allowed, or undefined when the value is good. */
  readonly check?: (value: string | number) => string | undefined;
  /** A string that may be given several times: its value is the list, in order; undefined without. */
  readonly many?: boolean;
  /** The heading that it stands under in help; default none, before all headings. */
  readonly group?: string;
}

export type OptionTable = Readonly<Record<string, OptionDescription>>;

/** Parsed options: by name, numbers as numbers, flags as true, `many` as a list of strings. */
export type OptionValue = string | number | true | readonly string[] | undefined;
export type OptionValues = Readonly<Record<string, OptionValue>>;

export interface CommandContext {
  readonly host: Host;
  readonly output: Output;
  readonly options: OptionValues;
  readonly positionals: readonly string[];
  /** Options that the user gave, defaults left out. */
  readonly given: ReadonlySet<string>;
  /** Aborted by the first SIGINT. */
  readonly signal: AbortSignal;
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  readonly usage: string;
  readonly example: string;
  readonly options: OptionTable;
  /** Words after the command; default none. */
  readonly maxPositionals?: number;
  /** The command takes Ctrl-C itself: no signal comes. */
  readonly handlesInterrupt?: boolean;
  run(context: CommandContext): Promise<void>;
}

export const wholeFrom =
  (least: number, most = 1e9): ((value: string | number) => string | undefined) =>
  (value) =>
    Number.isInteger(value) && Number(value) >= least && Number(value) <= most
      ? undefined
      : `must be a whole number from ${least} to ${most}`;

export const realFrom =
  (least: number, most: number): ((value: string | number) => string | undefined) =>
  (value) =>
    Number(value) >= least && Number(value) <= most
      ? undefined
      : `must be a number from ${least} to ${most}`;

export const oneOf =
  (...words: readonly string[]): ((value: string | number) => string | undefined) =>
  (value) =>
    words.includes(String(value)) ? undefined : `must be ${words.join(" or ")}`;

/** Steps between two words: letters changed, added, left out. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(
        Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)),
      );
    }
    row = next;
  }
  return row[b.length]!;
}

/** ` — did you mean "x"?` when a known word is near. */
export function suggestion(word: string, known: readonly string[]): string {
  const near = known
    .map((item) => [item, distance(word, item)] as const)
    .sort((a, b) => a[1] - b[1])[0];
  return near && near[1] <= Math.max(2, word.length / 3) ? ` — did you mean "${near[0]}"?` : "";
}

/**
 * Reads `--name value`, `--name=value` and `--flag`.
 * @throws OptionError for an unknown option, a missing or wrong value.
 */
export function parseOptions(
  command: Pick<Command, "name" | "options" | "maxPositionals">,
  args: readonly string[],
): { options: OptionValues; positionals: string[]; given: ReadonlySet<string> } {
  const options: Record<string, OptionValue> = {};
  const given = new Set<string>();
  for (const [name, { default: value }] of Object.entries(command.options)) options[name] = value;
  const positionals: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (!arg.startsWith("--")) {
      positionals.push(arg);
      continue;
    }
    const [name, inline] = splitOnce(arg.slice(2));
    const known = Object.hasOwn(command.options, name) ? command.options[name] : undefined;
    if (!known) {
      const near = suggestion(name, Object.keys(command.options));
      throw new OptionError(
        `${command.name}: unknown option "--${name}"${near || ` — run "plasticity ${command.name} --help" for the list.`}`,
      );
    }
    given.add(name);
    if (known.type === "flag") {
      if (inline !== undefined) {
        throw new OptionError(`${command.name}: --${name} takes no value, got "${inline}".`);
      }
      options[name] = true;
      continue;
    }
    const text = inline ?? args[++i];
    const isPath = known.value === "file" || known.value === "folder" || known.value === "path";
    if (
      text === undefined ||
      (inline === undefined && text.startsWith("--")) ||
      (isPath && text === "")
    ) {
      throw new OptionError(
        `${command.name}: --${name} needs a value: --${name} <${known.value ?? known.type}>.`,
      );
    }
    const value = known.type === "number" ? Number(text) : text;
    const wrong =
      known.type === "number" && (text.trim() === "" || !Number.isFinite(value))
        ? "must be a number"
        : known.check?.(value);
    if (wrong) throw new OptionError(`${command.name}: --${name} ${wrong}, got "${text}".`);
    options[name] = known.many ? [...((options[name] as string[] | undefined) ?? []), text] : value;
  }
  if (positionals.length > (command.maxPositionals ?? 0)) {
    throw new OptionError(
      `${command.name}: does not know what to do with "${positionals[command.maxPositionals ?? 0]}" — options start with "--".`,
    );
  }
  return { options, positionals, given };
}

/** Words in lines of at most `width` characters, where single words allow it. */
function wrapped(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.at(-1)!;
    if (last !== "" && last.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
  }
  return lines;
}

/**
 * What `plasticity <command> --help` prints. Options stand under their groups, in order of first use.
 * @param columns of the screen; lines are wrapped there, but not to less than 24 beside the names.
 */
export function commandHelp(command: Omit<Command, "run">, columns = 100): string {
  const json: OptionDescription = { type: "flag", about: "print the result as one line of JSON" };
  const entries = Object.entries({ ...command.options, json }).map(([name, option]) => {
    const notes = [
      ...(option.default === undefined ? [] : [`default ${option.default}`]),
      ...(option.many ? ["may be given again"] : []),
    ];
    return {
      group: option.group ?? "",
      left: `--${name}${option.type === "flag" ? "" : ` <${option.value ?? option.type}>`}`,
      right: option.about + (notes.length > 0 ? ` (${notes.join("; ")})` : ""),
    };
  });
  const width = Math.max(...entries.map(({ left }) => left.length));
  const groups = new Set(["", ...entries.map(({ group }) => group)]);
  return [
    `plasticity ${command.name}: ${command.summary}`,
    "",
    `Usage: ${command.usage}`,
    ...[...groups].flatMap((group) => [
      "",
      ...(group === "" ? [] : [`${group}:`]),
      ...entries
        .filter((entry) => entry.group === group)
        .flatMap(({ left, right }) =>
          wrapped(right, Math.max(24, columns - width - 4)).map(
            (line, i) => `  ${(i === 0 ? left : "").padEnd(width)}  ${line}`,
          ),
        ),
    ]),
    "",
    `Example: ${command.example}`,
  ].join("\n");
}

function splitOnce(text: string): [string, string | undefined] {
  const at = text.indexOf("=");
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
