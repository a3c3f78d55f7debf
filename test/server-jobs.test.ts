/** Files and fine-tuning jobs of `plasticity serve`, by the official client; and what a restart makes of them. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type OpenAI from "openai";
import { toFile } from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { serve, type TestServer, tinyModel, until } from "./support/server.ts";

let folder: string;
beforeAll(async () => {
  folder = await tinyModel();
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const engine = () => ({ model: folder, slots: 2, maxRank: 16 });
const data = Array.from({ length: 24 }, (_, i) =>
  JSON.stringify({ prompt: `add ${i}`, completion: `${i + 1}` }),
).join("\n");

const upload = async (client: OpenAI): Promise<OpenAI.FileObject> =>
  client.files.create({
    purpose: "fine-tune",
    file: await toFile(new TextEncoder().encode(data), "../../adding.jsonl"),
  });

const method = (n_epochs: number): OpenAI.FineTuning.JobCreateParams.Method => ({
  type: "supervised",
  supervised: { hyperparameters: { n_epochs, batch_size: 8 } },
});

async function isOver(client: OpenAI, id: string): Promise<void> {
  const status = async (): Promise<string> => (await client.fineTuning.jobs.retrieve(id)).status;
  await until(
    async () => ["succeeded", "failed", "cancelled"].includes(await status()),
    "the job is over",
    90_000,
  );
}

const asked = { prompt: "add 5\n", temperature: 0, logprobs: 0, max_tokens: 4 };

describe("a job", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await serve({ name: "tiny", engine: engine() }, true);
  });
  afterAll(() => server.close());

  it("makes an adapter from an upload, which is served when it is done", async () => {
    const { client } = server;
    const file = await upload(client);
    expect(file).toMatchObject({ object: "file", filename: "adding.jsonl", bytes: data.length });
    expect(await (await client.files.content(file.id)).text()).toBe(data);
    expect((await client.files.list()).data.map(({ id }) => id)).toEqual([file.id]);

    const job = await client.fineTuning.jobs.create({
      model: "tiny",
      training_file: file.id,
      suffix: "adding",
      seed: 7,
      method: method(1),
    });
    expect(job.status).toBe("queued");
    await expect(client.files.delete(file.id)).rejects.toMatchObject({ status: 409 });
    const waiting = await client.fineTuning.jobs.create({ model: "tiny", training_file: file.id });
    const cancelled = await client.fineTuning.jobs.cancel(waiting.id);
    expect(cancelled.status).toBe("cancelled");
    await expect(client.fineTuning.jobs.cancel(waiting.id)).rejects.toThrow(
      "is cancelled and cannot be cancelled",
    );
    await isOver(client, job.id);
    const done = await client.fineTuning.jobs.retrieve(job.id);
    expect(done).toMatchObject({
      status: "succeeded",
      fine_tuned_model: "ft:tiny:adding",
      error: null,
    });
    expect(done.trained_tokens).toBeGreaterThan(50);
    const { data: listed } = await client.fineTuning.jobs.list();
    expect(listed.map(({ id }) => id)).toEqual([waiting.id, job.id]);
    const messages = (await client.fineTuning.jobs.listEvents(job.id)).data.map(
      ({ message }) => message,
    );
    expect(messages[0]).toBe("The job has successfully completed");
    expect(messages).toContain("New fine-tuned model created: ft:tiny:adding");
    expect(messages.some((message) => /^Step 1: training loss=\d/.test(message))).toBe(true);
    expect((await client.fineTuning.jobs.checkpoints.list(job.id)).data).toEqual([]);

    const names = (await client.models.list()).data.map(({ id }) => id);
    expect(names).toEqual(["tiny", "ft:tiny:adding"]);
    const [base, tuned] = await Promise.all([
      client.completions.create({ model: "tiny", ...asked }),
      client.completions.create({ model: "ft:tiny:adding", ...asked }),
    ]);
    expect(tuned.choices[0]!.logprobs!.token_logprobs).not.toEqual(
      base.choices[0]!.logprobs!.token_logprobs,
    );
    expect((await client.models.delete("ft:tiny:adding")).deleted).toBe(true);
    await expect(
      client.completions.create({ model: "ft:tiny:adding", ...asked }),
    ).rejects.toMatchObject({ status: 404, code: "model_not_found" });

    // It is still there, and can be loaded again under another name.
    const loaded = await fetch(`${server.url}/v1/adapters`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ name: "again", source: job.id }),
    });
    expect(loaded.status).toBe(201);
    const same = await client.completions.create({ model: "tiny:again", ...asked });
    expect(same.choices[0]!.logprobs).toEqual(tuned.choices[0]!.logprobs);
    const adapters = (await (await fetch(`${server.url}/v1/adapters`)).json()) as object;
    expect(adapters).toMatchObject({ data: [{ id: "again", base: "tiny", source: job.id }] });
    const gone = await fetch(`${server.url}/v1/adapters/again`, { method: "DELETE" });
    expect(gone.status).toBe(200);
    expect((await client.files.delete(file.id)).deleted).toBe(true);
  });

  it("that cannot be done says why, without this machine's paths", async () => {
    const { client } = server;
    // Prompts fill all positions: no token carries loss.
    const long = await client.files.create({
      purpose: "fine-tune",
      file: await toFile(
        new TextEncoder().encode(JSON.stringify({ prompt: "x".repeat(400), completion: "y" })),
        "long.jsonl",
      ),
    });
    const failing = await client.fineTuning.jobs.create({ model: "tiny", training_file: long.id });
    await isOver(client, failing.id);
    const { status, error } = await client.fineTuning.jobs.retrieve(failing.id);
    expect(status).toBe("failed");
    expect(error!.message.length).toBeGreaterThan(20);
    expect(error!.message).not.toContain(server.folder);
    await expect(
      client.fineTuning.jobs.create({ model: "tiny", training_file: "file-nowhere" }),
    ).rejects.toThrow("File 'file-nowhere' does not exist: upload it first.");
  });
});

it("goes on with a job whose server ended, and serves again what it served", async () => {
  const place = join(folder, "data");
  const first = await serve({ name: "tiny", engine: engine(), dataFolder: place });
  const file = await upload(first.client);
  const { id } = await first.client.fineTuning.jobs.create({
    model: "tiny",
    training_file: file.id,
    suffix: "long",
    seed: 3,
    method: method(40),
  });
  const steps = async (client: OpenAI): Promise<number> =>
    (await client.fineTuning.jobs.listEvents(id, { limit: 1000 })).data.filter(({ message }) =>
      message.includes("training loss"),
    ).length;
  await until(async () => (await steps(first.client)) > 3, "some steps were made", 60_000);
  // Two servers never share a folder.
  await expect(serve({ name: "tiny", engine: engine(), dataFolder: place })).rejects.toThrow(
    /server\.lock/,
  );
  await first.close();

  // What a server that was killed left half done is no file.
  writeFileSync(join(place, "files", "stray"), "");
  const second = await serve({ name: "tiny", engine: engine(), dataFolder: place });
  const early = await second.client.fineTuning.jobs.retrieve(id);
  expect(["running", "succeeded"]).toContain(early.status);
  await isOver(second.client, id);
  expect((await second.client.fineTuning.jobs.retrieve(id)).status).toBe("succeeded");
  expect(await steps(second.client)).toBe(120);
  const { choices } = await second.client.completions.create({ model: "ft:tiny:long", ...asked });
  await second.close();

  const third = await serve({ name: "tiny", engine: engine(), dataFolder: place });
  const again = await third.client.completions.create({ model: "ft:tiny:long", ...asked });
  expect(again.choices).toEqual(choices);

  // An engine that ends comes back with its adapters,
  const anew = async (): Promise<void> => {
    await third.engine.crash();
    await until(() => third.engine.state === "ready", "the engine is back");
  };
  await anew();
  const after = await third.client.completions.create({ model: "ft:tiny:long", ...asked });
  expect(after.choices).toEqual(choices);
  // and without one whose folder is gone: the base matters more.
  rmSync(join(place, "jobs", id, "run"), { recursive: true });
  await anew();
  expect((await third.client.models.list()).data.map((one) => one.id)).toEqual(["tiny"]);
  await third.client.completions.create({ model: "tiny", ...asked });
  await third.close();
  const fourth = await serve({ name: "tiny", engine: engine(), dataFolder: place });
  expect(fourth.log.some(({ event }) => event === "adapter left out")).toBe(true);
  await fourth.close();
});
