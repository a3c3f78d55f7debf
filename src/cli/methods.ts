/** `plasticity methods`: the catalogue, one method of it, and METHODS.md. */
import { isJsonObject, parseJson } from "../io/json.ts";
import type { Command, CommandContext } from "./command.ts";
import { oneOf } from "./command.ts";
import {
  type AnyMethod,
  capabilities,
  type Host,
  methodById,
  methods,
  OptionError,
  type OptionSpec,
  roleNames,
} from "./library.ts";
import { flagName } from "./method-flags.ts";
import { packagePath } from "./models.ts";
import type { Output } from "./output.ts";

const statuses = ["planned", "sketch", "faithful", "parity"] as const;

const rolesOf = ({ roles, plannedRoles = [] }: AnyMethod): readonly string[] => {
  const there = Object.keys(roles);
  return there.length > 0 ? there : plannedRoles;
};

/** What `--json` says of a method. */
function factsOf(method: AnyMethod): Readonly<Record<string, unknown>> {
  const { number, id, title, paper, capability, implementation, claim, summary } = method;
  return {
    number,
    id,
    title,
    paper: paper ?? null,
    capability,
    roles: rolesOf(method),
    implementation,
    claim: claim ?? "notRun",
    summary,
  };
}

/** Published systems by number, then techniques by id. */
const inOrder: readonly AnyMethod[] = [...methods].sort(
  (a, b) => (a.number ?? 1e3) - (b.number ?? 1e3) || (a.id < b.id ? -1 : 1),
);

/** `not run`, `does not hold`. */
export function claimWords({ claim = "notRun" }: AnyMethod): string {
  return { notRun: "not run", doesNotHold: "does not hold" }[claim as string] ?? claim;
}

/** What may be taken, for a table. */
function rangeOf(spec: OptionSpec): string {
  switch (spec.type) {
    case "number":
    case "integer":
    case "numbers":
    case "table": {
      const [low, high] = (spec as { open?: readonly [boolean, boolean] }).open ?? [false, false];
      const [least, most] = spec.range;
      const each = `${low ? "(" : "["}${least}, ${most}${high ? ")" : "]"}`;
      if (spec.type === "integer") return `whole, ${each}`;
      if (spec.type === "numbers") return `list of ${each}`;
      return spec.type === "table" ? `name:number of ${each}` : each;
    }
    case "flag":
      return "true, false";
    case "text":
      return spec.choices ? spec.choices.join(", ") : "text";
    case "list":
      return [...(spec.words ?? []), "a list as a+b"].join(", ");
  }
}

