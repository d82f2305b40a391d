/** The other extraction mode: Mozilla's Readability over a linkedom document; its choice is rendered by our own writer. */
import { Readability } from "@mozilla/readability";
import { parseHTML } from "linkedom";
import { renderText } from "./render.js";
import { PageError, parsePage } from "./tree.js";

/** Readability's passes are not linear in the page, and linkedom recurses: larger pages are refused, not hung on. */
const MAX_ELEMENTS = 20_000;
const MAX_NESTING = 400;

export function readabilityText(html: string): { text: string; title: string } {
  refuseMonsters(html);
  const { document } = parseHTML(/<html[\s>]/i.test(html) ? html : `<html><body>${html}</body></html>`);
  // linkedom implements what Readability uses of the DOM; its types do not say so.
  const article = new Readability(document as never, { maxElemsToParse: MAX_ELEMENTS }).parse();
  if (!article?.content) return { text: "", title: article?.title ?? "" };
  return { text: renderText([parsePage(article.content).root], new Set()), title: article.title ?? "" };
}

function refuseMonsters(html: string): void {
  let depth = 0;
  let elements = 0;
  for (const match of html.matchAll(/<(\/?)(div|span|section|ul|ol|li|table|td|b|i|em|font|blockquote|p|a)\b/gi)) {
    if (match[1] === "") elements++;
    // A paragraph or item is often left open; only what nests counts for the depth.
    if (/^(?:p|li|td|a)$/i.test(match[2])) continue;
    depth += match[1] === "" ? 1 : -1;
    if (depth > MAX_NESTING)
      throw new PageError(`is nested more than ${MAX_NESTING} levels deep: too deep for the readability mode`);
    if (elements > MAX_ELEMENTS)
      throw new PageError(`has more than ${MAX_ELEMENTS} elements: too many for the readability mode`);
  }
}
