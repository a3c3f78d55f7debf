/** Lists in pages, by `limit` and `after`. */
import type { PageBody } from "./api-types.ts";
import { wrong } from "./errors.ts";
import type { Call } from "./service.ts";

/**
 * One page of items.
 * @param most the largest `limit`
 * @throws ApiError 400 for a limit outside its range or an item that is not there.
 */
export function pageOf<T extends { readonly id: string }>(
  call: Call,
  items: readonly T[],
  usual: number,
  most: number,
): PageBody<T> {
  const given = call.req.query("limit");
  if (given !== undefined && !/^\d{1,6}$/.test(given)) {
    throw wrong(`Invalid 'limit': expected a whole number from 1 to ${most}.`, "limit");
  }
  const limit = given === undefined ? usual : Number(given);
  if (limit < 1 || limit > most) {
    throw wrong(
      `Invalid 'limit': expected a whole number from 1 to ${most}, but got ${limit}.`,
      "limit",
    );
  }
  const after = call.req.query("after");
  let from = 0;
  if (after !== undefined) {
    from = items.findIndex(({ id }) => id === after) + 1;
    if (from === 0) throw wrong("Invalid 'after': there is no such item.", "after");
  }
  const data = items.slice(from, from + limit);
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: from + limit < items.length,
  };
}
