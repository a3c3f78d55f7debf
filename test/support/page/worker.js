/** A worker that runs a module: it is told the address and the argument, and answers once. */
addEventListener("message", async ({ data: { address, args } }) => {
  try {
    const module = await import(address);
    postMessage({ value: await module.default(args) });
  } catch (error) {
    postMessage({ error: String(error?.stack ?? error) });
  }
});
