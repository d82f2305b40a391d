import { defineConfig } from "vitest/config";

// One file at a time: the engine's thread pool uses all cores, and two at once would only slow each other down.
export default defineConfig({
  test: { include: ["test/**/*.test.ts"], fileParallelism: false, testTimeout: 120_000, hookTimeout: 60_000 },
});
