/**
 * Which part of a page is its text: block scoring over the light tree, in passes that are linear in the page.
 *
 * A paragraph is a run of inline content in a block. It votes for its surroundings with its length and punctuation,
 * less by the share of it that is links (text density and link density as in Kohlschütter et al., "Boilerplate Detection
 * using Shallow Text Features", WSDM 2010; votes passed to the ancestors as in Arc90's Readability). The element with most votes is
 * widened to the ancestor that holds its fellow candidates, and what is left inside of menus, shares and link lists goes.
 */
import { isAround, liesAround, linkDensity, misleadingNames } from "./around.js";
import { type Facts, forgetHeadingIds, HEADINGS, headingOf, measureInside, measurePage } from "./measure.js";
import { kindOfPage, type PageKind } from "./page-kind.js";
import { isDataTable } from "./render.js";
import { type Element, inTime, type Page, rawText, walk } from "./tree.js";

/** Text that lies directly in one of these votes for the parent: the element is the paragraph itself. */
const LEAVES = new Set("p li dd dt td th blockquote pre h1 h2 h3 h4 h5 h6 address summary caption".split(" "));
const LISTS = new Set(["ol", "ul", "dl", "form", "table", "tr", "li", "th", "address"]);

export interface Content {
  /** Elements in document order whose text is the page's text. */
  parts: Element[];
  /** Elements inside the parts that are not. */
  without: Set<Element>;
  /** The page is a list of links to others, and has no text of its own. */
  index: boolean;
}

/** Of what does not lie around the text: links of an index, at least; votes, at most (a sentence or two that say what it lists). */
const INDEX = [
  { links: 0.6, prose: 3 },
  { links: 0.9, prose: 10 },
];

/** Votes of about five paragraphs: with so many in one place, and this share of all, a page is an article. */
const ARTICLE_PROSE = 25;
const ARTICLE_SHARE = 0.35;
/** A choice with less than this share of the page's prose is not the text of a page that is no article. */
const COVERED = 0.6;

/** `strict`: names of classes are believed. Parts are empty when the page has no paragraph at all. */
export function findContent(page: Page, strict = true): Content {
  const facts = measurePage(page);
  const of = (element: Element): Facts => facts[element.index];
  const all = facts[0];
  const nothing = { parts: [], without: new Set<Element>(), index: false };
  if (all.length === 0) return nothing;
  const kind = kindWith(page, facts);
  const misleading = kind.article ? new Set<string>() : misleadingNames(page.elements, of);
  for (const element of page.elements) {
    const f = of(element);
    const above = element.parent !== undefined && of(element.parent).out;
    const trusted = strict && !misleading.has(f.called);
    f.out = above === true ? true : isAround(element, f, all, trusted, kind) || above;
    if (f.out || f.own <= 0) continue;
    let at: Element | undefined = LEAVES.has(element.tag) ? element.parent : element;
    for (let level = 0; at && level < 6; level++, at = at.parent)
      of(at).votes += level === 0 ? f.own : level === 1 ? f.own / 2 : f.own / (level * 3);
  }
  measureInside(page, facts);
  const titled = aroundTitle(page, of);
  const chosen = chooseTop(page.elements, of, titled, kind);
  if (!chosen) {
    const listed = linksOf(page, of, kind);
    return listed ? contentOf(listed, page, kind) : nothing;
  }
  const { within } = chosen;
  let { top } = chosen;
  let parts = withSiblings(top, of).filter((part) => !within || inside(part, within));
  const prose = parts.reduce((sum, part) => sum + of(part).netProse, 0);
  const underTitle = titled !== undefined && (inside(top, titled) || inside(titled, top));
  const article =
    kind.article ||
    (!kind.forum &&
      ((prose >= ARTICLE_PROSE && prose >= ARTICLE_SHARE * all.netProse) ||
        (prose >= ARTICLE_PROSE / 2 && underTitle)));
  if (!within && !article && prose < COVERED * all.netProse) {
    // A page of many small texts: a shop, a service, a list. All that does not lie around it is its text.
    top = mainOf(page, of) ?? top;
    parts = [top];
  }
  const without = new Set<Element>();
  for (const part of parts) clean(part, of, without, of(top), kind);
  // So much prose is no imprint; and of documentation the list may have been found already.
  const listed = prose < 4 * ARTICLE_PROSE ? linksOf(page, of, kind) : undefined;
  const found = parts.reduce((sum, part) => sum + of(part).netLength, 0);
  if (listed && !(kind.reference && found > listed.length / 2)) return contentOf(listed, page, kind);
  return { parts, without, index: false };
}

interface LinkList {
  length: number;
  around: Set<Element>;
}

/** The lists of documentation are its text. */
const contentOf = ({ around }: LinkList, page: Page, { reference }: PageKind): Content => ({
  parts: reference ? [page.root] : [],
  without: around,
  index: !reference,
});

