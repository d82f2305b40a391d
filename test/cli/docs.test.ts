/** The documentation against the program: keys with their defaults, examples, links, and the library's example. Runs the built package (dist/). */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { recipeSchema } from "../../src/cli/run.js";
import { schemas } from "../../src/cli/schema.js";
import { recipeSchema as corpusSchema } from "../../src/corpus/recipe.js";
import { INSTRUCTGPT } from "../../src/dialogue/mixture.js";
import { check } from "../../src/run/config.js";
import { STAGES } from "../../src/stages/registry.js";

const root = fileURLToPath(new URL("../../", import.meta.url));
const read = (file: string): string => readFileSync(join(root, file), "utf8");
const READMES = ["README.md", "README.zh-CN.md"];
const pages = [...READMES, ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)];

interface Node {
  properties?: Record<string, Node>;
  required?: string[];
  items?: Node;
  anyOf?: Node[];
  default?: unknown;
}
interface Key {
  /** A group has keys of its own, and no other form. */
  group: boolean;
  needed: boolean;
  default: unknown;
}

/** Every key of a schema, by its path. */
function keysOf(node: Node, path = "", found = new Map<string, Key>()): Map<string, Key> {
  for (const branch of node.anyOf ?? []) keysOf(branch, path, found);
  if (node.items) keysOf(node.items, `${path}[]`, found);
  for (const [name, child] of Object.entries(node.properties ?? {})) {
    if (name.includes(".")) continue; // the threshold of a corpus's rule
    const own = path ? `${path}.${name}` : name;
    found.set(own, {
      group: [child, child.items].some((n) => Object.keys(n?.properties ?? {}).some((key) => !key.includes("."))),
      needed: node.required?.includes(name) ?? false,
      default: child.default,
    });
    keysOf(child, own, found);
  }
  return found;
}

/** The rows of the page's tables, for each kind of file that stands in the heading above them. */
function documented(): Map<string, Map<string, string>> {
  const found = new Map<string, Map<string, string>>();
  let kinds: string[] = [];
  let inTable = false;
  for (const line of read("docs/configuration.md").split("\n")) {
    if (line.startsWith("## ")) kinds = [...line.matchAll(/`(\w+)`/g)].map(([, kind]) => kind);
    if (!line.startsWith("|")) inTable = false;
    else if (line.startsWith("| key |")) inTable = true;
    else if (inTable) {
      const [, key, value] = line.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
      if (/^-+$/.test(key)) continue;
      for (const kind of kinds) {
        const rows = found.get(kind) ?? new Map<string, string>();
        const name = key.replaceAll("`", "");
        expect(rows.has(name), `${kind}: ${name} stands in two rows`).toBe(false);
        found.set(kind, rows.set(name, value));
      }
    }
  }
  return found;
}

describe("docs/configuration.md", () => {
  const rows = documented();
  test.each(Object.keys(schemas()))("%s: every key, none besides, with its default", (kind) => {
    const keys = keysOf(schemas()[kind] as Node);
    const own = rows.get(kind) ?? new Map<string, string>();
    const names = [...own.keys()];
    const named = (key: string): boolean =>
      own.has(key) || names.some((n) => n.endsWith(".*") && key.startsWith(n.slice(0, -1)));
    expect([...keys].filter(([key, { group }]) => !group && !named(key)).map(([key]) => key)).toEqual([]);
    expect(names.filter((name) => !keys.has(name.replace(/\.\*$/, "")))).toEqual([]);
    for (const [name, value] of own) {
      const key = keys.get(name);
      if (!key || (typeof key.default === "object" && JSON.stringify(key.default) === "{}")) continue;
      const where = `${kind}: ${name}`;
      expect(value === "`needed`", where).toBe(key.needed);
      if (key.default !== undefined) expect(parse(value.replaceAll("`", "")), where).toEqual(key.default);
    }
  });

  test("every environment variable of Lyceum's", () => {
    const sources = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" }).filter((f) =>
      f.endsWith(".ts"),
    );
    const used = sources.flatMap((f) => [...read(`src/${f}`).matchAll(/process\.env\.(LYCEUM_\w+)/g)].map((m) => m[1]));
    const text = read("docs/configuration.md");
    expect([...new Set(used)].filter((name) => !text.includes(`\`${name}\``))).toEqual([]);
  });
});

/** The YAML blocks of a page. */
const blocksOf = (page: string): Record<string, unknown>[] =>
  [...read(page).matchAll(/```yaml\n(.*?)```/gs)].map(([, text]) => parse(text));
