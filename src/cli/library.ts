/** What commands use: the library, and this machine. */
export { nodeHost } from "../host/node.ts";
export * from "../index.ts";
