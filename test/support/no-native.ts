/** Asks for the default engine on a machine for which onnxruntime-node has no binary; prints JSON. */
Object.defineProperty(process, "arch", { value: "mips" });
const { defaultBackend } = await import("../../src/backend/ort/default.ts");
const { trainMlp } = await import("./mlp.ts");

const warnings: string[] = [];
const backend = await defaultBackend({ warn: (message) => warnings.push(message) });
const losses = await trainMlp(backend, 3);
let refused = "";
try {
  await defaultBackend({ provider: "webgpu" });
} catch (error) {
  refused = (error as Error).message;
}
console.log(JSON.stringify({ name: backend.name, warnings, losses, refused }));

export {};
