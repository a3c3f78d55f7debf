/** The layer table of ARCHITECTURE.md as a check: which folder may import which. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { expect, it } from "vitest";

const src = new URL("../src", import.meta.url).pathname;

const below: Readonly<Record<string, readonly string[]>> = {
  tensor: [],
  host: [],
  ir: ["tensor"],
  autodiff: ["ir", "tensor"],
  io: ["tensor", "host"],
  backend: ["ir", "tensor", "io", "host"],
  nn: ["autodiff", "ir", "tensor"],
  optim: ["autodiff", "ir", "tensor"],
  data: ["tensor", "io", "host"],
  models: ["nn", "optim", "io", "autodiff", "ir", "tensor", "host"],
  adapters: ["nn", "models", "io", "autodiff", "ir", "tensor", "host"],
  infer: ["models", "adapters", "backend", "nn", "data", "io", "autodiff", "ir", "tensor", "host"],
  train: [
    "nn",
    "optim",
    "data",
    "adapters",
    "models",
    "backend",
    "infer",
    "io",
    "autodiff",
    "ir",
    "tensor",
    "host",
  ],
  methods: [
    "nn",
    "optim",
    "data",
    "adapters",
    "models",
    "backend",
    "infer",
    "train",
    "io",
    "autodiff",
    "ir",
    "tensor",
    "host",
  ],
  experiments: [
    "methods",
    "nn",
    "optim",
    "data",
    "adapters",
    "models",
    "backend",
    "infer",
    "train",
    "io",
    "autodiff",
    "ir",
    "tensor",
    "host",
  ],
  server: ["index", "io", "host"],
  cli: ["index", "server", "io", "host"],
};

/** What ordinary files may name of Node: nothing. These touch the machine by their task. */
const machine =
  /^(host\/node(-cache|-lock|-errors|-images|-packages)?|backend\/ort\/(node|web|default)|server\/node(-[a-z]+)?|cli\/.*)\.ts$/;

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return sources(path);
    return entry.name.endsWith(".ts") && !entry.name.endsWith(".test.ts") ? [path] : [];
  });
}

const imports = /^(?:import|export)[^;]*?from "([^"]+)"|import\("([^"]+)"\)/gm;

it("lets imports point down only", () => {
  const wrong: string[] = [];
  for (const path of sources(src)) {
    const file = relative(src, path);
    const folder = file.includes("/") ? file.split("/")[0]! : "index";
    for (const [, fixed, dynamic] of readFileSync(path, "utf8").matchAll(imports)) {
      const target = (fixed ?? dynamic)!;
      if (target.startsWith("node:") && !machine.test(file)) {
        wrong.push(
          `src/${file} imports ${target}: only host/node, the engine's bindings and cli may.`,
        );
      }
      if (!target.startsWith(".") || folder === "index") continue;
      const to = relative(src, join(dirname(path), target));
      const other = to.includes("/") ? to.split("/")[0]! : to.replace(/\.ts$/, "");
      if (other === folder || other === "errors" || other === "options") continue;
      if (below[folder]?.includes(other)) continue;
      wrong.push(
        `src/${file} imports src/${to}: ${folder}/ may import ${below[folder]?.join(", ") || "nothing"}.`,
      );
    }
  }
  expect(wrong).toEqual([]);
});

it("knows every folder of src", () => {
  const folders = readdirSync(src, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  expect(folders.filter((name) => !(name in below))).toEqual([]);
});
