/** Every deterministic method against mergekit, by mergekit's own configurations on folders. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { fixture } from "../../../test/support/fixture.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { nodeHost } from "../../host/node.ts";
import { openCheckpoint } from "../../io/checkpoint.ts";
import { writeSafetensors } from "../../io/safetensors.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { mergeMethods, openMerge, readMergeConfig } from "./index.ts";
import { chancesByRank } from "./shared/sparsify.ts";
import { combine, taskVector } from "./shared/task-vectors.ts";

type Layout = readonly (readonly [name: string, shape: readonly number[]])[];

interface Recorded {
  readonly config: object;
  readonly layout: Layout;
  readonly models: Readonly<Record<string, string>>;
  readonly cases: readonly {
    readonly title: string;
    readonly config: string;
    readonly layout?: Layout;
    readonly weights: string;
  }[];
}

const recorded = fixture<Recorded>("merge");
const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-merge-parity-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function tensorsOf(text: string, layout: Layout): Map<string, Tensor<"float32">> {
  const bytes = Uint8Array.from(Buffer.from(text, "base64"));
  const numbers = new Float32Array(bytes.buffer);
  const tensors = new Map<string, Tensor<"float32">>();
  let at = 0;
  for (const [name, shape] of layout) {
    const size = shape.reduce((a, b) => a * b, 1);
    tensors.set(name, new Tensor("float32", shape, numbers.slice(at, at + size)));
    at += size;
  }
  expect(at).toBe(numbers.length);
  return tensors;
}

const models = new Map(
  Object.entries(recorded.models).map(([name, text]) => [name, tensorsOf(text, recorded.layout)]),
);

beforeAll(async () => {
  for (const [name, tensors] of models) {
    await files.makeDirectory(join(root, name));
    await writeSafetensors(files, join(root, name, "model.safetensors"), tensors);
    writeFileSync(join(root, name, "config.json"), JSON.stringify(recorded.config));
  }
});

const isSampled = (title: string): boolean => title.startsWith("della");
const cases = recorded.cases.map((one, i) => ({ ...one, out: join(root, `out-${i}`) }));

describe("mergekit's numbers", () => {
  it.each(cases.filter(({ title }) => !isSampled(title)))(
    "$title",
    async ({ config, layout = recorded.layout, weights, out }) => {
      const merge = await openMerge(
        files,
        readMergeConfig(config, "config.yml"),
        mergeMethods,
        async (name) => ({ model: join(root, name) }),
      );
      try {
        const report = await merge.run(out);
        expect(report.notTried).toBe("no engine was given");
      } finally {
        await merge.close();
      }
      const merged = await openCheckpoint(files, out);
      const expected = tensorsOf(weights, layout);
      expect([...merged.entries.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [name, tensor] of expected) {
        allclose(await merged.read(name), tensor, tolerance.float32, name);
      }
      await merged.close();
    },
  );

  it("of DELLA's chances, by the expectation of its mask", () => {
    const { weights } = cases.find(({ title }) => isSampled(title))!;
    const base = models.get("base")!;
    for (const [name, expected] of tensorsOf(weights, recorded.layout)) {
      const start = base.get(name)!;
      const tuned = ["a", "b", "c"].map((model) => models.get(model)!.get(name)!.data);
      const row = start.shape.length > 1 ? start.size / start.shape[0]! : start.size;
      const kept = tuned.map((data) => ({
        factors: chancesByRank(taskVector(data, start.data), row, 0.5, 0.2),
        scale: 1,
      }));
      const how = { hasConsensus: true, normalize: true, lambda: 1 };
      const merged = combine(start.data, tuned, kept, [0.5, 0.8, 0.6], how);
      allclose(new Tensor("float32", start.shape, merged), expected, tolerance.float32, name);
    }
  });
});