function defaultOf({ default: value }: OptionSpec): string {
  if (value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** A command line that uses a method, by its roles. */
export function usageOf({ id, roles, options }: AnyMethod): readonly string[] {
  const data = "--model <folder> --data <file>";
  // One option, to show how they are written.
  const [name, spec] = Object.entries(options).find(([, one]) => one.default !== undefined) ?? [];
  const value = spec?.default;
  const isPlain = typeof value === "number" || typeof value === "string";
  const withOption = isPlain ? [`${id}:${name}=${value}`] : [];
  const lines: string[] = [];
  const show = (line: (word: string) => string): void => {
    lines.push(...[id, ...withOption].map((word) => line(word)));
  };
  if (roles.adapter) show((word) => `plasticity finetune ${data} --adapter ${word}`);
  if (roles.initialiser) {
    show((word) => `plasticity finetune ${data} --adapter lora --init ${word}`);
  }
  const learning = roles.objective ?? roles.policy;
  if (learning) {
    const others = (learning.models ?? [])
      .map((model) => ` --${flagName(model)} <folder>`)
      .join("");
    const reward = roles.policy?.usesReward ? " --reward exact" : "";
    show((word) => `plasticity finetune ${data} --objective ${word}${others}${reward}`);
  }
  if (roles.dataPolicy) {
    const files = (roles.dataPolicy.files ?? []).map((file) => ` --${flagName(file)} <file>`);
    show((word) => `plasticity finetune ${data} --curriculum ${word}${files.join("")}`);
  }
  if (roles.merge) {
    const base = roles.merge.needsBase ? " --base <folder>" : "";
    const merge = `plasticity merge --method ${id}${base} --models <folder> <folder> --out <folder>`;
    lines.push(merge, ...(isPlain ? [`${merge} --set ${name}=${value}`] : []));
  }
  if (roles.decoder) {
    show((word) => `plasticity generate --model <folder> --prompt <text> --decode ${word}`);
  }
  return lines;
}

/** What the committed experiment of a method found, if there is one. */
async function experimentOf(
  host: Host,
  id: string,
): Promise<Readonly<Record<string, unknown>> | undefined> {
  const path = packagePath("reproduce", id, "result.json");
  if (!(await host.files.info(path))) return undefined;
  const value = parseJson(await host.files.readBytes(path, 2 ** 24), path);
  return isJsonObject(value) ? value : undefined;
}

function showExperiment(output: Output, result: Readonly<Record<string, unknown>>): void {
  output.line(
    `Its experiment says: ${String(result["verdict"])}. ${String(result["claim"] ?? "")}`,
  );
  const arms = result["arms"] as
    | readonly { name: string; metrics: Record<string, { mean: number; sd: number; n: number }> }[]
    | undefined;
  if (!Array.isArray(arms)) return;
  const names = [...new Set(arms.flatMap(({ metrics }) => Object.keys(metrics ?? {})))];
  output.table(
    ["arm", ...names],
    arms.map(({ name, metrics }) => [
      name,
      ...names.map((metric) => {
        const found = metrics?.[metric];
        return found ? `${found.mean.toPrecision(4)} ± ${found.sd.toPrecision(2)}` : "";
      }),
    ]),
    ["left", ...names.map(() => "right" as const)],
  );
}

async function showOne({ host, output }: CommandContext, id: string): Promise<void> {
  const method = methodById(id);
  const { number, title, capability, implementation, summary, paper, options, aliases } = method;
  output.line(output.style(`${title} (${method.id})`, "bold"));
  output.line(summary);
  output.line();
  if (paper) output.line(`${paper.title}, ${paper.year}. ${paper.url}`);
  const facts = [
    ["number", number === null ? "a well-known technique" : String(number)],
    ["capability", capability],
    ["roles", rolesOf(method).join(", ")],
    ["implementation", implementation],
    ["claim", claimWords(method)],
    ...(aliases ? [["also called", aliases.join(", ")]] : []),
    ...(method.buildsOn ? [["builds on", method.buildsOn.join(", ")]] : []),
  ];
  for (const [name, value] of facts) output.line(`${name!.padEnd(14)} ${value}`);
  const entries = Object.entries(options);
  if (entries.length > 0) {
    output.line();
    output.table(
      ["option", "default", "takes", "what it is"],
      entries.map(([name, spec]) => [name, defaultOf(spec), rangeOf(spec), spec.about]),
    );
  }
  const usage = usageOf(method);
  if (usage.length > 0) {
    output.line();
    output.line("How to use it:");
    for (const line of usage) output.line(`  npx ${line}`);
  } else {
    output.line();
    output.line("It is planned and not there yet.");
  }
  const result = await experimentOf(host, method.id);
  output.line();
  if (result) showExperiment(output, result);
  else output.line("No experiment is committed yet.");
  output.json({ ...factsOf(method), options, usage, experiment: result ?? null });
}

function cell(text: string): string {
  return text.replaceAll("|", "\\|");
}

/** METHODS.md: all methods as tables. */
export function methodsMarkdown(): string {
  const table = (list: readonly AnyMethod[], first: string): string[] => [
    `| ${first} | method | what it does | capability | roles | implementation | claim |`,
    "| ---: | --- | --- | --- | --- | --- | --- |",
    ...list.map((method) => {
      const { number, id, title, summary, capability, implementation, paper } = method;
      const isThere = implementation !== "planned";
      const name = isThere ? `[${title}](src/methods/${capability}/${id}.ts)` : title;
      const source = paper ? ` ([${paper.year}](${paper.url}))` : "";
      return `| ${number ?? ""} | ${cell(name)}<br>\`${id}\` | ${cell(summary)}${source} | ${capability} | ${rolesOf(method).join(", ")} | ${implementation} | ${claimWords(method)} |`;
    }),
  ];
  const published = inOrder.filter(({ number }) => number !== null);
  const known = inOrder.filter(({ number }) => number === null);
  const count = published.filter(({ implementation }) => implementation !== "planned").length;
  return [
    "# Methods",
    "",
    "This file is made by `plasticity methods --markdown` from the records in `src/methods`.",
    "",
    "*Implementation*: planned; sketch; faithful (follows the paper with all its named parts and is tested for what it promises); parity (equals an independent implementation's recorded numbers as well). *Claim*: what the committed experiment says of the paper's claim at our scale.",
    "",
    "`plasticity methods <id>` shows a method's options and how to use it.",
    "",
    "## Published systems",
    "",
    `${count} of ${published.length} records are there; the others are planned. The roles of planned ones are what they are going to be.`,
    "",
    ...table(published, "no."),
    "",
    "## Well-known techniques",
    "",
    ...table(known, ""),
    "",
  ].join("\n");
}

async function run(context: CommandContext): Promise<void> {
  const { output, options, positionals } = context;
  const [id] = positionals;
  if (options["markdown"] === true) {
    output.write(methodsMarkdown());
    output.json({ markdown: methodsMarkdown() });
    return;
  }
  const filters = ["capability", "role", "status", "search"].filter(
    (name) => options[name] !== undefined,
  );
  if (id !== undefined) {
    if (filters.length > 0) {
      throw new OptionError(`methods: --${filters[0]} narrows the list — leave "${id}" or it out.`);
    }
    return showOne(context, id);
  }
  const { capability, role, status } = options;
  const words = ((options["search"] as string | undefined) ?? "").toLowerCase().split(/\s+/);
  const found = inOrder.filter((method) => {
    const text = [method.id, method.title, method.summary, method.paper?.title, method.capability]
      .join(" ")
      .toLowerCase();
    return (
      (capability === undefined || method.capability === capability) &&
      (role === undefined || rolesOf(method).includes(String(role))) &&
      (status === undefined || method.implementation === status) &&
      words.every((word) => text.includes(word))
    );
  });
  output.table(
    ["no.", "id", "title", "capability", "roles", "status", "claim"],
    found.map((method) => [
      method.number === null ? "" : String(method.number),
      method.id,
      method.title,
      method.capability,
      rolesOf(method).join(", "),
      method.implementation,
      claimWords(method),
    ]),
    ["right"],
  );
  output.line(
    `${found.length} of ${methods.length}. "plasticity methods <id>" shows one: what it does, its options, how to use it.`,
  );
  output.json(found.map(factsOf));
}

export const methodsCommand: Command = {
  name: "methods",
  summary: "the catalogue of published systems and techniques, and what is there of it",
  usage: "plasticity methods [<id>] [--capability <name>] [--role <name>] [--search <words>]",
  example: "plasticity methods --role objective",
  maxPositionals: 1,
  options: {
    capability: {
      type: "string",
      value: "name",
      about: `those of one capability: ${capabilities.join(", ")}`,
      check: oneOf(...capabilities),
    },
    role: {
      type: "string",
      value: "name",
      about: `those that play a role: ${roleNames.join(", ")}`,
      check: oneOf(...roleNames),
    },
    status: {
      type: "string",
      value: "name",
      about: `those of one state: ${statuses.join(", ")}`,
      check: oneOf(...statuses),
    },
    search: { type: "string", value: "words", about: "those in whose description all words are" },
    markdown: { type: "flag", about: "print METHODS.md" },
  },
  run,
};
