/** Layers, in one place for those who build models. */
export * from "./attention.ts";
export * from "./embedding.ts";
export * from "./init.ts";
export * from "./linear.ts";
export * from "./losses.ts";
export * from "./module.ts";
export * from "./norm.ts";
export * from "./rope.ts";
