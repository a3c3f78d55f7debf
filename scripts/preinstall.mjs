/**
 * Runs before the install scripts of our dependencies. That of onnxruntime-node downloads CUDA
 * libraries from outside the npm registry and fails where only the registry is reachable, though its
 * CPU and WebGPU binaries are inside the package. Unless the user asks for CUDA in one of the ways
 * that its documentation names, we let it finish without the download.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const asked = ["ONNXRUNTIME_NODE_INSTALL", "ONNXRUNTIME_NODE_INSTALL_CUDA"].some(
  (name) => process.env[name] ?? process.env[`npm_config_${name.toLowerCase()}`],
);

function findScript() {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const path = join(folder, "node_modules", "onnxruntime-node", "script", "install.js");
    if (existsSync(path)) return path;
    if (dirname(folder) === folder) return undefined;
  }
}

const script = asked ? undefined : findScript();
const mark = "// plasticity: no download unless asked";
if (script) {
  const text = readFileSync(script, "utf8");
  if (!text.startsWith(mark)) {
    const guard = `${mark}\nif (!process.env.ONNXRUNTIME_NODE_INSTALL) process.exit(0);\n`;
    writeFileSync(script, guard + text);
  }
}
