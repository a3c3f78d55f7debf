/** Optimisers, schedules, bounds on gradients and parameter groups, in one place. */
export * from "./adafactor.ts";
export * from "./adamw.ts";
export * from "./by-name.ts";
export * from "./clip.ts";
export * from "./groups.ts";
export * from "./lion.ts";
export * from "./muon.ts";
export * from "./optimizer.ts";
export * from "./schedule.ts";
export * from "./sgd.ts";
