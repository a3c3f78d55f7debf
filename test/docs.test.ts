/** What the documents say: links lead somewhere, commands and examples run, nothing private is in them. */
import { execFile } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { type Command, parseOptions } from "../src/cli/command.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** Files of the repository by path from its root; what is built, installed or hidden is left out. */
function* walk(folder: string): Generator<string> {
  const left = ["node_modules", "dist", "runs", "coverage"];
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.name.startsWith(".") || left.includes(entry.name)) continue;
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* walk(path);
    else yield relative(root, path).replaceAll("\\", "/");
  }
}

const all = [...walk(root)].sort();
const documents = all.filter((path) => path.endsWith(".md"));

/** A document without its blocks and spans of code. */
function prose(text: string): string {
  return text.replace(/^ *```[\s\S]*?^ *```$/gm, "").replace(/`[^`\n]*`/g, "");
}

/** Blocks of code of a language; "" for those that name none. */
function blocks(text: string, language: string): string[] {
  return [...text.matchAll(/^```(.*)\n([\s\S]*?)^```$/gm)]
    .filter(([, found]) => found === language)
    .map(([, , code]) => code!);
}

/** Anchors of a document's headings, as GitHub makes them. */
function anchors(text: string): Set<string> {
  const seen = new Map<string, number>();
  const found = new Set<string>();
  const bare = text.replace(/^ *```[\s\S]*?^ *```$/gm, "");
  for (const [, heading] of bare.matchAll(/^#{1,6} +(.+?) *#*$/gm)) {
    const slug = heading!
      .toLowerCase()
      .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
      .replace(/[^\p{L}\p{N}\p{M}_\- ]/gu, "")
      .replaceAll(" ", "-");
    const times = seen.get(slug) ?? 0;
    seen.set(slug, times + 1);
    found.add(times === 0 ? slug : `${slug}-${times}`);
  }
  return found;
}

describe("links", () => {
  it("are looked for in every document that a reader starts from", () => {
    expect(documents).toEqual(
      expect.arrayContaining([
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
        "data/commands/README.md",
      ]),
    );
    expect(anchors("# A `b`, c\n```\n# no\n```\n## A b c\n")).toEqual(
      new Set(["a-b-c", "a-b-c-1"]),
    );
  });

  it.each(documents)("of %s lead to files and headings of the repository", (path) => {
    const text = prose(read(path));
    const targets = [
      ...[...text.matchAll(/\]\(<?([^()\s>]+(?:\([^()]*\))?)>?(?: "[^"]*")?\)/g)],
      ...[...text.matchAll(/^\[[^\]]+\]: +(\S+)/gm)],
    ].map(([, target]) => target!);
    const broken = targets.filter((target) => {
      if (/^(https?|mailto):/.test(target)) return false;
      const [file, anchor] = decodeURI(target).split("#") as [string, string?];
      const full = file === "" ? join(root, path) : resolve(root, dirname(path), file);
      if (relative(root, full).startsWith("..") || !existsSync(full)) return true;
      return anchor !== undefined && !anchors(readFileSync(full, "utf8")).has(anchor);
    });
    expect(broken).toEqual([]);
  });
});

/** Every command, by the table of the command line. */
async function readCommands(): Promise<Readonly<Record<string, Command>>> {
  const rows = read("src/cli/main.ts").matchAll(/\(await import\("\.\/([\w-]+)\.ts"\)\)\.(\w+)/g);
  const commands: Record<string, Command> = {};
  for (const [, file, name] of rows) {
    const found = (await import(`../src/cli/${file}.ts`)) as Record<string, Command>;
    commands[found[name!]!.name] = found[name!]!;
  }
  return commands;
}

const commands = await readCommands();
/** Options that every command has. */
const common = ["json", "debug", "help"];

