/**
 * URL filter: block lists in the layout of the Université Toulouse Capitole (UT1: a folder a category, with files `domains`
 * and `urls`), and words in the address. A list may have millions of entries, so it is held as sorted 53-bit hashes in
 * memory that all workers share.
 */
import { isUtf8 } from "node:buffer";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { parse } from "tldts";
import { UserError } from "../run/errors.js";
import type { Finding } from "./document.js";
import { hash53 } from "./hash.js";

export interface UrlSettings {
  /** Folders in the UT1 layout: one category, or a folder of categories. */
  blocklists: string[];
  /** Only these categories; all when empty. */
  categories: string[];
  /** One of these as a word of the address is enough. */
  words: string[];
  /** Two of these are needed. */
  softWords: string[];
  /** Domains that are never blocked. */
  allow: string[];
}

export interface BlockList {
  category: string;
  domains: Float64Array;
  urls: Float64Array;
}

/** Reads the lists. Throws UserError when a folder holds none. */
export function loadBlockLists(settings: UrlSettings): BlockList[] {
  const lists: BlockList[] = [];
  for (const path of settings.blocklists) {
    if (!existsSync(path) || !statSync(path).isDirectory())
      throw new UserError(`url.blocklists: ${path} is not a folder.`, 2);
    const isCategory = (dir: string): boolean => existsSync(join(dir, "domains")) || existsSync(join(dir, "urls"));
    const dirs = isCategory(path)
      ? [path]
      : readdirSync(path)
          .sort()
          .map((name) => join(path, name))
          .filter((dir) => statSync(dir).isDirectory() && isCategory(dir));
    if (dirs.length === 0)
      throw new UserError(
        `url.blocklists: in ${path} there is no category: a folder with a file "domains" or "urls" (the layout of UT1).`,
        2,
      );
    for (const dir of dirs) {
      const category = basename(dir);
      if (settings.categories.length > 0 && !settings.categories.includes(category)) continue;
      lists.push({
        category,
        domains: table(join(dir, "domains"), (line) => hostOf(line.replace(/^\*?\./, ""))),
        urls: table(join(dir, "urls"), normalUrl),
      });
    }
  }
  const missing = settings.categories.filter((c) => !lists.some((l) => l.category === c));
  if (missing.length > 0)
    throw new UserError(`url.categories: no block list has the category ${missing.join(", ")}.`, 2);
  return lists;
}

function table(file: string, normal: (line: string) => string): Float64Array {
  if (!existsSync(file)) return new Float64Array(0);
  const bytes = readFileSync(file);
  const lines = bytes
    .toString(isUtf8(bytes) ? "utf8" : "latin1")
    .split("\n")
    .map((line) => line.trim().toLowerCase())
    .filter((line) => line !== "" && !line.startsWith("#"));
  const hashes = new Float64Array(new SharedArrayBuffer(lines.length * 8));
  for (const [i, line] of lines.entries()) hashes[i] = hash53(normal(line));
  return hashes.sort();
}

function has(sorted: Float64Array, key: number): boolean {
  let low = 0;
  let high = sorted.length - 1;
  while (low <= high) {
    const mid = (low + high) >> 1;
    if (sorted[mid] === key) return true;
    if (sorted[mid] < key) low = mid + 1;
    else high = mid - 1;
  }
  return false;
}

/** As browsers read it (WHATWG URL): no user, no usual port, letters beyond ASCII in one spelling. Undefined when it is none. */
function parsed(url: string): URL | undefined {
  try {
    return new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(url) ? url : `http://${url}`);
  } catch {
    return undefined;
  }
}

/** A host without "www.". */
const hostOf = (host: string): string => plainHost(host).replace(/^www\./, "");