const source = (file: string, value: unknown) => ({ file, value, place: () => "" });

test("docs/recipes.md: every example is a recipe", () => {
  const blocks = blocksOf("docs/recipes.md");
  expect(blocks.length).toBeGreaterThan(3);
  for (const block of blocks)
    for (const { stage, name: _, ...own } of check(recipeSchema, source("docs/recipes.md", block)).stages)
      check(STAGES[stage].schema, source("docs/recipes.md", own));
});

test("docs/corpus.md: every example is a part of a corpus's recipe", () => {
  for (const block of blocksOf("docs/corpus.md")) {
    const sources = [{ name: "pages", files: ["pages"] }];
    check(corpusSchema, source("docs/corpus.md", { sources, ...block }));
  }
});

test("docs/instruct.md: the ten types, their Chinese names and shares", () => {
  const rows = [...read("docs/instruct.md").matchAll(/^\| `(\w+)` \| (\S+) \| ([\d.]+) \|/gm)];
  const found = rows.map(([, type, chinese, share]) => [type, { chinese, share: Number(share) }]);
  expect(Object.fromEntries(found)).toEqual(INSTRUCTGPT);
});

describe("links", () => {
  /** Targets of a page's links into the repository: file and place in it. */
  const linksOf = (page: string): [string, string | undefined][] =>
    [...read(page).matchAll(/\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)/g)].map(([, file, place]) => [
      file === "" ? page : join(dirname(page), file),
      place,
    ]);
  /** The places of a page, as GitHub names its headings. */
  const placesOf = (page: string): string[] =>
    [...read(page).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
      heading
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    );
  test.each(pages)("%s", (page) => {
    for (const [file, place] of linksOf(page)) {
      expect(existsSync(join(root, file)), file).toBe(true);
      if (place !== undefined) expect(placesOf(file)).toContain(place);
    }
  });
});

describe("the library's examples", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-docs-"));
  afterAll(() => rmSync(dir, { recursive: true, force: true }));
  const examplesOf = (page: string): string[] => [...read(page).matchAll(/```ts\n(.*?)```/gs)].map(([, text]) => text);
  beforeAll(() => {
    mkdirSync(join(dir, "node_modules"));
    symlinkSync(root, join(dir, "node_modules/lyceum"));
    writeFileSync(join(dir, "package.json"), '{ "type": "module" }');
  });
  /** What an example prints, compiled and run as it stands. */
  const printed = (name: string, text: string): string => {
    writeFileSync(join(dir, `${name}.ts`), text);
    const run = (...args: string[]) => spawnSync(process.execPath, args, { cwd: dir, encoding: "utf8" });
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"];
    expect(run(tsc, ...options, `${name}.ts`).stdout).toBe("");
    const { stdout, stderr, status } = run(`${name}.js`);
    expect(stderr).not.toMatch(/error/i);
    expect(status).toBe(0);
    return stdout;
  };

  test("the READMEs'", () => {
    const [english, chinese] = READMES.map((page) => examplesOf(page)[0]);
    expect(chinese).toBe(english);
    const model = join(dir, "runs/quickstart/ppo/model");
    cpSync(join(root, "test/golden/eval/model"), model, { recursive: true });
    const config = JSON.parse(readFileSync(`${model}/tokenizer_config.json`, "utf8")) as object;
    const chat = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    writeFileSync(`${model}/tokenizer_config.json`, JSON.stringify({ ...config, chat_template: chat }));
    expect(printed("ask", english)).not.toBe("");
  });

  test("docs/training.md's: a stage, and a loop that learns to count", () => {
    const [stage, loop] = examplesOf("docs/training.md");
    cpSync(join(root, "test/golden/eval/model"), join(dir, "runs/base/model"), { recursive: true });
    const records = Array.from({ length: 20 }, (_, i) => JSON.stringify({ instruction: `${i}`, output: `${i}` }));
    writeFileSync(join(dir, "records.jsonl"), records.join("\n"));
    const lines = printed("stage", stage.replace("contextLength: 256", "contextLength: 64")).trim().split("\n");
    expect(lines.at(-1)).toBe("runs/tuned/model");
    expect(lines[0]).toMatch(/^1 \d+\.\d+/);
    expect(printed("loop", loop)).toMatch(/\[ 10, 11, 12, 13, 14 \]\n$/);
  }, 60_000);
});
