/**
 * A page as a light tree: what the choice of the main text needs, and no more. Built from htmlparser2's events in one
 * pass. Bounded: depth is cut by attaching deeper elements' text higher up, and a page with too many elements is refused.
 */
import { Parser } from "htmlparser2";

export interface Element {
  tag: string;
  children: (Element | string)[];
  parent: Element | undefined;
  /** Place in Page.elements: document order. */
  index: number;
  /** class and itemprop, with spaces between. */
  names: string;
  /** Empty where it is made like an address, and no name of a role. */
  id: string;
  role: string;
  class: string;
  /** A link that leaves the page's own text: its href is not "#...". */
  link: boolean;
  /** "hidden" and aria-hidden say so; a style may be changed by a script. */
  hidden: "" | "attribute" | "aria" | "style";
}

export interface Page {
  root: Element;
  /** All elements, parents before children; the first is the root. */
  elements: Element[];
  /** <title>, its first thousand characters. */
  title: string;
  /** `name` or `property` (lower case) to content; the first one counts. */
  meta: Map<string, string>;
  canonical: string | undefined;
  /** The lang attribute of <html>. */
  language: string | undefined;
  /** Contents of <script type="application/ld+json">. */
  jsonLd: string[];
  /** Values of itemtype (schema.org), lower case, without the address. */
  types: Set<string>;
  /** A Date.now() after which nobody waits for the page any more. */
  deadline: number;
}

/** The page cannot be taken in: it goes to rejected.jsonl with this message. */
export class PageError extends Error {}

/** Throws PageError when the page has taken its time. */
export function inTime({ deadline }: Pick<Page, "deadline">): void {
  if (Date.now() > deadline) throw new PageError("timed out");
}

export const MAX_DEPTH = 256;
/** The parser itself slows down with the square of the depth. */
export const MAX_NESTING = 10_000;
export const MAX_ELEMENTS = 300_000;
/** Headings are looked for in the title, one after the other: a longer one is no title. */
const MAX_TITLE = 1000;

/** Elements whose content is never text of the page. */
const SKIPPED = new Set(
  "script style noscript template svg iframe frameset object embed applet canvas audio video select option datalist button textarea input meter progress map dialog".split(
    " ",
  ),
);
/** A button in one of these is the heading of a part that unfolds. */
const HEADS = /^(?:h[1-6]|dt|summary)$/;
/** All that a link says that is there to be copied: it leads to the heading or the signature that it stands in. */
const PERMALINKS = new Set<Element | string>(["¶", "#", "§", "\u{1f517}", "\u200b"]);
const isPermalink = (a: Element): boolean =>
  a.tag === "a" &&
  !a.link &&
  a.children.length === 1 &&
  PERMALINKS.has(a.children[0]) &&
  (HEADS.test(a.parent?.tag ?? "") ||
    /\b(?:header-?link|(?:heading|header)?-?anchor|permalink|hash-link)\b/i.test(a.names));
const VOID = new Set("area base br col embed hr img input link meta param source track wbr".split(" "));

