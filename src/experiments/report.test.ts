import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { resultsTable } from "./report.ts";
import { checkPlan, listExperiments, loadExperiment, readClaim } from "./runner.ts";

const { files } = nodeHost();
const at = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const reproduceFolder = at("reproduce");
const ids = await listExperiments(files, at("src/experiments"), reproduceFolder);

it("the table of committed results is fresh", async () => {
  const table = await files.readText(files.join(reproduceFolder, "README.md"));
  expect(table, 'run "plasticity reproduce --table"').toBe(
    await resultsTable(files, reproduceFolder),
  );
});

it("every claim belongs to an experiment, and names what that has", async () => {
  const claims: string[] = [];
  for (const { path, isDirectory } of await files.list(reproduceFolder)) {
    if (isDirectory && (await files.info(files.join(path, "claim.json")))) {
      claims.push(/([^/\\]+)$/.exec(path)![1]!);
    }
  }
  expect(claims).toEqual(ids);
  for (const id of ids) {
    const experiment = await loadExperiment(id, ids);
    const { claim } = await readClaim(files, files.join(reproduceFolder, id, "claim.json"));
    expect(claim.id).toBe(id);
    for (const budget of ["quick", "full"] as const) {
      expect(checkPlan(experiment, claim, budget, id).allCells).toBeGreaterThan(0);
    }
  }
});
