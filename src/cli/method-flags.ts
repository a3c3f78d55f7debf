/** Options of methods as flags: each is of the methods that declare an option of that name. */
import type { OptionDescription, OptionTable } from "./command.ts";
import { type AnyMethod, methodsWith, type OptionSpec, type RoleName } from "./library.ts";

/** Roles that a fine-tuning is put together from. */
export const finetuneRoles: readonly RoleName[] = [
  "adapter",
  "initialiser",
  "objective",
  "policy",
  "dataPolicy",
];

/** Options that are flags of another name. */
const shortNames: Readonly<Record<string, string>> = { targetModules: "targets" };

/** `rankPattern` as `rank-pattern`. */
export function flagName(option: string): string {
  return shortNames[option] ?? option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** A method that has an option of a flag's name. */
export interface FlagUser {
  readonly method: AnyMethod;
  readonly option: string;
  readonly spec: OptionSpec;
}

/** Methods that play some of the roles, each once. */
export function methodsOf(roles: readonly RoleName[]): readonly AnyMethod[] {
  return [...new Set(roles.flatMap((role) => methodsWith(role) as readonly AnyMethod[]))];
}

/** Who has which flag. */
export const flagUsers: ReadonlyMap<string, readonly FlagUser[]> = (() => {
  const users = new Map<string, FlagUser[]>();
  for (const method of methodsOf(finetuneRoles)) {
    for (const [option, spec] of Object.entries(method.options)) {
      const name = flagName(option);
      users.set(name, [...(users.get(name) ?? []), { method, option, spec }]);
    }
  }
  return users;
})();

function shown(value: unknown): string | undefined {
  if (value === undefined || value === false) return undefined;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value);
    return entries.length === 0 ? undefined : entries.map(([, one]) => String(one)).join(",");
  }
  return String(value);
}

/** `dpo, kto: hold to the reference (default 0.1); ipo: ...`: one part for those that say the same. */
function aboutOf(users: readonly FlagUser[]): string {
  const parts = new Map<string, FlagUser[]>();
  for (const user of users)
    parts.set(user.spec.about, [...(parts.get(user.spec.about) ?? []), user]);
  return [...parts]
    .map(([text, own]) => {
      const ids = own.map(({ method }) => method.id);
      const defaults = own.map(({ spec }) => shown(spec.default));
      const isSame = new Set(defaults).size === 1;
      const standard = isSame
        ? defaults[0]
        : ids
            .flatMap((id, i) => (defaults[i] === undefined ? [] : [`${id} ${defaults[i]}`]))
            .join(", ");
      return `${ids.join(", ")}: ${text}${standard === undefined ? "" : ` (default ${standard})`}`;
    })
    .join("; ");
}

/** A flag that takes what any of its users takes; each checks its own value when it is chosen. */
function describe(users: readonly FlagUser[]): OptionDescription {
  const about = aboutOf(users);
  const types = new Set(users.map(({ spec }) => (spec.type === "integer" ? "number" : spec.type)));
  const [type] = types;
  if (types.size > 1) return { type: "string", about };
  if (type === "flag") return { type: "flag", about };
  if (type === "number") {
    const ranges = users.map(({ spec }) => (spec as { range: readonly [number, number] }).range);
    const least = Math.min(...ranges.map(([low]) => low));
    const most = Math.max(...ranges.map(([, high]) => high));
    const isWhole = users.every(({ spec }) => spec.type === "integer");
    return {
      type: "number",
      about,
      check: (value) =>
        Number(value) >= least && Number(value) <= most && (!isWhole || Number.isInteger(value))
          ? undefined
          : `must be a ${isWhole ? "whole number" : "number"} from ${least} to ${most}`,
    };
  }
  if (type === "table") return { type: "string", value: "name=number", many: true, about };
  if (type === "text") {
    const choices = users.flatMap(({ spec }) => (spec as { choices?: readonly string[] }).choices);
    const words = [...new Set(choices)];
    if (words.includes(undefined)) return { type: "string", value: "word", about };
    return {
      type: "string",
      value: "word",
      about: `${about}: ${words.join(", ")}`,
      check: (value) =>
        words.includes(String(value)) ? undefined : `must be ${words.join(" or ")}`,
    };
  }
  return { type: "string", value: type === "numbers" ? "numbers" : "names", about };
}

/**
 * The flags of methods with some roles.
 * @param taken names of flags that mean something else: the option is then written with its method
 */
export function methodFlags(roles: readonly RoleName[], taken: ReadonlySet<string>): OptionTable {
  const own = new Set(methodsOf(roles));
  return Object.fromEntries(
    [...flagUsers].flatMap(([name, users]) => {
      const mine = users.filter(({ method }) => own.has(method));
      return taken.has(name) || mine.length === 0 ? [] : [[name, describe(users)]];
    }),
  );
}

/** Other models that objectives take, by the names of their options. */
export function modelFlags(): OptionTable {
  const users = new Map<string, string[]>();
  for (const method of methodsOf(["objective", "policy"])) {
    for (const name of [
      ...(method.roles.objective?.models ?? []),
      ...(method.roles.policy?.models ?? []),
    ]) {
      users.set(flagName(name), [...(users.get(flagName(name)) ?? []), method.id]);
    }
  }
  return Object.fromEntries(
    [...users].map(([name, ids]): [string, OptionDescription] => [
      name,
      {
        type: "string",
        value: "folder",
        about: `${ids.join(", ")}: a model of the same tokenizer; <folder>+<adapter> puts an adapter on it`,
      },
    ]),
  );
}

/** Files of further examples that data policies take, by the names of their options. */
export function fileFlags(): OptionTable {
  return Object.fromEntries(
    methodsWith("dataPolicy").flatMap(({ id, roles, summary }) =>
      (roles.dataPolicy.files ?? []).map((name): [string, OptionDescription] => [
        flagName(name),
        { type: "string", value: "file", about: `${id}: ${summary}` },
      ]),
    ),
  );
}
