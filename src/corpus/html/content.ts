/**
 * Which part of a page is its text: block scoring over the light tree, in passes that are linear in the page.
 *
 * A paragraph is a run of inline content in a block. It votes for its surroundings with its length and punctuation,
 * less by the share of it that is links (text density and link density as in Kohlschütter et al., "Boilerplate Detection
 * using Shallow Text Features", WSDM 2010; votes passed to the ancestors as in Arc90's Readability). The element with most votes is
 * widened to the ancestor that holds its fellow candidates, and what is left inside of menus, shares and link lists goes.
 */
import { type Facts, measurePage } from "./measure.js";
import { isDataTable } from "./render.js";
import { type Element, type Page, rawText, walk } from "./tree.js";

/** Text that lies directly in one of these votes for the parent: the element is the paragraph itself. */
const LEAVES = new Set("p li dd dt td th blockquote pre h1 h2 h3 h4 h5 h6 address summary caption".split(" "));
const HEADINGS = new Set(["h1", "h2", "h3", "h4", "h5", "h6"]);
const LISTS = new Set(["ol", "ul", "dl", "form", "table", "tr", "li", "th", "address"]);

const UNTOUCHED = new Set(["body", "html", "#root"]);
const NEVER = new Set(["nav", "footer", "aside", "menu", "figcaption"]);
const NEVER_ROLES = new Set(
  "navigation banner contentinfo complementary search dialog alert alertdialog menu menubar toolbar tablist".split(" "),
);

export interface Content {
  /** Elements in document order whose text is the page's text. */
  parts: Element[];
  /** Elements inside the parts that are not. */
  without: Set<Element>;
}

/** `strict`: names of classes are believed. Parts are empty when the page has no paragraph at all. */
export function findContent(page: Page, strict = true): Content {
  const facts = measurePage(page);
  const of = (element: Element): Facts => facts[element.index];
  const all = facts[0];
  const nothing = { parts: [], without: new Set<Element>() };
  if (all.length === 0) return nothing;
  for (const element of page.elements) {
    const f = of(element);
    const above = element.parent !== undefined && of(element.parent).out;
    f.out = above === true ? true : isAround(element, f, all, strict) || above;
    if (f.out || f.own <= 0) continue;
    let at: Element | undefined = LEAVES.has(element.tag) ? element.parent : element;
    for (let level = 0; at && level < 6; level++, at = at.parent)
      of(at).votes += level === 0 ? f.own : level === 1 ? f.own / 2 : f.own / (level * 3);
  }
  const chosen = chooseTop(page.elements, of, aroundTitle(page, of));
  if (!chosen) return nothing;
  const { top, within } = chosen;
  const parts = withSiblings(top, of).filter((part) => !within || inside(part, within));
  const without = new Set<Element>();
  for (const part of parts) clean(part, of, without, of(top));
  return { parts, without };
}

/** Around the text, and not of it; unless half of all prose is in there, for then the name misleads. */
function isAround(element: Element, f: Facts, all: Facts, strict: boolean): Facts["out"] {
  const { tag, hidden, role } = element;
  if (tag === "a" || tag === "br" || UNTOUCHED.has(tag)) return false;
  if (hidden === "attribute") return true;
  if (hidden === "style") return strict || f.prose < all.prose / 2;
  const named = strict && tag !== "article" && tag !== "main" && !HEADINGS.has(tag);
  if (named && f.names.comments && all.prose - f.prose > 10) return true;
  if (f.prose > all.prose / 2) return false;
  if (NEVER.has(tag) || hidden === "aria" || (role !== "" && NEVER_ROLES.has(role))) return true;
  if (!named || f.names.inside) return false;
  if (f.names.around) return true;
  // A box of prose without links is a note when it stands inside the text.
  return f.names.beside && (f.prose > 5 && linkDensity(f) < 0.15 ? "doubtful" : true);
}

/** How much an element's kind and name speak for it. */
function prior(element: Element, f: Facts): number {
  let weight = 1;
  if (element.tag === "article" || /\barticleBody\b/.test(element.names)) weight *= 1.3;
  else if (element.tag === "main" || element.role === "main") weight *= 1.2;
  else if (LISTS.has(element.tag)) weight *= 0.8;
  if (f.names.inside) weight *= 1.25;
  if (f.names.around || f.names.beside) weight *= 0.6;
  return weight;
}

const linkDensity = (f: Facts): number => (f.length === 0 ? 0 : f.links / f.length);

/** Votes that the surroundings of the title must have: the heading's own box has none. */
const TITLE_PROSE = 4;
/** Of the best score, what a candidate near the title must have. */
const TITLE_SHARE = 0.25;

/**
 * The nearest element with some prose around the heading that repeats the page's <title>: a short text is there, and not
 * in the longer teasers of other pages.
 */
function aroundTitle(page: Page, of: (e: Element) => Facts): Element | undefined {
  const full = page.title.replace(/\s+/g, " ").trim();
  for (const element of page.elements) {
    if ((element.tag !== "h1" && element.tag !== "h2") || of(element).out) continue;
    const text = rawText(element).replace(/\s+/g, " ").trim();
    // The name of the site is in the title as well, but it is the smaller part.
    if (text.length < 12 || text.length < full.length * 0.4 || !full.includes(text)) continue;
    let at = element.parent;
    while (at && of(at).prose < TITLE_PROSE) at = at.parent;
    return at;
  }
  return undefined;
}

