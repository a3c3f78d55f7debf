/** Drafters from methods, and methods as people write them. */
import type { Drafter } from "../../infer/drafter.ts";
import { type GivenOptions, parseNamed, readOptions } from "../../options.ts";
import type { DecoderRole } from "../method.ts";
import { type MethodWith, methodFor } from "../registry.ts";

/** What a drafter is made for. */
export type DraftScene = Parameters<DecoderRole<never>["make"]>[0];

/** A method that drafts. */
export type DraftMethod = Pick<MethodWith<"decoder">, "id" | "options"> & {
  // biome-ignore lint/suspicious/noExplicitAny: options are read by their description.
  readonly roles: { readonly decoder?: DecoderRole<any> };
};

/**
 * A drafter of a method with a decoder role.
 * @param options values, or text that is read by the options' description
 * @throws OptionError for an unknown option or a value outside its range, and as the role's `make`.
 */
export function makeDrafter(
  { id, options: specs, roles }: DraftMethod,
  scene: DraftScene,
  options: GivenOptions = {},
): Drafter {
  return roles.decoder!.make(scene, readOptions(id, specs as never, options));
}

export interface NamedDrafter {
  readonly id: string;
  readonly corpus: DecoderRole<never>["corpus"];
  make(scene: DraftScene): Drafter;
}

/**
 * Reads `aded`, or `aded:depth=8,nodes=15`.
 * @param where begins an error
 * @throws OptionError for an id without a decoder role, an unknown option or a value outside its range.
 */
export function parseDrafter(where: string, text: string): NamedDrafter {
  const { id, options } = parseNamed(where, text);
  const method = methodFor(where, id, ["decoder"]);
  const read = readOptions(method.id, method.options as never, options);
  const decoder = method.roles.decoder!;
  return { id: method.id, corpus: decoder.corpus, make: (scene) => decoder.make(scene, read) };
}
