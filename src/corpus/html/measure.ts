/** What is known of each element of a page: how much text, how much of it links, what its names say, and its paragraphs' votes. */
import type { Element, Page } from "./tree.js";

export const BLOCKS = new Set(
  "#root html body address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr li main menu nav ol p pre section summary table tbody td tfoot th thead tr ul caption".split(
    " ",
  ),
);

/** Names that page authors give to what surrounds a text. */
const AROUND =
  /\b(?:ad|ads|advert\w*|sponsor\w*|promo\w*|banner|breadcrumbs?|byline|caption|cookie\w*|consent|gdpr|crumbs?|dateline|feedback|footers?|foot|header|masthead|hidden|invisible|sr-only|visually-hidden|login|signup|sign-in|menus?|meta|metadata|modal|nav|navbar|navigation|navi|newsletter|subscribe|subscription|outbrain|taboola|pager|pagination|paging|popup|popular|trending|most-read|mostread|print|prev|previous|next|rating|recommend\w*|related|relatedposts?|readmore|read-more|more-stories|morestories|reply|rss|search|share|sharing|sharebar|shares|skip|skyscraper|social|follow|sociable|addthis|tags|tag-list|taglist|categories|toolbar|tools|toolbox|topbar|tooltip|widget|utility|video-player|author-bio|authorbox|about-author|copyright|legal|disclaimer|overlay|shopping|product-links|teaser|slideshow|gallery|carousel|noprint|no-print|toc|editsection|mw-editsection|navbox|catlinks|printfooter|jump-to-nav|siteSub)\b/i;
/** Names of boxes beside a text; inside the text they are often a part of it (notes, definitions). */
const BESIDE = /\b(?:sidebar|side|sidenote|callout|infobox|admonition)\b/i;
/** What readers wrote below a text, in several languages; there may be more of it than of the text. */
const COMMENTS =
  /\b(?:comment|comments|commentlist|comment-\w+|\w+-comments?|comentarios?|commentaires?|reactions?|reacties|kommentare?|opiniones|disqus|livefyre|respond|replies)\b/i;
const ABOUT_COMMENTS = /\b(?:no|has|with|open|closed)-comments?\b/i;
const INSIDE =
  /\b(?:article|articlebody|article-body|article-content|article-text|story|storybody|story-body|story-content|content|content-body|main|maincontent|main-content|body|bodytext|entry|entry-content|hentry|h-entry|post|postbody|post-body|post-content|post-text|text|blog|page|column|prose|markdown|markdown-body|mw-parser-output|documentation|chapter)\b/i;

export interface Names {
  around: boolean;
  beside: boolean;
  inside: boolean;
  comments: boolean;
}
const NAMELESS: Names = { around: false, beside: false, inside: false, comments: false };
/** A site repeats its class names on every page; the table is emptied when a crawl has filled it. */
const nameTable = new Map<string, Names>();

function namesOf({ names: raw }: Element): Names {
  if (raw === "") return NAMELESS;
  let names = nameTable.get(raw);
  if (!names) {
    if (nameTable.size > 20_000) nameTable.clear();
    // camelCase and underscores to words, so that one pattern serves all habits of naming.
    const text = raw
      .slice(0, 1000)
      .replace(/([a-z])([A-Z])/g, "$1-$2")
      .replace(/_+/g, "-");
    names = {
      around: AROUND.test(text),
      beside: BESIDE.test(text),
      inside: INSIDE.test(text),
      comments: COMMENTS.test(text) && !ABOUT_COMMENTS.test(text),
    };
    nameTable.set(raw, names);
  }
  return names;
}

export interface Facts {
  /** Characters of text below, white space collapsed; of these inside links. Chinese, Japanese, Korean and Thai count twice. */
  length: number;
  links: number;
  /** Votes that the paragraphs below gave, less with distance. */
  votes: number;
  /** Votes of the paragraphs that lie directly in this block. */
  own: number;
  /** Votes of all paragraphs below, whatever the distance: how much prose there is. */
  prose: number;
  paragraphs: number;
  names: Names;
  /** Around the text; "doubtful": unless it lies inside of it. */
  out: false | "doubtful" | true;
}