/** Whether an element is the other, or inside of it. */
function inside(inner: Element, outer: Element): boolean {
  for (let at: Element | undefined = inner; at; at = at.parent) if (at === outer) return true;
  return false;
}

function chooseTop(
  order: readonly Element[],
  of: (e: Element) => Facts,
  titled: Element | undefined,
): { top: Element; within: Element | undefined } | undefined {
  const scores = new Map<Element, number>();
  let top: Element | undefined;
  let best = 0;
  for (const element of order) {
    const f = of(element);
    if (f.votes === 0 || f.out) continue;
    const score = f.votes * prior(element, f) * (1 - linkDensity(f));
    scores.set(element, score);
    if (score > best) [top, best] = [element, score];
  }
  if (!top) return undefined;
  if (titled && !inside(top, titled) && !inside(titled, top)) {
    let near = best * TITLE_SHARE;
    for (const [element, score] of scores) if (score > near && inside(element, titled)) [top, near] = [element, score];
    // What lies outside has been passed over for it, and is not gathered again.
    if (inside(top, titled)) return { top, within: titled };
  }
  // Prose that lies in several places side by side (sections, say): go up while that gathers much more of it.
  let at = top;
  for (let up = top.parent; up && up.tag !== "#root" && up.tag !== "html"; up = up.parent) {
    const [inner, outer] = [of(at), of(up)];
    const gained = outer.prose - inner.prose;
    if (gained <= 0.02 * inner.prose) continue;
    const gainedLength = outer.length - inner.length;
    const gainedLinks = outer.links - inner.links;
    const dense = gainedLength > 0 && gainedLinks / gainedLength < 0.25;
    const goodScore = (scores.get(up) ?? 0) > best * 0.3;
    if (goodScore && dense && gained > 0.15 * inner.prose) at = up;
  }
  // The only child of its parent says nothing more than the parent.
  while (at.parent && at.parent.tag !== "body" && at.parent.tag !== "#root" && onlyChild(at)) at = at.parent;
  return { top: at, within: undefined };
}

const onlyChild = (element: Element): boolean =>
  element.parent!.children.every((c) => c === element || (typeof c === "string" && c.trim() === ""));

/** The top element, and its neighbours that read like it. */
function withSiblings(top: Element, of: (e: Element) => Facts): Element[] {
  if (!top.parent || top.tag === "body") return [top];
  const f = of(top);
  const threshold = Math.max(4, f.votes * 0.2);
  const parts: Element[] = [];
  for (const sibling of top.parent.children) {
    if (typeof sibling === "string") continue;
    if (sibling === top) {
      parts.push(sibling);
      continue;
    }
    const s = of(sibling);
    if (s.out || s.length === 0) continue;
    const sameClass = top.class !== "" && sibling.class === top.class;
    const score = s.votes + (sameClass ? f.votes * 0.2 : 0);
    const density = linkDensity(s);
    if (score >= threshold && density < 0.3) parts.push(sibling);
    else if (
      sibling.tag === "p" &&
      ((s.length > 80 && density < 0.25) || (s.length > 0 && s.prose > 2 && density === 0))
    )
      parts.push(sibling);
  }
  return parts;
}

/** What does not belong to the text inside the chosen part: around-elements, link lists, empty shells. */
function clean(part: Element, of: (e: Element) => Facts, without: Set<Element>, top: Facts): void {
  walk(part, (element) => {
    const f = of(element);
    if (element === part) return undefined;
    if (f.out === true || isLinkList(element, f, top)) {
      without.add(element);
      return false;
    }
    return undefined;
  });
}

function isLinkList(element: Element, f: Facts, top: Facts): boolean {
  const { tag } = element;
  if (f.length === 0) return false;
  const density = linkDensity(f);
  if (tag === "header") return f.prose < 4 || density > 0.4;
  if (tag === "ul" || tag === "ol" || tag === "dl") {
    if (density < 0.5) return false;
    // A list of links is a menu, unless its items say something besides the link.
    return f.length < top.length * 0.5 && (density > 0.75 || f.prose === 0);
  }
  // In a table that lays out the page, a cell of links is a menu.
  if (tag === "td") return density > 0.7 && f.prose === 0 && !isDataTable(tableOf(element));
  if (tag === "table") return density > 0.6 && f.prose < 4;
  if (/^(?:div|section|form|fieldset|center|h[2-6])$/.test(tag)) {
    if (HEADINGS.has(tag)) return f.names.around;
    if (f.length > top.length * 0.5) return false;
    if (density > 0.5 && f.prose < 8) return true;
    return density > 0.33 && f.prose < 4 && f.length > 60 && f.paragraphs < 2;
  }
  if (tag === "p" || tag === "li") return density > 0.9 && f.length < 120 && !/[.!?。！？]/.test(firstText(element));
  return false;
}

function tableOf(cell: Element): Element {
  let at = cell;
  while (at.parent && at.tag !== "table") at = at.parent;
  return at;
}

function firstText(element: Element): string {
  let text = "";
  walk(element, (e) => {
    for (const child of e.children) if (typeof child === "string" && text.length < 400) text += child;
    return text.length < 400 ? undefined : false;
  });
  return text;
}