describe("commands in documents", () => {
  const calls = documents.flatMap((path) =>
    blocks(read(path), "")
      .flatMap((code) => code.split("\n"))
      .flatMap((line) => {
        const found = /^(?:npx plasticity|node dist\/cli\/main\.js) (.+?)(?: +#.*)?$/.exec(line);
        return found ? [[path, found[1]!] as const] : [];
      }),
  );

  it("are found", () => {
    expect(Object.keys(commands).length).toBeGreaterThan(10);
    expect(calls.length).toBeGreaterThan(20);
  });

  it.each(calls)("%s: plasticity %s is understood", (_, call) => {
    const [name, ...args] = [...call.matchAll(/"([^"]*)"|(\S+)/g)].map(([, a, b]) => a ?? b!);
    const command = commands[name!];
    expect(command?.name).toBe(name);
    const flag = { type: "flag", about: "" } as const;
    const { options } = parseOptions(
      { ...command!, options: { ...command!.options, json: flag } },
      args,
    );
    const given = args.filter((arg) => arg.startsWith("--")).map((arg) => arg.slice(2));
    for (const option of given) expect(options[option]).toBeDefined();
  });

  /** Spans of code that name options of ours; the changelog names those that are gone. */
  const spans = documents
    .filter(
      (path) => path === "README.md" || path === "CONTRIBUTING.md" || path.startsWith("docs/"),
    )
    .flatMap((path) =>
      [
        ...read(path)
          .replace(/^ *```[\s\S]*?^ *```$/gm, "")
          .matchAll(/`([^`]+)`/g),
      ]
        .map(([, span]) => span!.replace(/\s+/g, " "))
        .filter(
          (span) => /(^|\s)--[a-z]/.test(span) && /^(--|plasticity|npx plasticity)/.test(span),
        )
        .map((span) => [path, span] as const),
    );

  it.each(spans)("%s: `%s` names options that are there", (_, span) => {
    const name = /^(?:npx )?plasticity (\S+)/.exec(span)?.[1];
    const tables = name === undefined ? Object.values(commands) : [commands[name]];
    expect(tables, name).not.toContain(undefined);
    const known = [...common, "version", ...tables.flatMap((one) => Object.keys(one!.options))];
    for (const [, option] of span.matchAll(/(?:^|\s)--([a-z][\w-]*)/g)) {
      expect(known).toContain(option);
    }
  });

  it("are all in the README", () => {
    const text = read("README.md");
    for (const name of Object.keys(commands))
      expect(text).toMatch(new RegExp(`\`${name}\`|plasticity ${name}\\b`));
  });

  it("are those of package.json where npm runs them", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    for (const path of documents) {
      for (const [, name] of read(path).matchAll(/\bnpm run ([\w:]+)/g)) {
        expect(Object.keys(scripts), path).toContain(name);
      }
    }
  });
});

/**
 * Programs in a document's TypeScript blocks: a block that imports begins one, a block that does not
 * goes on with the one before, and what comes before all is a sketch.
 */
function programs(text: string): string[] {
  const found: string[] = [];
  for (const code of blocks(text, "ts")) {
    if (/^import /m.test(code)) found.push(code);
    else if (found.length > 0) found[found.length - 1] += code;
  }
  return found;
}