/** One entry an element, in the order of page.elements. */
export function measurePage(page: Page): Facts[] {
  const facts: Facts[] = new Array(page.elements.length);
  for (let i = page.elements.length - 1; i >= 0; i--) facts[i] = measure(page.elements[i], facts);
  return facts;
}

function measure(element: Element, facts: readonly Facts[]): Facts {
  const f: Facts = {
    length: 0,
    links: 0,
    votes: 0,
    own: 0,
    prose: 0,
    paragraphs: 0,
    names: namesOf(element),
    out: false,
  };
  for (const child of element.children) {
    if (typeof child === "string") f.length += count(child).length;
    else {
      const c = facts[child.index];
      f.length += c.length;
      f.links += c.links;
      f.prose += c.prose;
      f.paragraphs += c.paragraphs;
    }
  }
  if (element.tag === "p") f.paragraphs++;
  if (element.link && element.tag === "a") f.links = f.length;
  if (BLOCKS.has(element.tag)) {
    f.own = votesIn(element);
    f.prose += f.own;
  }
  return f;
}

interface Count {
  length: number;
  marks: number;
}
const counted: Count = { length: 0, marks: 0 };
const MARKS = new Set([..."  ,;.!?:،؛۔。，、；！？।："].filter((c) => c !== " ").map((c) => c.charCodeAt(0)));

/** The same object every time. */
function count(text: string): Count {
  let length = 0;
  let marks = 0;
  let space = true;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c <= 32 || c === 0xa0) {
      if (!space) length++;
      space = true;
      continue;
    }
    space = false;
    length++;
    if (c < 128) {
      if (c < 64 && MARKS.has(c)) marks++;
    } else if (c >= 0x600) {
      if (MARKS.has(c)) marks++;
      else if ((c >= 0x3040 && c <= 0xd7af) || (c >= 0xe00 && c <= 0xe7f)) length++;
    }
  }
  counted.length = space && length > 0 ? length - 1 : length;
  counted.marks = marks;
  return counted;
}

/**
 * Votes of the paragraphs that lie directly in a block: its inline content, cut at block children and at double <br>.
 * An inline element that holds blocks is walked through; the blocks inside have their own.
 */
function votesIn(block: Element): number {
  let votes = 0;
  let length = 0;
  let links = 0;
  let marks = 0;
  let breaks = 0;
  const stack: Element[] = [block];
  const next: number[] = [0];
  let linkDepth = 0;
  while (stack.length > 0) {
    const element = stack[stack.length - 1];
    const child = element.children[next[next.length - 1]++];
    if (child === undefined) {
      if (element.tag === "a" && element !== block) linkDepth--;
      stack.pop();
      next.pop();
      continue;
    }
    if (typeof child === "string") {
      const c = count(child);
      if (c.length === 0) continue;
      breaks = 0;
      length += c.length;
      marks += c.marks;
      if (linkDepth > 0) links += c.length;
      continue;
    }
    if (child.tag === "br") {
      if (++breaks < 2) continue;
    } else if (!BLOCKS.has(child.tag)) {
      stack.push(child);
      next.push(0);
      if (child.tag === "a") linkDepth++;
      continue;
    }
    votes += voteOf(length, links, marks);
    length = links = marks = 0;
  }
  return votes + voteOf(length, links, marks);
}

function voteOf(length: number, links: number, marks: number): number {
  if (length < 25) return 0;
  const density = links / length;
  if (density > 0.6) return 0;
  return (1 + Math.min(marks, 12) + Math.min(length / 100, 5)) * (1 - density) * (length < 60 ? 0.5 : 1);
}