/**
 * The links and what stands between them, if a page has nothing else. What its name or kind puts around a text is left out here also
 * where it holds most of the prose: under a list of links, that is the imprint.
 */
function linksOf(page: Page, of: (e: Element) => Facts, kind: PageKind): LinkList | undefined {
  if (kind.article) return undefined;
  const all = of(page.elements[0]);
  let { length, links, prose } = all;
  const around = new Set<Element>();
  for (const element of page.elements) {
    const above = element.parent !== undefined && around.has(element.parent);
    const f = of(element);
    if (!above && !liesAround(element, f.names)) continue;
    around.add(element);
    if (above) continue;
    length -= f.length;
    links -= f.links;
    prose -= f.prose;
  }
  if (length <= all.length / 2 || !INDEX.some((i) => links > i.links * length && prose < i.prose)) return undefined;
  return { length, around };
}

function kindWith(page: Page, facts: readonly Facts[]): PageKind {
  const of = (element: Element): Facts => facts[element.index];
  const kind = kindOfPage(page, of);
  if (!kind.reference) return kind;
  forgetHeadingIds(page, facts);
  return kindOfPage(page, of);
}

/** The page's declared main element, if most of what is not around it lies in there: for lists and tables without a sentence. */
export function findMain(page: Page): Content {
  const facts = measurePage(page);
  const of = (element: Element): Facts => facts[element.index];
  const kind = kindWith(page, facts);
  for (const element of page.elements) {
    const above = element.parent !== undefined && of(element.parent).out;
    of(element).out = above === true ? true : isAround(element, of(element), facts[0], true, kind) || above;
  }
  measureInside(page, facts);
  const main = page.elements.find(
    (e) => (e.tag === "main" || e.role === "main" || e.tag === "article") && of(e).netLength > facts[0].netLength / 2,
  );
  if (!main) return { parts: [], without: new Set(), index: false };
  return { parts: [main], without: new Set(page.elements.filter((e) => of(e).out === true)), index: false };
}

/** The element that the page declares to be its main one, or its body. */
function mainOf(page: Page, of: (e: Element) => Facts): Element | undefined {
  const all = of(page.elements[0]).netProse;
  let body: Element | undefined;
  for (const element of page.elements) {
    if (element.tag === "body") body ??= element;
    if ((element.tag === "main" || element.role === "main") && of(element).netProse > all * 0.4) return element;
  }
  return body;
}

/** How much an element's kind and name speak for it. */
function prior(element: Element, f: Facts): number {
  let weight = 1;
  if (element.tag === "article" || f.names.articleBody) weight *= 1.3;
  else if (element.tag === "main" || element.role === "main") weight *= 1.2;
  else if (LISTS.has(element.tag)) weight *= 0.8;
  if (f.names.inside) weight *= 1.25;
  if (f.names.around || f.names.beside) weight *= 0.6;
  return weight;
}

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
    inTime(page);
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
  kind: PageKind,
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
  if (titled && !inside(top, titled) && !inside(titled, top) && (kind.article || startsWithLink(top))) {
    let near = best * TITLE_SHARE;
    for (const [element, score] of scores) if (score > near && inside(element, titled)) [top, near] = [element, score];
    // What lies outside has been passed over for it, and is not gathered again.
    if (inside(top, titled)) return { top, within: titled };
  }
  // Prose that lies in several places side by side (sections, posts): go up while that gathers more of it.
  let at = top;
  for (let up = top.parent, child = top; up && up.tag !== "#root" && up.tag !== "html"; child = up, up = up.parent) {
    const [inner, outer] = [of(at), of(up)];
    const gained = outer.netProse - inner.netProse;
    if (gained <= 0.02 * inner.netProse) continue;
    const [gainedLength, gainedLinks] = kind.article
      ? [outer.length - inner.length, outer.links - inner.links]
      : [outer.netLength - inner.netLength, outer.netLinks - inner.netLinks];
    if (gainedLength <= 0 || gainedLinks / gainedLength >= (kind.forum || kind.reference ? 0.5 : 0.25)) continue;
    const much = kind.forum || gained > 0.15 * inner.netProse;
    const goodScore = (scores.get(up) ?? 0) > best * 0.3;
    const alike = (): boolean => !kind.article && proseOfSiblingsLike(child, of) > gained / 2;
    if (kind.reference && isMain(up, of) ? !leavesArticle(at, up) : much && (goodScore || kind.forum || alike()))
      at = up;
  }
  // The only child of its parent says nothing more than the parent.
  while (at.parent && at.parent.tag !== "body" && at.parent.tag !== "#root" && onlyChild(at)) at = at.parent;
  return { top: at, within: undefined };
}

