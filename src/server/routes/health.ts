/** `/health`, which needs no key and asks no engine, and `/metrics`. */
import type { EngineStats, ServedEngine } from "../served.ts";
import type { Routes } from "../service.ts";

/** Milliseconds to wait for the engine's numbers: it gives them between two steps. */
const statsMs = 2000;

/** The engine's numbers, or those it gave last where it is busy. */
function statsOf(engine: ServedEngine): () => Promise<EngineStats | undefined> {
  let last: EngineStats | undefined;
  return async () => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<EngineStats | undefined>((resolve) => {
      timer = setTimeout(() => resolve(last), statsMs);
    });
    try {
      const asked = engine.stats().then((stats) => {
        last = stats;
        return stats;
      });
      asked.catch(() => {});
      return await Promise.race([asked, late]);
    } catch {
      return undefined;
    } finally {
      clearTimeout(timer);
    }
  };
}

export const healthRoutes: Routes = (app, { engine, metrics, adapters, memory }) => {
  app.get("/health", (call) => {
    if (engine.state === "ready") {
      return call.json({ status: "ok", model: adapters.base });
    }
    const message = engine.state === "loading" ? "Loading model" : `The engine is ${engine.state}`;
    return call.json(
      {
        status: engine.state,
        error: { code: 503, message, type: "unavailable_error", param: null },
      },
      503,
    );
  });

  const stats = statsOf(engine);
  app.get("/metrics", async (call) => {
    const numbers = await stats();
    const { restarts = 0, memory: engineMemory } = engine;
    const text = metrics.text(numbers, { restarts, memory: memory?.(), engineMemory });
    return call.body(text, 200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
  });
};