describe("programs in documents", () => {
  const run = promisify(execFile);
  const { exports } = JSON.parse(read("package.json")) as {
    exports: Record<string, string | { types: string }>;
  };

  it("type-check against the sources", async () => {
    const all = documents.flatMap((path) =>
      programs(read(path)).map(
        (code, i) => [`${path.replace(/\W+/g, "-")}-${i}.ts`, code] as const,
      ),
    );
    expect(all.length).toBeGreaterThan(6);
    // Inside the repository, so that types of Node are found; hidden, so that nothing else looks there.
    const folder = join(root, ".cache", `docs-${process.pid}`);
    mkdirSync(folder, { recursive: true });
    try {
      for (const [name, code] of all) writeFileSync(join(folder, name), `${code}\nexport {};\n`);
      const paths = Object.entries(exports).flatMap(([name, entry]) => {
        if (typeof entry === "string") return [];
        const source = entry.types.replace("./dist/", "../../src/").replace(".d.ts", ".ts");
        return [[name.replace(/^\./, "plasticity"), [source]] as const];
      });
      const config = {
        extends: "../../tsconfig.json",
        compilerOptions: {
          ...{ noUnusedLocals: false, isolatedDeclarations: false, declaration: false },
          paths: Object.fromEntries(paths),
        },
        include: ["*.ts"],
      };
      writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
      const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
      const said = await run(process.execPath, [tsc, "--noEmit", "-p", folder]).then(
        () => "",
        (error: { stdout: string }) => error.stdout,
      );
      // Errors of the sources themselves are found by "npm run check".
      expect(said.split("\n").filter((line) => line !== "" && !/^( |src\/)/.test(line))).toEqual(
        [],
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  /** Runs a program as a reader would, in a project that has the package. */
  async function runProgram(
    code: string,
    files: Readonly<Record<string, string>> = {},
  ): Promise<{ stdout: string; stderr: string }> {
    const dist = join(root, "dist", "index.js");
    expect(existsSync(dist), `${dist} is not there — run "npm test", which builds it`).toBe(true);
    const folder = mkdtempSync(join(tmpdir(), "plasticity-docs-"));
    try {
      mkdirSync(join(folder, "node_modules"));
      symlinkSync(root, join(folder, "node_modules", "plasticity"), "junction");
      const all = { ...files, "package.json": '{ "type": "module" }', "program.ts": code };
      for (const [name, text] of Object.entries(all)) writeFileSync(join(folder, name), text);
      const tsx = import.meta.resolve("tsx");
      return await run(process.execPath, ["--import", tsx, "program.ts"], { cwd: folder });
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  it("of the README runs as it stands, and finds the line it promises", async () => {
    const [code, ...more] = programs(read("README.md"));
    expect(more).toEqual([]);
    const { stdout, stderr } = await runProgram(code!);
    expect(stderr).toBe("");
    const numbers = /^Float32Array\(2\) \[ ([\d.]+), ([\d.]+) \]\n$/.exec(stdout);
    expect(numbers, stdout).not.toBeNull();
    expect(Math.abs(Number(numbers![1]) - 1)).toBeLessThan(0.1);
    expect(Math.abs(Number(numbers![2]) - 2)).toBeLessThan(0.1);
  });

  it("of the quickstart trains, judges and answers; here in two steps", async () => {
    const [code] = programs(read("docs/quickstart.md"));
    const short = code!.replace("steps: 150", "steps: 2").replace("evalEvery: 25", "evalEvery: 2");
    expect(short.length).toBe(code!.length - 3);
    const orders = Array.from({ length: 40 }, (_, i) =>
      JSON.stringify({ prompt: `${i} tea for Ada`, completion: `order(item: tea, count: ${i})` }),
    );
    const { stdout } = await runProgram(short, { "orders.jsonl": `${orders.join("\n")}\n` });
    const [first, second, judged, ...answer] = stdout.split("\n");
    expect(first).toMatch(/^step 1 of 2: \d+\.\d{3}$/);
    expect(second).toMatch(/^step 2 of 2: \d+\.\d{3}$/);
    expect(judged).toMatch(/^held out after 2 steps: \d+\.\d{3}$/);
    expect(answer.join("\n").trim()).not.toBe("");
  });
});

describe("text in the repository", () => {
  const texts = all.filter(
    (path) =>
      /(\.(ts|js|mjs|md|json|py|txt|html|css|yml)|LICENSE)$/.test(path) &&
      // The lists below; token lists, in which anything may stand.
      path !== "test/docs.test.ts" &&
      !path.endsWith("tokenizer.json"),
  );

  it.each<[string, RegExp]>([
    ["issue numbers", /(?<![\w&/])#\d+\b|\b(issue|PR|pull request) \d+\b/],
    ["paths of a machine", /(?<![\w.])\/(work|tmp|home|root|Users|mnt)\/|[A-Z]:\\\\?Users/],
    [
      "hosts of registries or mirrors",
      /registry\.[a-z]+\.[a-z]+|artifactory|pypi\.org|pythonhosted|npm\.pkg|verdaccio/i,
    ],
    [
      "words about how it was written",
      /\b(co-?founder|founder-engineer|claude|anthropic|chatbot|sub-?agents?|sandbox(ed)?|(this|that|last|next|another|other) session\b(?! of)|as instructed|the user asked|the brief\b)/i,
    ],
  ])("holds no %s", (_, pattern) => {
    expect(texts.length).toBeGreaterThan(200);
    const found = texts.flatMap((path) =>
      read(path)
        .split("\n")
        .flatMap((line, i) => {
          const hit = pattern.exec(line);
          return hit ? [`${path}:${i + 1}: ${hit[0]}`] : [];
        }),
    );
    expect(found).toEqual([]);
  });
});
