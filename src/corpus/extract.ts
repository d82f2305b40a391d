/** A page to its title and main text, in one of two modes: our own block scoring (fast), or Mozilla's Readability. */
import { storable } from "./document.js";
import { decodePieces } from "./html/charset.js";
import { findContent, findMain } from "./html/content.js";
import { readabilityText } from "./html/readability.js";
import { renderText } from "./html/render.js";
import { type Element, inTime, type Page, parsePage, rawText, walk } from "./html/tree.js";

export { PageError } from "./html/tree.js";

export interface ExtractOptions {
  mode: "fast" | "readability";
  /** Seconds for one page. */
  timeout: number;
}

export interface Extracted {
  title: string;
  text: string;
  /** As the page declares it. */
  declaredLanguage: string | undefined;
  /** As the page declares it: rel=canonical or og:url, when it is an absolute address. */
  canonical: string | undefined;
  published: string | undefined;
}

/** A shorter main text than this is looked for again with less strict rules. */
const SHORT = 200;

/** Of a page, whole or in pieces. Throws PageError when the page is too large or takes too long. */
export function extractHtml(html: string | readonly string[], options: Partial<ExtractOptions> = {}): Extracted {
  const deadline = options.timeout ? Date.now() + options.timeout * 1000 : Number.POSITIVE_INFINITY;
  const page = parsePage(html, deadline);
  const title = titleOf(page);
  inTime(page);
  const text =
    options.mode === "readability"
      ? readabilityText(typeof html === "string" ? html : html.join("")).text
      : mainText(page, title);
  return {
    title,
    text: storable(text),
    declaredLanguage: declaredLanguage(page),
    canonical: [page.canonical, page.meta.get("og:url")].find((u) => u && /^https?:\/\//i.test(u)),
    published: page.meta.get("article:published_time") ?? page.meta.get("date") ?? page.meta.get("dc.date"),
  };
}

export function extractBytes(
  bytes: Uint8Array,
  contentType: string | undefined,
  options: Partial<ExtractOptions> = {},
): Extracted {
  return extractHtml(decodePieces(bytes, contentType).pieces, options);
}

/** Every pass is linear in the page; the time is looked at between them. */
function mainText(page: Page, title: string): string {
  const strict = findContent(page);
  inTime(page);
  dropTitle(strict.parts, strict.without, title);
  const text = renderText(strict.parts, strict.without);
  const fromData = articleBody(page.jsonLd);
  // A page that gives most of its article to scripts and search engines only.
  if (fromData.length > Math.max(SHORT, text.length * 2)) return fromData;
  if (strict.index) return "";
  if (text.length >= SHORT) return text;
  inTime(page);
  const main = findMain(page);
  dropTitle(main.parts, main.without, title);
  const whole = renderText(main.parts, main.without);
  if (whole.length >= SHORT && whole.length > text.length * 1.5) return whole;
  // Little was found: names may have misled, or the page is not an article.
  inTime(page);
  const lax = findContent(page, false);
  dropTitle(lax.parts, lax.without, title);
  const again = renderText(lax.parts, lax.without);
  const best = again.length > text.length * 1.5 ? again : text;
  if (best.length >= SHORT) return best;
  if (fromData.length > Math.max(SHORT, best.length)) return fromData;
  return best === "" ? renderText([bodyOf(page.root)], lax.without) : best;
}

function bodyOf(root: Element): Element {
  let body: Element | undefined;
  walk(root, (e) => {
    if (e.tag === "body") body ??= e;
    return !body;
  });
  return body ?? root;
}

/** The page's title without the site's name: the part of <title> that a heading repeats, else og:title, else what there is. */
function titleOf(page: Page): string {
  const tidy = (s: string | undefined): string => (s ?? "").replace(/\s+/g, " ").trim();
  const full = tidy(page.title);
  const og = tidy(page.meta.get("og:title"));
  const headings: string[] = [];
  walk(page.root, (e) => {
    if (e.tag === "h1" || e.tag === "h2") {
      inTime(page);
      headings.push(tidy(rawText(e)));
      return false;
    }
    return undefined;
  });
  // "Title | Site", "Title - Site", "Site » Title": the longest part is the title.
  const parts = full.split(/\s+(?:[|–—»:·-]|--)\s+/).filter((p) => p !== "");
  const among = new Set(parts);
  const named = headings.filter((h) => h.length > 2 && among.has(h));
  // The site's name may be a heading as well; it is the shorter one, or the same on every page.
  if (named.length > 0 && parts.length > 1) return named.reduce((x, y) => (y.length > x.length ? y : x));
  const longest = parts.reduce((x, y) => (y.length > x.length ? y : x), "");
  const heading = headings.find((h) => h.length > 4 && h.length > longest.length * 0.6 && full.includes(h));
  if (heading) return heading;
  if (og !== "" && (full === "" || full.toLowerCase().includes(og.toLowerCase()))) return og;
  if (full === "") return og || headings.find((h) => h !== "") || "";
  return parts.length > 1 && longest.length > full.length * 0.4 && longest.length > 10 ? longest : full;
}

/** The heading that repeats the title is not text again. */
function dropTitle(parts: readonly Element[], without: Set<Element>, title: string): void {
  if (title === "") return;
  let done = false;
  for (const part of parts)
    walk(part, (e) => {
      if (done) return false;
      if (e.tag !== "h1" && e.tag !== "h2") return undefined;
      if (rawText(e).replace(/\s+/g, " ").trim() === title) {
        without.add(e);
        done = true;
      }
      return false;
    });
}

function declaredLanguage(page: Page): string | undefined {
  const raw = page.language ?? page.meta.get("content-language") ?? page.meta.get("og:locale");
  return /^[a-z]{2,3}(?=$|[-_])/i.exec(raw ?? "")?.[0].toLowerCase();
}

/** The longest articleBody of the page's linked data (schema.org). */
function articleBody(blocks: readonly string[]): string {
  let best = "";
  for (const block of blocks) {
    if (!block.includes('"articleBody"')) continue;
    let data: unknown;
    try {
      data = JSON.parse(block);
    } catch {
      continue; // a page's broken linked data costs nothing but this fallback
    }
    const open = [data];
    for (let n = 0; open.length > 0 && n < 10_000; n++) {
      const value = open.pop();
      if (value === null || typeof value !== "object") continue;
      const body = (value as Record<string, unknown>).articleBody;
      if (typeof body === "string" && body.length > best.length) best = body;
      for (const below of Object.values(value)) open.push(below);
    }
  }
  return best.replace(/<[^<>]+>/g, " ").trim();
}
