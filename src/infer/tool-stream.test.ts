import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import { toolFormats } from "./tool-calls.ts";
import { type AnswerDelta, callIds, readToolAnswer, ToolStream } from "./tool-stream.ts";

const format = (id: string): (typeof toolFormats)[number] =>
  toolFormats.find((one) => one.id === id)!;

const args = '{"city": "Os\\"lo }{", "n": [1, {"x": null}]}';
const call = `{"name": "f", "arguments": ${args}}`;
const calls = [
  { id: "0", name: "f", arguments: args },
  { id: "1", name: "g", arguments: "{}" },
];

/** Pieces joined as a client joins them. */
function join(deltas: readonly AnswerDelta[]): unknown {
  const made: { id: string; name: string; arguments: string }[] = [];
  let text = "";
  for (const delta of deltas) {
    if (delta.kind === "text") text += delta.text;
    else if (delta.kind === "call") {
      expect(delta.index).toBe(made.length);
      made.push({ id: delta.id, name: delta.name, arguments: "" });
    } else made[delta.index]!.arguments += delta.text;
  }
  return { text, calls: made };
}

const ids = (): (() => string) => {
  let next = 0;
  return () => String(next++);
};

const whole: readonly (readonly [format: string, text: string, answer: unknown])[] = [
  ["hermes", "Just < text <tool_cal", { text: "Just < text <tool_cal", calls: [] }],
  ["hermes", `<tool_call>\n${call}\n</tool_call>`, { text: "", calls: calls.slice(0, 1) }],
  [
    "hermes",
    `Let me see.\n<tool_call>\n${call}\n</tool_call>\n<tool_call>{"name":"g","arguments":{}}</tool_call>`,
    { text: "Let me see.", calls },
  ],
  ["hermes", `<tool_call>${call}</tool_call>\nDone.`, { text: "Done.", calls: calls.slice(0, 1) }],
  [
    "hermes",
    "<tool_call>no call</tool_call>",
    { text: "<tool_call>no call</tool_call>", calls: [] },
  ],
  ["hermes", '<tool_call>{"nam', { text: '<tool_call>{"nam', calls: [] }],
  [
    "hermes",
    '<tool_call>{"x": 1}</tool_call>',
    { text: '<tool_call>{"x": 1}</tool_call>', calls: [] },
  ],
  [
    "hermes",
    '<tool_call>{"name": "f", "arguments": {"a"',
    { text: "", calls: [{ id: "0", name: "f", arguments: '{"a"' }] },
  ],
  // The other way round, with other keys, and arguments as a text.
  [
    "hermes",
    `<tool_call>{"arguments": ${args}, "id": 3, "name": "f"}</tool_call>`,
    { text: "", calls: calls.slice(0, 1) },
  ],
  [
    "hermes",
    `<tool_call>{"name": "f", "arguments": ${JSON.stringify(args)}}</tool_call>`,
    { text: "", calls: calls.slice(0, 1) },
  ],
  ["mistral", `[TOOL_CALLS] [${call}, {"name": "g", "arguments": {}}]`, { text: "", calls }],
  [
    "mistral",
    `A [list] first. [TOOL_CALLS][${call}]`,
    { text: "A [list] first.", calls: calls.slice(0, 1) },
  ],
  ["phi", `<|tool_call|>[${call},{"name":"g","arguments":{}}]<|/tool_call|>`, { text: "", calls }],
  ["llama3", call.replace("arguments", "parameters"), { text: "", calls: calls.slice(0, 1) }],
  ["json", "  No { call }", { text: "  No { call }", calls: [] }],
  ["json", '{"answer": 42}', { text: '{"answer": 42}', calls: [] }],
  ["json", "", { text: "", calls: [] }],
];

describe("an answer with calls", () => {
  it.each(whole)("in the form of %s is taken apart: %s", (id, text, answer) => {
    expect(readToolAnswer(text, format(id), ids())).toEqual(answer);
  });

  it("is the same however it is cut", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...whole),
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 200, maxLength: 200 }),
        ([id, text, answer], sizes) => {
          const stream = new ToolStream(format(id), ids());
          const deltas: AnswerDelta[] = [];
          let at = 0;
          for (const size of sizes) {
            deltas.push(...stream.push(text.slice(at, at + size)));
            at += size;
          }
          expect(join([...deltas, ...stream.end()])).toEqual(answer);
        },
      ),
      { seed: 5, numRuns: 300 },
    );
  });

  it("gives text and arguments as soon as they are certain", () => {
    const stream = new ToolStream(format("hermes"), ids());
    expect(stream.push("Hello ")).toEqual([{ kind: "text", text: "Hello" }]);
    expect(stream.push("you <")).toEqual([{ kind: "text", text: " you" }]);
    expect(stream.push("3")).toEqual([{ kind: "text", text: " <3" }]);
    expect(stream.push('<tool_call>{"name": "f", "argu')).toEqual([
      { kind: "call", index: 0, id: "0", name: "f" },
    ]);
    expect(stream.push('ments": {"a": "b')).toEqual([
      { kind: "arguments", index: 0, text: '{"a": "b' },
    ]);
    expect(stream.push('c"}')).toEqual([{ kind: "arguments", index: 0, text: 'c"}' }]);
    expect(stream.push("}\n</tool_call>")).toEqual([]);
    expect([stream.end(), stream.calls]).toEqual([[], 1]);
  });

  it("has ids of its format's length, the same for a seed", () => {
    const [a, b] = [callIds(format("hermes"), new Rng(1)), callIds(format("hermes"), new Rng(1))];
    const first = a();
    expect(first).toMatch(/^call_[A-Za-z0-9]{24}$/);
    expect(b()).toBe(first);
    expect(a()).not.toBe(first);
    expect(callIds(format("mistral"), new Rng(2))()).toMatch(/^[A-Za-z0-9]{9}$/);
  });
});