/** Parses a page, whole or cut anywhere. `deadline`: see Page. Throws PageError. */
export function parsePage(html: string | readonly string[], deadline = Number.POSITIVE_INFINITY): Page {
  const root = newElement("#root", undefined, 0);
  const page: Page = {
    root,
    elements: [root],
    title: "",
    meta: new Map(),
    canonical: undefined,
    language: undefined,
    jsonLd: [],
    types: new Set(),
    deadline,
  };
  let at = root;
  /** Open elements below the cut (depth) and inside a skipped one (skip): counted, not built. */
  let tooDeep = 0;
  let skip = 0;
  let capture: "title" | "script" | undefined;
  let captured = "";
  let linkedData = false;
  let depth = 0;
  let elements = 0;
  /** Whose attributes come now: an element, or one of those in the head that only their attributes matter of. */
  let target: Element | undefined;
  let head: { tag: string; attributes: Record<string, string> } | undefined;
  const add = (tag: string): Element => {
    const element = newElement(tag, at, page.elements.length);
    at.children.push(element);
    page.elements.push(element);
    return element;
  };

  const parser = new Parser(
    {
      onopentagname(tag) {
        if ((++elements & 1023) === 0) inTime(page);
        if (elements > MAX_ELEMENTS) throw new PageError(`has more than ${MAX_ELEMENTS} elements`);
        target = undefined;
        head = undefined;
        if (skip > 0) {
          if (!VOID.has(tag)) skip++;
          return;
        }
        if (SKIPPED.has(tag) && !(tag === "button" && HEADS.test(at.tag))) {
          if (tag === "script") {
            capture = "script";
            captured = "";
            linkedData = false;
          }
          if (!VOID.has(tag)) skip = 1;
          return;
        }
        if (tag === "title" && page.title === "") {
          capture = "title";
          captured = "";
        }
        if (tag === "html" || tag === "meta" || tag === "link") head = { tag, attributes: {} };
        if (VOID.has(tag)) {
          if (tag === "br" || tag === "hr") add(tag);
          return;
        }
        if (depth >= MAX_DEPTH) {
          if (++tooDeep > MAX_NESTING) throw new PageError(`is nested more than ${MAX_NESTING} levels deep`);
          return;
        }
        at = add(tag);
        target = at;
        depth++;
      },
      onattribute(name, value) {
        if (target) readAttribute(target, name, value);
        if (name === "itemtype" && skip === 0) page.types.add(value.slice(value.lastIndexOf("/") + 1).toLowerCase());
        if (head) {
          head.attributes[name] ??= value;
          if (head.tag === "html" && (name === "lang" || name === "xml:lang")) page.language ??= value;
        }
        if (capture === "script" && name === "type") linkedData = /ld\+json/i.test(value);
      },
      ontext(text) {
        if (capture) {
          if (capture === "title" || linkedData) captured += text;
          return;
        }
        if (skip > 0) return;
        // Text arrives in pieces, split at every character reference.
        const last = at.children.length - 1;
        if (typeof at.children[last] === "string") at.children[last] += text;
        else at.children.push(text);
      },
      onclosetag(tag) {
        if (VOID.has(tag)) {
          if (head && skip === 0) readHead(page, head);
          head = undefined;
          return;
        }
        if (capture === tag) {
          if (capture === "title") page.title = captured.slice(0, MAX_TITLE);
          else if (captured !== "" && captured.length < 1_000_000) page.jsonLd.push(captured);
          capture = undefined;
        }
        if (skip > 0) skip--;
        else if (tooDeep > 0) tooDeep--;
        else if (at.parent) {
          if (isPermalink(at)) at.children = [];
          at = at.parent;
          depth--;
        }
      },
    },
    { decodeEntities: true, lowerCaseTags: true, lowerCaseAttributeNames: true },
  );
  // In pieces, so that a deadline is kept inside one enormous text as well.
  for (const text of typeof html === "string" ? [html] : html)
    for (let i = 0; i < text.length; i += 1 << 16) {
      inTime(page);
      parser.write(text.slice(i, i + (1 << 16)));
    }
  parser.end();
  return page;
}

const newElement = (tag: string, parent: Element | undefined, index: number): Element => ({
  tag,
  children: [],
  parent,
  index,
  names: "",
  id: "",
  role: "",
  class: "",
  link: false,
  hidden: "",
});

function readAttribute(element: Element, name: string, value: string): void {
  switch (name) {
    case "class":
      element.class = value;
      element.names += ` ${value}`;
      break;
    case "id":
      // A longer one is made of a heading's words. "method.next", "print(int)" and "next/2" are parts of a program, and so is a defined term.
      if (element.tag !== "dt" && !/[./(]/.test(value) && value.split(/[-_]/, 4).length < 4) element.id = value;
      break;
    case "itemprop":
      element.names += ` ${value}`;
      break;
    case "role":
      element.role = value;
      break;
    case "href":
      element.link = !value.startsWith("#");
      break;
    case "hidden":
      element.hidden = "attribute";
      break;
    case "aria-hidden":
      if (value === "true") element.hidden ||= "aria";
      break;
    case "style":
      if (/display\s*:\s*none|visibility\s*:\s*hidden/i.test(value)) element.hidden ||= "style";
  }
}

function readHead(page: Page, { tag, attributes }: { tag: string; attributes: Record<string, string> }): void {
  if (tag === "link") {
    if (attributes.rel?.toLowerCase() === "canonical") page.canonical ??= attributes.href;
    return;
  }
  const name = (attributes.property ?? attributes.name ?? attributes["http-equiv"])?.toLowerCase();
  if (name && attributes.content !== undefined && !page.meta.has(name)) page.meta.set(name, attributes.content);
}

/** All text below an element, in order, white space as it stands. */
export function rawText(element: Element): string {
  const pieces: string[] = [];
  const open: (Element | string)[] = [element];
  while (open.length > 0) {
    const node = open.pop()!;
    if (typeof node === "string") pieces.push(node);
    else if (node.tag === "br") pieces.push("\n");
    else for (let i = node.children.length - 1; i >= 0; i--) open.push(node.children[i]);
  }
  return pieces.join("");
}

/** Visits every element below (and with) `element`, parents first. Return false to leave out an element's children. */
export function walk(element: Element, visit: (element: Element) => boolean | undefined): void {
  const open: Element[] = [element];
  while (open.length > 0) {
    const node = open.pop()!;
    if (visit(node) === false) continue;
    for (let i = node.children.length - 1; i >= 0; i--) {
      const child = node.children[i];
      if (typeof child !== "string") open.push(child);
    }
  }
}
