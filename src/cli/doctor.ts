/** `plasticity doctor`: look at this machine and say what is amiss. */
import { readFileSync } from "node:fs";
import type { Command, CommandContext } from "./command.ts";
import {
  type Check,
  checkCpu,
  checkDisk,
  checkEngine,
  checkEnvironment,
  checkLibc,
  checkMemory,
  checkNode,
  checkPackages,
  checkPlatform,
  checkWebGpu,
} from "./doctor/checks.ts";
import { packagePath } from "./models.ts";

const colors = { ok: "green", warn: "yellow", fail: "red" } as const;

async function run({ host, output, options }: CommandContext): Promise<void> {
  const own = JSON.parse(readFileSync(packagePath("package.json"), "utf8")) as {
    version: string;
    dependencies: Record<string, string>;
  };
  output.progress("measuring for about two seconds");
  const { checks: engine, speeds } = await checkEngine();
  const checks: Check[] = [
    { name: "plasticity", state: "ok", found: own.version },
    checkNode(process.version),
    checkPlatform(process.platform, process.arch),
    ...checkLibc(),
    await checkCpu(),
    checkMemory(),
    ...(await checkPackages(own.dependencies)),
    ...engine,
    ...(options["skip-webgpu"] === true ? [] : [await checkWebGpu()]),
    ...(await checkDisk(process.cwd())),
    checkEnvironment(host.env),
  ];
  const width = Math.max(...checks.map(({ name }) => name.length));
  for (const { name, state, found, advice } of checks) {
    const mark = output.style(state.padEnd(4), colors[state]);
    output.line(`${mark}  ${name.padEnd(width)}  ${found}`);
    if (advice) output.line(`${" ".repeat(width + 8)}→ ${advice}`);
  }
  const count = (state: Check["state"]): number =>
    checks.filter((check) => check.state === state).length;
  const failed = count("fail");
  output.line();
  output.line(
    failed > 0
      ? `${failed} needed thing${failed > 1 ? "s" : ""} failed.`
      : count("warn") > 0
        ? "All that is needed is there."
        : "All is well.",
  );
  output.json({ ok: failed === 0, checks, gflops: speeds });
  if (failed > 0) process.exitCode = 1;
}

export const doctorCommand: Command = {
  name: "doctor",
  summary: "look at this machine and say what is amiss; exit code 1 when something needed failed",
  usage: "plasticity doctor [--skip-webgpu]",
  example: "plasticity doctor",
  options: {
    "skip-webgpu": { type: "flag", about: "do not try WebGPU, which may take some seconds" },
  },
  run,
};
