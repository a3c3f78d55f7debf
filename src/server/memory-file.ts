/** Bytes in memory as the one file there is, for readers of data that take files. */
import type { OpenFile } from "../host/host.ts";
import { type Files, MissingError, StateError } from "../index.ts";

const pieceBytes = 2 ** 16;

/** Lets others have their turn: reading a large file in one go would keep every client waiting. */
const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

/** @param path the name under which it is read, and which begins errors about it */
export function memoryFile(path: string, bytes: Uint8Array<ArrayBuffer>): Files {
  const info = { path, bytes: bytes.length, isDirectory: false };
  const need = (asked: string): void => {
    if (asked !== path) throw new MissingError(`${asked}: is not there.`, { path: asked });
  };
  const readOnly = async (): Promise<never> => {
    throw new StateError(`${path}: can only be read.`, { path });
  };
  return {
    info: async (asked) => (asked === path ? info : undefined),
    list: async () => [info],
    open: async (asked): Promise<OpenFile> => {
      need(asked);
      return {
        path,
        bytes: bytes.length,
        read: async (into, offset) => {
          await turn();
          into.set(bytes.subarray(offset, offset + into.length));
        },
        close: async () => {},
      };
    },
    async *stream(asked) {
      need(asked);
      for (let at = 0; at < bytes.length; at += pieceBytes) {
        await turn();
        yield bytes.subarray(at, at + pieceBytes);
      }
    },
    readBytes: async (asked) => {
      need(asked);
      return bytes;
    },
    readText: async (asked) => {
      need(asked);
      return new TextDecoder().decode(bytes);
    },
    writeText: readOnly,
    writeBytes: readOnly,
    append: readOnly,
    create: readOnly,
    makeDirectory: readOnly,
    remove: readOnly,
    lock: readOnly,
    join: (...parts) => parts.join("/"),
  };
}
