import { expect, it } from "vitest";
import { checkRevision, isSafePath, parseHubId } from "./id.ts";

it("reads names, revisions and files", () => {
  expect(parseHubId("org/name")).toEqual({ repo: "org/name" });
  expect(parseHubId("org/name@v1.0")).toEqual({ repo: "org/name", revision: "v1.0" });
  expect(parseHubId("org/name@refs/pr/1")).toEqual({ repo: "org/name", revision: "refs/pr/1" });
  expect(parseHubId("o-1/n.2_x:q4/a.gguf")).toEqual({ repo: "o-1/n.2_x", file: "q4/a.gguf" });
  expect(parseHubId("org/name@next:a.gguf")).toEqual({
    repo: "org/name",
    revision: "next",
    file: "a.gguf",
  });
});

it("takes paths for no names", () => {
  for (const path of [
    "name",
    "./org/name",
    "../name",
    "/org/name",
    "~/name",
    "a/b/c",
    "org/",
    "org/-name",
    "org/na--me",
    "org/name.git",
    "C:\\models\\a",
    "org\\name",
    `org/${"n".repeat(97)}`,
    "",
  ]) {
    expect(parseHubId(path), path).toBeUndefined();
  }
});

it("refuses revisions and files that would leave their folder", () => {
  for (const revision of ["..", "a/../b", "/a", "a//b", ".git", "-x", "a b", "", "a\0"]) {
    expect(() => checkRevision(revision, "org/name"), revision).toThrow(/cannot name a revision/);
  }
  expect(() => parseHubId("org/name@../x")).toThrow(/cannot name a revision/);
  expect(() => parseHubId("org/name:../x.gguf")).toThrow(
    'org/name:../x.gguf: "../x.gguf" cannot name a file of a repository',
  );
  for (const path of ["../a", "a/../../b", "/a", "a\\b", "C:a", "a//b", "a/.", "", "a\u0000b"]) {
    expect(isSafePath(path), path).toBe(false);
  }
  expect(isSafePath("größe/model-00001-of-00002.safetensors")).toBe(true);
});
