/** Fixed linear maps along one axis, as the graph has them. */
export { alongAxis, fixedMatrix, type Row } from "../ir/interpolate.ts";
