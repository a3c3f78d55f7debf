import { expect, it } from "vitest";
import { nodeHost } from "../../host/node.ts";
import { hubCacheDir, hubSettings } from "./settings.ts";

const settingsWith = (
  env: Record<string, string>,
  options: Parameters<typeof hubSettings>[1] = {},
): ReturnType<typeof hubSettings> =>
  hubSettings({ ...nodeHost(), env: (name) => env[name] }, options);

const cacheWith = (env: Record<string, string>): string =>
  hubCacheDir((name) => env[name], nodeHost().files.join);

it("finds the cache where huggingface_hub has it", () => {
  const HOME = "/people/ada";
  expect(cacheWith({ HOME })).toBe("/people/ada/.cache/huggingface/hub");
  expect(cacheWith({ HOME, XDG_CACHE_HOME: "/x" })).toBe("/x/huggingface/hub");
  expect(cacheWith({ HOME, XDG_CACHE_HOME: "/x", HF_HOME: "~/hf" })).toBe("/people/ada/hf/hub");
  expect(cacheWith({ HOME, HF_HOME: "/hf", HF_HUB_CACHE: "/cache" })).toBe("/cache");
  expect(cacheWith({})).toBe("huggingface/hub");
});

it("is offline by either variable, unless the call says otherwise", async () => {
  for (const value of ["1", "true", "YES", "on"]) {
    expect((await settingsWith({ HF_HUB_OFFLINE: value })).isOffline).toBe(true);
    expect((await settingsWith({ TRANSFORMERS_OFFLINE: value })).isOffline).toBe(true);
  }
  for (const value of ["0", "", "no"]) {
    expect((await settingsWith({ HF_HUB_OFFLINE: value })).isOffline).toBe(false);
  }
  expect((await settingsWith({ HF_HUB_OFFLINE: "1" }, { offline: false })).isOffline).toBe(false);
});

it("takes the token of the call, then of the environment in order", async () => {
  const env = { HF_TOKEN: " hf_a\n", HUGGING_FACE_HUB_TOKEN: "hf_b" };
  expect((await settingsWith(env)).token).toBe("hf_a");
  expect((await settingsWith({ ...env, HF_TOKEN: "" })).token).toBe("hf_b");
  expect((await settingsWith(env, { token: "hf_c" })).token).toBe("hf_c");
  expect((await settingsWith(env, { token: "" })).token).toBeUndefined();
  const implicit = { ...env, HF_HUB_DISABLE_IMPLICIT_TOKEN: "1" };
  expect((await settingsWith(implicit)).token).toBeUndefined();
});

it("says that a token cannot be one without showing it", async () => {
  const error = await settingsWith({ HF_TOKEN: "hf_geheim é" }).catch((thrown: Error) => thrown);
  expect(String(error)).toMatch(/HF_TOKEN: holds 11 characters that are no token/);
  expect(String((error as Error).stack)).not.toContain("geheim");
});

it("takes https, http only to this machine, and no passwords", async () => {
  const endpointOf = async (HF_ENDPOINT: string): Promise<string> =>
    (await settingsWith({ HF_ENDPOINT })).endpoint.href;
  expect(await endpointOf("https://mirror.example/hf/")).toBe("https://mirror.example/hf");
  expect(await endpointOf("http://localhost:8080")).toBe("http://localhost:8080/");
  expect(await endpointOf("http://[::1]:8080")).toBe("http://[::1]:8080/");
  await expect(endpointOf("http://mirror.example")).rejects.toThrow(
    "HF_ENDPOINT: http://mirror.example must be an https address",
  );
  await expect(endpointOf("http://127.0.0.1.example")).rejects.toThrow("must be an https address");
  await expect(endpointOf("file:///etc")).rejects.toThrow("must be an https address");
  await expect(endpointOf("mirror")).rejects.toThrow("HF_ENDPOINT: not an address");
  const error = await endpointOf("https://me:geheim@mirror.example").catch((thrown) => thrown);
  expect(String(error)).toMatch(/mirror.example is given with a password/);
  expect(String(error)).not.toContain("geheim");
});
