import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MissingError, PlasticityError, StateError } from "../errors.ts";
import { nodeHost } from "./node.ts";
import { type Barrier, type Doing, namedBySystem, systemError } from "./node-errors.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-system-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const { files } = nodeHost();

beforeAll(() => {
  writeFileSync(at("file"), "text");
  mkdirSync(at("folder"));
  symlinkSync("circle", at("circle"));
});

/** What a promise fails with. */
async function failure(work: Promise<unknown>): Promise<PlasticityError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(PlasticityError);
  return error as PlasticityError;
}

describe("what the system really refuses", () => {
  const isLinux = process.platform === "linux";
  const long = "x".repeat(300);
  const cases: [string, string, () => Promise<unknown>, string][] = [
    [
      "a name too long",
      "ENAMETOOLONG",
      () => files.readText(at(long)),
      "PATH: the name is too long for the file system — choose a shorter one.",
    ],
    [
      "a circle of links",
      "ELOOP",
      () => files.readText(at("circle")),
      "PATH: its links lead in a circle, or through too many others — look where they point.",
    ],
    [
      "a file where a folder is to be",
      "EEXIST",
      () => files.makeDirectory(at("file")),
      "PATH: is a file, a folder is needed — choose another path.",
    ],
    [
      "a file in a new folder's path",
      "ENOTDIR",
      () => files.makeDirectory(at("file", "a", "b")),
      `PATH: ${at("file")} is a file, a folder is needed there — choose another path.`,
    ],
    [
      "a file in a new file's path",
      "ENOTDIR",
      () => files.writeText(at("file", "new"), ""),
      `PATH: ${at("file")} is a file, a folder is needed there — choose another path.`,
    ],
    [
      "a folder in a file's place",
      "EISDIR",
      () => files.writeText(at("folder"), ""),
      "PATH: is a folder, a file is needed — check the path.",
    ],
    [
      "a folder to add a line to",
      "EISDIR",
      () => files.append(at("folder"), "line"),
      "PATH: is a folder, a file is needed — check the path.",
    ],
    [
      "no folder to write in",
      "ENOENT",
      () => files.writeText(at("none", "new"), ""),
      "PATH: no such file or folder — check the path.",
    ],
    [
      "a lock in no folder",
      "ENOENT",
      () => files.lock(at("none", "lock")),
      "PATH: no such file or folder — check the path.",
    ],
    ...(isLinux
      ? ([
          [
            "a full disk",
            "ENOSPC",
            () => files.append("/dev/full", "line"),
            "PATH: cannot be written, the disk is full — make room and try again; what was there before is unchanged.",
          ],
          [
            "a disk that fails",
            "EIO",
            async () => {
              for await (const _ of files.stream("/proc/self/mem"));
            },
            "PATH: cannot be read, the disk reports a fault (EIO) — check the disk, and use a copy on another one.",
          ],
        ] satisfies [string, string, () => Promise<unknown>, string][])
      : []),
  ];

  it.each(cases)("%s (%s)", async (_, errno, work, sentence) => {
    const before = readdirSync(root);
    const error = await failure(work());
    const path = error.details["path"] as string;
    const shown = path.length > 300 ? `${path.slice(0, 200)}…${path.slice(-80)}` : path;
    expect(error.message).toBe(sentence.replace("PATH", shown));
    expect(error.details["errno"]).toBe(errno);
    expect((error.cause as NodeJS.ErrnoException).code).toBe(errno);
    expect(readdirSync(root)).toEqual(before);
    expect(readFileSync(at("file"), "utf8")).toBe("text");
  });

  it("a file listed as a folder", async () => {
    const error = await failure(files.list(at("file")));
    expect(error.message).toBe(`${at("file")}: is a file, a folder is needed — check the path.`);
    expect(await files.info(at("file", "inner"))).toBeUndefined();
  });
});

describe("systemError", () => {
  const system = (code: string): Error =>
    Object.assign(new Error(`${code}: of the system`), { code });
  const again = "and try again";
  const gone = `the disk or the network behind it does not answer`;

  it.each<[string, Doing, string, Barrier?]>([
    [
      "EDQUOT",
      "write",
      `cannot be written, your quota on this disk is used up — make room ${again}; what was there before is unchanged.`,
    ],
    [
      "EROFS",
      "make",
      "cannot be made, its file system is read-only — choose a folder on another one.",
    ],
    [
      "EROFS",
      "remove",
      "cannot be removed, its file system is read-only — choose a folder on another one.",
    ],
    [
      "ENFILE",
      "read",
      `cannot be read, the system has too many files open — end other programs ${again}.`,
    ],
    ["EBUSY", "write", `cannot be written, it is in use (EBUSY) — end what uses it ${again}.`],
    [
      "ENOTEMPTY",
      "remove",
      `cannot be removed, something was put into the folder meanwhile — look at it ${again}.`,
    ],
    [
      "EXDEV",
      "write",
      "cannot be written, it lies on another file system than its temporary file — choose a plain folder.",
    ],
    ["ESTALE", "read", `cannot be read, ${gone} (ESTALE) — check that it is there ${again}.`],
    [
      "EACCES",
      "remove",
      "no permission to remove it — change the permissions there, or choose another place.",
    ],
    [
      "EPERM",
      "write",
      "no permission to write in /a — change the permissions there, or choose another place.",
      { need: "write", path: "/a" },
    ],
    [
      "EACCES",
      "write",
      "no permission to write it — change the permissions there, or choose another place.",
      { need: "write", path: "/a/b" },
    ],
  ])("has a sentence for %s (%s)", (code, doing, sentence, barrier) => {
    const cause = system(code);
    const error = systemError(cause, "/a/b", doing, barrier) as PlasticityError;
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toBe(`/a/b: ${sentence}`);
    expect([error.details, error.cause]).toEqual([{ path: "/a/b", errno: code }, cause]);
  });

  it("leaves what is none of the system's, and our own errors, as they are", () => {
    for (const error of [new TypeError("x"), system("EBADF"), new MissingError("gone"), "text"]) {
      expect(systemError(error, "/a", "read")).toBe(error);
      expect(namedBySystem(error)).toBe(error);
    }
  });

  it("names the path that Node notes", () => {
    const error = Object.assign(system("EROFS"), { path: "/a/b", syscall: "open" });
    expect((namedBySystem(error) as Error).message).toBe(
      "/a/b: cannot be read, its file system is read-only — choose a folder on another one.",
    );
  });
});
