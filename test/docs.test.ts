/** What the documents say: links lead somewhere, commands and examples run, nothing private is in them. */
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { bench } from "../src/cli/bench.ts";
import { type Command, parseOptions } from "../src/cli/command.ts";
import { finetuneCommand } from "../src/cli/finetune.ts";
import { generateCommand } from "../src/cli/generate.ts";
import { pretrainCommand } from "../src/cli/pretrain.ts";

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

describe("commands in documents", () => {
  const commands: Readonly<Record<string, Command>> = Object.fromEntries(
    [finetuneCommand, generateCommand, pretrainCommand, bench].map((c) => [c.name, c]),
  );
  const calls = documents.flatMap((path) =>
    blocks(read(path), "")
      .flatMap((code) => code.split("\n"))
      .flatMap((line) => {
        const found = /^(?:npx plasticity|node dist\/cli\/main\.js) (.+?)(?: +#.*)?$/.exec(line);
        return found ? [[path, found[1]!] as const] : [];
      }),
  );

  it("are found", () => {
    expect(calls.length).toBeGreaterThan(4);
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

  it("are those of package.json where npm runs them", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    for (const path of documents) {
      for (const [, name] of read(path).matchAll(/\bnpm run ([\w:]+)/g)) {
        expect(Object.keys(scripts), path).toContain(name);
      }
    }
  });
});

describe("the README's example", () => {
  it("runs as it stands, and finds the line it promises", async () => {
    const dist = join(root, "dist", "index.js");
    expect(existsSync(dist), `${dist} is not there — run "npm test", which builds it`).toBe(true);
    const [code, ...more] = blocks(read("README.md"), "ts");
    expect(more).toEqual([]);
    const here = code!.replace('from "plasticity"', `from ${JSON.stringify(pathToFileURL(dist))}`);
    expect(here).not.toBe(code);
    const folder = mkdtempSync(join(tmpdir(), "plasticity-docs-"));
    try {
      const file = join(folder, "example.mjs");
      writeFileSync(file, here);
      const { stdout, stderr } = await promisify(execFile)(process.execPath, [file]);
      expect(stderr).toBe("");
      const numbers = /^Float32Array\(2\) \[ ([\d.]+), ([\d.]+) \]\n$/.exec(stdout);
      expect(numbers, stdout).not.toBeNull();
      expect(Math.abs(Number(numbers![1]) - 1)).toBeLessThan(0.1);
      expect(Math.abs(Number(numbers![2]) - 2)).toBeLessThan(0.1);
    } finally {
      rmSync(folder, { recursive: true });
    }
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
