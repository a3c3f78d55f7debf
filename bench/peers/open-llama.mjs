// llama.cpp on the CPU with its prebuilt binary, and nothing fetched or built.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

export function openLlama(threads) {
  return getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    progressLogs: false,
    logLevel: LlamaLogLevel.error,
    maxThreads: threads,
  });
}
