import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { commandHelp, type OptionTable, oneOf, parseOptions, wholeFrom } from "./command.ts";

const options: OptionTable = {
  stop: { type: "string", value: "text", about: "ends the answer", many: true },
  map: { type: "string", about: "a column", many: true, check: oneOf("a=b", "c=d") },
  count: { type: "number", about: "how many", default: 3, check: wholeFrom(1, 9), group: "Amount" },
  fast: { type: "flag", about: "hurry" },
  rate: { type: "number", about: "how fast", group: "Speed" },
  share: { type: "number", about: "how much", group: "Amount" },
};
const parse = (...args: string[]) => parseOptions({ name: "test", options }, args).options;

describe("parseOptions", () => {
  it("gives every value of an option that may be given again, in order", () => {
    expect(parse("--stop", "a", "--fast", "--stop=", "--stop", "b")).toEqual({
      stop: ["a", "", "b"],
      fast: true,
      count: 3,
    });
    expect(parse("--stop=x")).toMatchObject({ stop: ["x"] });
    expect(parse()["stop"]).toBeUndefined();
  });

  it("keeps the last value of an option that takes one", () => {
    expect(parse("--count", "4", "--count=5")["count"]).toBe(5);
  });

  it("checks each of several values", () => {
    expect(parse("--map", "c=d", "--map=a=b")["map"]).toEqual(["c=d", "a=b"]);
    expect(() => parse("--map", "a=b", "--map", "a")).toThrow(
      new OptionError('test: --map must be a=b or c=d, got "a".'),
    );
  });
});

describe("commandHelp", () => {
  it("puts options under their headings, those without one first", () => {
    const command = { name: "test", summary: "try", usage: "plasticity test", example: "x" };
    expect(commandHelp({ ...command, options })).toBe(
      [
        "plasticity test: try",
        "",
        "Usage: plasticity test",
        "",
        "  --stop <text>     ends the answer (may be given again)",
        "  --map <string>    a column (may be given again)",
        "  --fast            hurry",
        "  --json            print the result as one line of JSON",
        "",
        "Amount:",
        "  --count <number>  how many (default 3)",
        "  --share <number>  how much",
        "",
        "Speed:",
        "  --rate <number>   how fast",
        "",
        "Example: x",
      ].join("\n"),
    );
  });

  it("wraps what does not fit beside the names, and keeps to the screen", () => {
    const about = "a text of some length that goes on and on, and does not end before it has to";
    const command = {
      name: "test",
      summary: "try",
      usage: "plasticity test",
      example: "x",
      options: { "with-a-long-name": { type: "string", about } },
    } as const;
    const lines = commandHelp(command, 60).split("\n");
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(60);
    expect(lines.slice(4, 8)).toEqual([
      "  --with-a-long-name <string>  a text of some length that",
      "                               goes on and on, and does not",
      "                               end before it has to",
      "  --json                       print the result as one line",
    ]);
  });
});
