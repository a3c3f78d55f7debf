import { existsSync, readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { capabilities, roleNames } from "./method.ts";
import { adapterKinds, methodById, methodFor, methods, methodsWith } from "./registry.ts";

const here = new URL(".", import.meta.url).pathname;
const reproduce = new URL("../../reproduce", import.meta.url).pathname;
const isThere = methods.filter(({ implementation }) => implementation !== "planned");

describe("the catalogue", () => {
  it("has every published system once, and two halves of one", () => {
    const numbers = methods.flatMap(({ number }) => (number === null ? [] : [number]));
    const all = Array.from({ length: 94 }, (_, i) => i + 1);
    expect(numbers.sort((a, b) => a - b)).toEqual([...all, 35].sort((a, b) => a - b));
    const halves = methods.filter(({ number }) => number === 35);
    expect(halves.map(({ id, capability }) => [id, capability])).toEqual([
      ["continual-inference", "sequence"],
      ["spa", "adapt"],
    ]);
  });

  it("is sorted by ids, each of which, with its aliases, names one method", () => {
    const ids = methods.map(({ id }) => id);
    expect(ids).toEqual([...ids].sort());
    const words = methods.flatMap(({ id, aliases = [] }) => [id, ...aliases]);
    expect(new Set(words).size).toBe(words.length);
  });

  it.each(methods.map((method) => [method.id, method] as const))(
    "says of %s what it is and where it comes from",
    (_, {
      number,
      title,
      capability,
      summary,
      paper,
      roles,
      plannedRoles = [],
      implementation,
    }) => {
      expect(title.trim()).not.toBe("");
      expect(capabilities).toContain(capability);
      expect(summary).toMatch(/^[A-Z].{15,}[^.]\.$/);
      expect(summary.length).toBeLessThanOrEqual(170);
      if (number !== null || paper) {
        expect(paper!.title.length).toBeGreaterThan(5);
        expect(paper!.url).toMatch(/^https:\/\/\S+$/);
        const arxiv = /arxiv\.org\/abs\/(\d\d)\d\d\.\d{4,5}$/.exec(paper!.url);
        // Some are named by the year of their venue.
        const since = arxiv ? paper!.year - 2000 - Number(arxiv[1]) : 0;
        expect([0, 1, 2]).toContain(since);
      }
      const named = [...Object.keys(roles), ...plannedRoles];
      expect(named.length).toBeGreaterThan(0);
      for (const role of named) expect(roleNames).toContain(role);
      if (implementation === "planned") expect(Object.keys(roles)).toEqual([]);
    },
  );

  it.each(isThere.map((method) => [method.id, method] as const))(
    "has %s in the folder of its capability, in a file of its id",
    (id, { capability, buildsOn = [] }) => {
      expect(readdirSync(`${here}${capability}`)).toContain(`${id}.ts`);
      const text = readFileSync(`${here}${capability}/${id}.ts`, "utf8");
      expect(text.startsWith("/**\n")).toBe(true);
      for (const other of buildsOn) expect(methodById(other).id).toBe(other);
    },
  );

  it("claims what the committed experiments say, and nothing without one", () => {
    for (const { id, claim = "notRun" } of methods) {
      const path = `${reproduce}/${id}/result.json`;
      const verdict = existsSync(path)
        ? (JSON.parse(readFileSync(path, "utf8")) as { verdict: string }).verdict
        : "notRun";
      const words: Readonly<Record<string, string>> = { "does not hold": "doesNotHold" };
      expect([id, claim]).toEqual([id, words[verdict] ?? verdict]);
    }
  });

  it("has one kind of adapter for each word that folders have for it", () => {
    const kinds = adapterKinds().map(({ kind }) => kind);
    expect(kinds).toContain("LORA");
    expect(new Set(kinds).size).toBe(kinds.length);
  });
});

describe("asking for a method", () => {
  it("finds it by its id and by its other words", () => {
    expect(methodById("dpo").title).toBe("DPO");
    expect(methodById("reward")).toBe(methodById("reward-model"));
    for (const { roles } of methodsWith("objective"))
      expect(roles.objective.make).toBeTypeOf("function");
  });

  it.each([
    ["dpoo", 'unknown method "dpoo" — did you mean "dpo"? Run "plasticity methods" for the list.'],
    ["zzzzzzzz", 'unknown method "zzzzzzzz" — run "plasticity methods" for the list.'],
  ])("says of %s what is near", (id, message) => {
    expect(() => methodById(id)).toThrow(new OptionError(message));
  });

  it("says what plays a role where one does not", () => {
    const initialisers = methodsWith("adapter").map(({ id }) => id);
    expect(() => methodFor("finetune: --adapter", "dpo", ["adapter"])).toThrow(
      new OptionError(
        `finetune: --adapter cannot be dpo, which is objective — it can be ${initialisers.join(", ")}.`,
      ),
    );
    const planned = methods.find(({ implementation }) => implementation === "planned")!;
    expect(() => methodFor("finetune: --adapter", planned.id, ["adapter"])).toThrow(
      `finetune: --adapter: ${planned.id} is planned and not there yet — there are `,
    );
  });
});
