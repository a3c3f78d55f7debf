/** Where Chromium keeps its software Vulkan driver, and the environment that makes a process use it. */
import { existsSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folders = [
  "/usr/lib/chromium",
  "/usr/lib/chromium-browser",
  "/opt/google/chrome",
  "/opt/chromium.org/chromium",
];

/** The variables to start a process with; `undefined` where there is no Chromium. */
export function swiftShader(): Record<string, string> | undefined {
  const driver = folders
    .map((folder) => join(folder, "vk_swiftshader_icd.json"))
    .find((path) => existsSync(path));
  if (!driver) return undefined;
  return {
    VK_ICD_FILENAMES: driver,
    VK_DRIVER_FILES: driver,
    XDG_RUNTIME_DIR: mkdtempSync(join(tmpdir(), "plasticity-xdg-")),
  };
}
