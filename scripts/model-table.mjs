/**
 * Writes the table of docs/models.md from the fixtures: `npx tsx scripts/model-table.mjs`. With `--records`
 * it prints the numbers of each record instead.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { modelNumbers } from "../test/support/model-numbers.ts";
import { modelTable, tableEnd, tableStart } from "../test/support/model-table.ts";

const numbers = await modelNumbers();
if (process.argv.includes("--records")) {
  for (const { record, family, outputs, gradients } of numbers) {
    process.stdout.write(
      `${record.padEnd(32)} ${family.padEnd(18)} outputs ${outputs.toExponential(1)}  gradients ${gradients.toExponential(1)}\n`,
    );
  }
} else {
  const path = new URL("../docs/models.md", import.meta.url);
  const text = readFileSync(path, "utf8");
  const [start, end] = [text.indexOf(tableStart), text.indexOf(tableEnd)];
  if (start < 0 || end < start) throw new Error(`docs/models.md lacks "${tableStart}" or its end.`);
  const lines = [tableStart, "", ...modelTable(numbers), "", ""];
  writeFileSync(path, text.slice(0, start) + lines.join("\n") + text.slice(end));
}