/** A host in lower case, without the dot that may stand at the end of one. */
function plainHost(host: string): string {
  // Most lines of a list are plain already, and a list may have millions. What is more than a host stays as it is, and fits none.
  const same = /^[a-z0-9._-]+$|[/:?#@]/i.test(host);
  const plain = same ? host : (parsed(host)?.hostname ?? host);
  return plain.toLowerCase().replace(/\.$/, "");
}

/** Host and path, in lower case. */
function normalUrl(written: string): string {
  // First: once a letter is percent-encoded, it has no other case.
  const url = written.toLowerCase();
  const address = parsed(url);
  let text = url.replace(/^[a-z][a-z0-9+.-]*:\/\//, "").replace(/^www\./, "");
  if (address) {
    const { hostname, port, pathname, search, hash } = address;
    text = `${hostOf(hostname)}${port && `:${port}`}${pathname}${search}${hash}`;
  }
  let end = text.length;
  while (end > 0 && "/?#".includes(text[end - 1])) end--;
  return text.slice(0, end).toLowerCase(); // percent-encoding has capitals
}

export class UrlFilter {
  private readonly words: Set<string>;
  private readonly softWords: Set<string>;
  private readonly allowed: Set<string>;
  constructor(
    settings: UrlSettings,
    private readonly lists: readonly BlockList[],
  ) {
    const lower = (list: string[]): Set<string> => new Set(list.map((w) => w.toLowerCase()));
    this.words = lower(settings.words);
    this.softWords = lower(settings.softWords);
    this.allowed = new Set(settings.allow.map(plainHost));
  }

  /** Every rule with its verdict; empty when nothing is asked or the document has no address. */
  judge(url: string | undefined): Finding[] {
    if (url === undefined || (this.lists.length === 0 && this.words.size === 0 && this.softWords.size === 0)) return [];
    const { hostname, domain } = parse(parsed(url)?.href ?? url);
    const host = hostOf(hostname ?? "");
    const registrable = domain ?? host;
    const findings: Finding[] = [];
    const add = (rule: string, value: string, threshold: string, drop: boolean, detail?: string): void =>
      void findings.push({
        stage: "url",
        rule,
        value,
        threshold,
        verdict: drop ? "drop" : "pass",
        ...(detail === undefined ? {} : { detail }),
      });
    if ([registrable, host, plainHost(hostname ?? "")].some((name) => this.allowed.has(name))) {
      add("url.allow", registrable, "allowed", false);
      return findings;
    }
    if (this.lists.length > 0) {
      const hosts = hostsOf(host, registrable);
      const byDomain = this.lists.find((l) => hosts.some((h) => has(l.domains, hash53(h))));
      add(
        "url.domain",
        registrable,
        "block lists",
        byDomain !== undefined,
        byDomain && `on the list "${byDomain.category}"`,
      );
      const prefixes = prefixesOf(normalUrl(url));
      const byUrl = this.lists.find((l) => l.urls.length > 0 && prefixes.some((p) => has(l.urls, hash53(p))));
      add(
        "url.address",
        byUrl ? normalUrl(url) : "not listed",
        "block lists",
        byUrl !== undefined,
        byUrl && `on the list "${byUrl.category}"`,
      );
    }
    const words = new Set(wordsOf(url));
    if (this.words.size > 0) {
      const found = [...words].filter((w) => this.words.has(w));
      add("url.words", found.join(" ") || "none", "none", found.length > 0);
    }
    if (this.softWords.size > 0) {
      const found = [...words].filter((w) => this.softWords.has(w));
      add("url.softWords", found.join(" ") || "none", "fewer than 2", found.length > 1);
    }
    return findings;
  }
}

/** a.b.example.co.uk: itself and its parents, down to the registrable domain. */
function hostsOf(host: string, registrable: string): string[] {
  const hosts = [host];
  for (let at = hosts[0]; at.length > registrable.length; ) {
    const dot = at.indexOf(".");
    if (dot < 0) break;
    at = at.slice(dot + 1);
    hosts.push(at);
  }
  return hosts;
}

/** example.org/a/b?c: itself, example.org, example.org/a, example.org/a/b. Lists name no longer ones than these. */
function prefixesOf(url: string): string[] {
  const prefixes = [url];
  for (let i = 1; i < url.length && prefixes.length < 64; i++)
    if (url[i] === "/" || url[i] === "?" || url[i] === "#") prefixes.push(url.slice(0, i));
  return prefixes;
}

function wordsOf(url: string): string[] {
  let plain = url;
  try {
    plain = decodeURIComponent(url);
  } catch {
    // a stray percent sign: as it stands
  }
  return plain.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}
