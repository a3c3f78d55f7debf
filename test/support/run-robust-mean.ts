/** Runs the experiment of `robust-mean.ts` in a process of its own, and kills it after some cells if asked to. */
import { reference } from "../../src/backend/reference/reference.ts";
import { reproduce } from "../../src/experiments/runner.ts";
import { nodeHost } from "../../src/host/node.ts";
import { nodePackages } from "../../src/host/node-packages.ts";
import { experiment } from "./robust-mean.ts";

const [folder, killAfter] = process.argv.slice(2) as [string, string?];
let made = 0;
const result = await reproduce({
  experiment,
  claimFile: `${folder}/claim.json`,
  budget: "full",
  host: nodeHost(),
  packages: nodePackages(`${folder}/cache`),
  openBackend: async () => reference(),
  provenance: { machine: { cores: 1 }, packageVersion: "0" },
  onCell: (_, isCached) => {
    if (!isCached && ++made === Number(killAfter)) process.kill(process.pid, "SIGKILL");
  },
});
process.stdout.write(JSON.stringify({ made, result }));
