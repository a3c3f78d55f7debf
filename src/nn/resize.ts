/** Changing the sampling of images; both are operators of the graph. */
export {
  type GridSampleOptions,
  gridSample,
  type ResizeOptions,
  resize,
} from "../ir/resample.ts";
