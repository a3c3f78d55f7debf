/**
 * Replay: a share of every batch is text of the kind that the model knows, so that it does not forget it.
 *
 * Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019, arXiv:1811.11682; the mixing and
 * what is known of good shares in `train/objectives/replay.ts`.
 */
import { replaySet } from "../../train/objectives/replay.ts";
import { defineMethod, type Method } from "../method.ts";

export interface ReplayMethodOptions {
  /** Of every batch. */
  readonly replayShare?: number;
}

export const replay: Method<ReplayMethodOptions> = defineMethod<ReplayMethodOptions>({
  id: "replay",
  number: null,
  title: "Replay",
  capability: "continual",
  summary: "Takes a share of every batch from text of the kind that the model knows already.",
  paper: {
    title: "Experience Replay for Continual Learning",
    year: 2018,
    url: "https://arxiv.org/abs/1811.11682",
  },
  implementation: "faithful",
  options: {
    replayShare: {
      type: "number",
      default: 0.05,
      range: [1e-4, 0.9999],
      about: "share of every batch that is replayed",
    },
  },
  roles: {
    dataPolicy: {
      files: ["replay"],
      apply: ({ train, files }, { replayShare: share }) =>
        replaySet(train, files["replay"]!, share === undefined ? {} : { share }),
    },
  },
});