/** As a teaser of another page does. */
function startsWithLink(element: Element): boolean {
  const open: { node: Element | string; linked: boolean }[] = [{ node: element, linked: false }];
  while (open.length > 0) {
    const { node, linked } = open.pop()!;
    if (typeof node === "string") {
      if (node.trim() !== "") return linked;
      continue;
    }
    const inLink = linked || (node.tag === "a" && node.link);
    for (let i = node.children.length - 1; i >= 0; i--) open.push({ node: node.children[i], linked: inLink });
  }
  return false;
}

/** Elements that by their kind or name hold the text of a page. */
const isMain = (element: Element, of: (e: Element) => Facts): boolean =>
  element.tag === "article" ||
  element.tag === "main" ||
  element.role === "main" ||
  of(element).names.articleBody ||
  (of(element).names.inside && element.tag !== "body");

/** Whether an article ends between the two: what is beside it is another one, or none. */
function leavesArticle(inner: Element, outer: Element): boolean {
  for (let at: Element | undefined = inner; at && at !== outer; at = at.parent) if (at.tag === "article") return true;
  return false;
}

/** Prose of the elements beside one that have its tag and a class of its. */
function proseOfSiblingsLike(element: Element, of: (e: Element) => Facts): number {
  const classes = new Set(element.class.split(/\s+/).filter((c) => c !== ""));
  let prose = 0;
  for (const sibling of element.parent?.children ?? []) {
    if (typeof sibling === "string" || sibling === element || sibling.tag !== element.tag) continue;
    const like = classes.size === 0 ? sibling.class === "" : sibling.class.split(/\s+/).some((c) => classes.has(c));
    if (like) prose += of(sibling).netProse;
  }
  return prose;
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
function clean(part: Element, of: (e: Element) => Facts, without: Set<Element>, top: Facts, kind: PageKind): void {
  walk(part, (element) => {
    const f = of(element);
    if (element === part) return undefined;
    if (f.out === true || (!f.code && (isLinkList(element, f, top, kind) || isCall(element, of, top, kind)))) {
      without.add(element);
      return false;
    }
    return undefined;
  });
}

/** Short lines that ask to do something, or name what is not shown. */
const CALLS =
  /^(?:advertisements?|ad|sponsored(?: content)?|share (?:this|on)\b.{0,20}|follow us\b.{0,20}|read more\W*|continue reading\W*|click here\W*|subscribe (?:now|to our newsletter)\W*|leave a (?:reply|comment)\W*|skip to (?:main )?content|back to top|edit this page|anzeige|werbung|publicité|publicidad|广告|分享到[:：]?|广告位)$/i;
/** The same in one word, which is as often the name of what a part of the text is about. */
const SHORT_CALLS =
  /^(?:share|tweet|print|e-?mail|save|sign up\W*|log ?in\W*|subscribe\W*|loading\W*|edit|copy|reply|report|分享[:：]?)$/i;
const ITEMS = new Set(["li", "dt", "dd", "td", "th"]);

/** A block that says no more than a call, or a list of nothing but calls and links. */
function isCall(element: Element, of: (e: Element) => Facts, top: Facts, kind: PageKind): boolean {
  const { tag } = element;
  if (tag === "ul" || tag === "ol") return isListOfCalls(element, of, top, kind);
  if (/^(?:span|small|strong|b|em|button)$/.test(tag))
    return !of(element).inLine && asksAlone(element, of(element), CALLS);
  if (!/^(?:p|div|h[2-6]|section)$/.test(tag) || !asksAlone(element, of(element), SHORT_CALLS, CALLS)) return false;
  const heading = headingOf(element, of);
  if (heading && of(heading).length === of(element).length) return asksAlone(element, of(element), CALLS);
  // What is all of a list's item or of a cell's data is judged with the list or the table.
  let at = element;
  while (at.parent && !ITEMS.has(at.tag) && of(at.parent).length === of(element).length) at = at.parent;
  return !ITEMS.has(at.tag) || (at.tag === "td" && !isDataTable(tableOf(at)));
}

function isListOfCalls(list: Element, of: (e: Element) => Facts, top: Facts, kind: PageKind): boolean {
  let calls = false;
  for (const item of list.children) {
    if (typeof item === "string" || of(item).length === 0) continue;
    if (asksAlone(item, of(item), SHORT_CALLS, CALLS)) calls = true;
    else if (of(item).out !== true && !isLinkList(item, of(item), top, kind)) return false;
  }
  return calls;
}

function asksAlone(element: Element, f: Facts, ...calls: readonly RegExp[]): boolean {
  if (f.length > 40 || f.length < 2) return false;
  const text = rawText(element).trim();
  return calls.some((call) => call.test(text));
}

function isLinkList(element: Element, f: Facts, top: Facts, kind: PageKind): boolean {
  const { tag } = element;
  if (f.length === 0) return false;
  // In documentation a list of links is a list of functions, or of pages to go on with.
  if (kind.reference && tag !== "header" && (!f.names.around || (HEADINGS.has(tag) && !f.names.unseen))) return false;
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
