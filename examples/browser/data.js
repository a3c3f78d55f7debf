/** What a visitor may paste: JSON lines, `prompt => completion` lines, or plain paragraphs. */
import { OptionError, readExamples } from "plasticity";

const arrow = " => ";

export async function readText(files, text) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== "");
  if (lines.length === 0)
    throw new OptionError("The text is empty — paste some, or use the sample.");
  if (lines[0].trimStart().startsWith("{")) {
    await files.writeText("data.jsonl", lines.join("\n"));
    return readExamples(files, "data.jsonl");
  }
  if (lines[0].includes(arrow)) {
    return lines.map((line, i) => {
      const at = line.indexOf(arrow);
      if (at > 0) {
        const [prompt, completion] = [line.slice(0, at), line.slice(at + arrow.length)];
        return { kind: "pair", prompt: prompt.trim(), completion: completion.trim() };
      }
      throw new OptionError(
        `Line ${i + 1}: has no “${arrow.trim()}” between prompt and completion, as the first line has — add it, or leave it out everywhere.`,
      );
    });
  }
  await files.writeText("data.txt", text);
  return readExamples(files, "data.txt");
}
