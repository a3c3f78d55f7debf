/** Every method that merges, and the engine that runs them. */

import type { AnyMethod } from "../method.ts";
import { methodsWith } from "../registry.ts";

export { type MergeConfig, readMergeConfig } from "./shared/config.ts";
export {
  type MergedReport,
  type MergeProgress,
  type OpenedMerge,
  openMerge,
  type ResolveModel,
  type RunMergeOptions,
  resolveFolders,
} from "./shared/engine.ts";
export {
  type Breadcrumb,
  type BreadcrumbOptions,
  BreadcrumbPool,
  breadcrumb,
  mergeBreadcrumbs,
} from "./shared/pool.ts";

/** Those of the registry. */
export const mergeMethods: readonly AnyMethod[] = methodsWith("merge");
