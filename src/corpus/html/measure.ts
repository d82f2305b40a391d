/** What is known of each element of a page: how much text, how much of it links, what its names say, and its paragraphs' votes. */
import { type Element, type Page, rawText } from "./tree.js";

export const BLOCKS = new Set(
  "#root html body address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr li main menu nav ol p pre section summary table tbody td tfoot th thead tr ul caption".split(
    " ",
  ),
);

export const HEADINGS = new Set(["h1", "h2", "h3", "h4", "h5", "h6"]);

/** Names that page authors give to what surrounds a text. */
const AROUND =
  /\b(?:ad|ads|advert\w*|sponsor\w*|promo\w*|banner|breadcrumbs?|byline|caption|cookies?(?:-?(?:alert|bar|banner|bot|consent|disclaimer|dialog|info|law|message|modal|notice|notification|policy|popup|wall)\w*)?|cookiebot\w*|consent|gdpr|onetrust|didomi|usercentrics|truste|iubenda|qc-cmp2?|crumbs?|dateline|feedback|footers?|foot|masthead|login|signup|sign-in|menus?|meta|metadata|modal|nav|nav-?(?:bar|header|footer|links?|menu|list|tabs?)|navigation|navi|newsletter|subscribe|subscription|outbrain|taboola|pager|pagination|paging|popup|popular|trending|most-read|mostread|print|prev|previous|next|rating|recommend\w*|related|relatedposts?|readmore|read-more|more-stories|morestories|reply|rss|search|share|sharing|sharebar|shares|skip|skyscraper|social|follow|sociable|addthis|tags|tag-list|taglist|categories|toolbar|tools|toolbox|topbar|tooltip|widget|utility|video-player|author-bio|authorbox|about-author|copyright|legal|disclaimer|overlay|shopping|product-links|upsells?|cross-sells?|add-to-cart|minicart|teaser|slideshow|gallery|carousel|toc|table-of-contents|editsection|mw-editsection|navbox|catlinks|printfooter|jump-to-nav|siteSub|postprofile|user-?info|user-details|message-user|avatar\w*|post-buttons|quick-?reply|online-list|stat-block|jumpbox|action-bar)\b|(?:^| )(?:[\w-]*(?:site|main|global|top|page)-)?header(?: |-(?:top|nav|bar|menu|wrap\w*|container|inner|main)|$)/i;
/** What is on the page and not for the eye. */
const UNSEEN = /\b(?:hidden|invisible|sr-only|visually-hidden|noprint|no-print)\b/i;
/** Names of boxes beside a text; inside the text they are often a part of it (notes, definitions). */
const BESIDE = /\b(?:sidebar|side|infobox)\b/i;
const NOTE = /\b(?:admonition\w*|callout|sidenote)\b/i;
/** What readers wrote below a text, in several languages; there may be more of it than of the text. */
const COMMENTS =
  /\b(?:comment|comments|commentlist|comment-\w+|\w+-comments?|comentarios?|commentaires?|reactions?|reacties|kommentare?|opiniones|disqus|livefyre|respond|replies)\b/i;
const ABOUT_COMMENTS = /\b(?:no|has|with|open|closed)-comments?\b/i;
const INSIDE =
  /\b(?:article|articlebody|article-body|article-content|article-text|story|storybody|story-body|story-content|content|content-body|main|maincontent|main-content|body|bodytext|entry|entry-content|hentry|h-entry|post|postbody|post-body|post-content|post-text|text|blog|page|column|prose|markdown|markdown-body|mw-parser-output|documentation|chapter)\b/i;
/** What the engines of forums, and of sites of questions and answers, call a post; a title's name must be the whole one (a news page has "tag-topic-title"). */
const POST =
  /\b(?:viewtopic|post-?profile|crawler-post|message-userContent|message--post|postbit\w*|js-post-body|comment-tree|commtext|usertext-body|shreddit-\w+|bbp-reply-content)\b|(?<![\w-])(?:topic-title|thread-?title)(?![\w-])/i;
/** What a forum puts below each post, but in documentation how a function is called. */
const SIGNATURE = /\bsignature\b/i;
/** Numbers of lines beside code; or all of the code that has them, so that the text has to be looked at as well. */
const GUTTER = /(?<![\w-])(?:rouge-)?gutter(?![\w-])|\b(?:line-?nos?|line-?numbers?|linenodiv|lnt?)\b/i;
/** Parts that unfold: a style hides them until then. */
const FOLDED = /\b(?:accordion|collaps\w*|faqs?|answer|tab-?(?:pane|panel|content)s?|toggle-content|expand\w*)\b/i;
/**
 * Tokens that say nothing of the role: those of frameworks that style by class (variants with a colon, "overflow-hidden"), and the
 * word "widget" of page builders, which all of their text stands in.
 */
const STYLING =
  /(?:^| )\S*:\S*|\b(?:overflow(?:-[xy])?|backface)-hidden\b|\b(?:elementor|siteorigin|so|fusion)-widget-/gi;
export interface Names {
  around: boolean;
  unseen: boolean;
  signature: boolean;
  gutter: boolean;
  beside: boolean;
  inside: boolean;
  comments: boolean;
  folded: boolean;
  note: boolean;
  post: boolean;
  /** schema.org's property for the text of an article. */
  articleBody: boolean;
}
const NAMELESS: Names = {
  around: false,
  unseen: false,
  signature: false,
  gutter: false,
  beside: false,
  inside: false,
  comments: false,
  folded: false,
  note: false,
  post: false,
  articleBody: false,
};
const NUMBERS: Names = { ...NAMELESS, gutter: true };
/** A site repeats its class names on every page; the table is emptied when a crawl has filled it. */
const nameTable = new Map<string, Names>();

function namesOf(raw: string): Names {
  if (raw === "") return NAMELESS;
  let names = nameTable.get(raw);
  if (!names) {
    if (nameTable.size > 20_000) nameTable.clear();
    // camelCase and underscores to words, so that one pattern serves all habits of naming.
    const text = raw
      .slice(0, 1000)
      .replace(/([a-z])([A-Z])/g, "$1-$2")
      .replace(/_+/g, "-")
      .replace(STYLING, " ")
      .trim();
    const unseen = UNSEEN.test(text);
    names = {
      around: unseen || AROUND.test(text),
      unseen,
      signature: SIGNATURE.test(text),
      gutter: GUTTER.test(text),
      beside: BESIDE.test(text),
      inside: INSIDE.test(text),
      comments: COMMENTS.test(text) && !ABOUT_COMMENTS.test(text),
      folded: FOLDED.test(text),
      note: NOTE.test(text),
      post: POST.test(text),
      articleBody: /\barticleBody\b/.test(raw),
    };
    nameTable.set(raw, names);
  }
  return names;
}

export interface Facts {
  /** Characters of text below, white space collapsed; of these inside links. Chinese, Japanese, Korean and Thai count twice. */
  length: number;
  links: number;
  /** Characters below that are neither white space nor digits. */
  others: number;
  /** The longest text that stands directly in the element. */
  direct: number;
  /** Votes that the paragraphs below gave, less with distance. */
  votes: number;
  /** Votes of the paragraphs that lie directly in this block. */
  own: number;
  /** Votes of all paragraphs below, whatever the distance: how much prose there is. */
  prose: number;
  paragraphs: number;
  /** The same without what lies around the text; filled in by `measureInside`. */
  netLength: number;
  netLinks: number;
  netProse: number;
  /** Its class, itemprop and id, as far as these are names of what it is for. */
  called: string;
  names: Names;
  /** Its id repeats the heading that it begins with. */
  ofHeading: boolean;
  /** Is code, or in it. */
  code: boolean;
  /** An inline element that stands in a line with text. */
  inLine: boolean;
  /** In what readers wrote below a text. */
  inComments: boolean;
  /** Around the text; "doubtful": unless it lies inside of it. */
  out: false | "doubtful" | true;
}

/** One entry an element, in the order of page.elements. */
export function measurePage(page: Page): Facts[] {
  const facts: Facts[] = new Array(page.elements.length);
  for (let i = page.elements.length - 1; i >= 0; i--) facts[i] = measure(page.elements[i], facts);
  for (const element of page.elements) nameInPlace(element, facts);
  return facts;
}

/** Letters that stand beside a word; what separates the entries of a line of names and dates is shorter. */
const TEXT_BESIDE = 3;

/** Letters of a word, or a label of two, in a sentence; what asks for something says more. */
const LONGEST_WORD = 16;

/**
 * In documentation ids are made of headings: what one says that its heading says too is not the element's role. (Elsewhere `comments` with the heading "Comments" is what
 * it is called.)
 */
export function forgetHeadingIds(page: Page, facts: readonly Facts[]): void {
  for (const element of page.elements) {
    const f = facts[element.index];
    if (f.ofHeading) forgetId(element, f);
  }
}
function forgetId(element: Element, f: Facts): void {
  f.called = element.names;
  f.names = f.code ? NAMELESS : namesOf(element.names);
}

/** What the names of an element say where it stands: those of words and of code say what these mean, and not what they are for. */
function nameInPlace(element: Element, facts: readonly Facts[]): void {
  const { tag, id, names } = element;
  const f = facts[element.index];
  if (element.parent) {
    const above = facts[element.parent.index];
    f.code = above.code || tag === "pre" || tag === "code";
    f.inLine = (above.inLine || above.direct >= TEXT_BESIDE) && f.prose === 0 && !BLOCKS.has(tag);
  }
  if (names === "" && id === "") return;
  f.called = id === "" ? names : `${names} ${id}`;
  f.names = namesOf(f.called);
  const heading = id !== "" && speakAgainst(f.names) ? ownHeading(element, facts) : undefined;
  f.ofHeading = heading !== undefined;
  if (heading && isGenerated(element, heading)) forgetId(element, f);
  if (f.names === NAMELESS) return;
  // A line may end with links to share or edit it, and have parts that are not seen.
  const word = f.inLine && f.length <= LONGEST_WORD && f.links * 2 <= f.length && !f.names.unseen;
  const gutter = f.names.gutter && (f.code || isBesideCode(element));
  if (f.code || word) f.names = gutter ? NUMBERS : NAMELESS;
  else if (f.names.gutter !== gutter) f.names = { ...f.names, gutter };
}

/** So many neighbours are asked for code. */
const NEIGHBOURS = 20;
const holdsCode = (e: Element | string, deep = 2): boolean =>
  typeof e === "object" &&
  (e.tag === "pre" ||
    e.tag === "code" ||
    (deep > 0 && e.children.slice(0, NEIGHBOURS).some((c) => holdsCode(c, deep - 1))));
const isBesideCode = (element: Element): boolean =>
  holdsCode(element) || (element.parent?.children.slice(0, NEIGHBOURS).some((c) => holdsCode(c)) ?? false);

const speakAgainst = ({ around, beside, comments, signature }: Names): boolean =>
  around || beside || comments || signature;

/** Boxes that a heading stands in at the beginning of a section; DocBook writes three. */
const MAX_BOXES = 8;

/** The heading that an element is, or begins with. */
export function headingOf(element: Element, of: (e: Element) => Facts): Element | undefined {
  let at: Element | string | undefined = element;
  for (let boxes = 0; typeof at === "object" && boxes <= MAX_BOXES; boxes++) {
    if (HEADINGS.has(at.tag)) return at;
    at = at.children.find((c) => (typeof c === "string" ? c.trim() !== "" : of(c).length > 0));
  }
  return undefined;
}

/** "3.2. ", "A. ", "Chapter 3. "; and not "3 " as in "3 comments". */
const NUMBERING = /^\s*(?:\p{L}+\s)?(?:(?:\d+|[A-Z])\.)+\d*\s+/u;

/** The heading whose words an id repeats: it is an address then, and says no more of what stands below than these do. */
function ownHeading(element: Element, facts: readonly Facts[]): Element | undefined {
  const of = (e: Element): Facts => facts[e.index];
  const heading = headingOf(element, of);
  if (!heading || of(heading).length > 100) return undefined;
  // A menu may have a heading as well.
  if (heading !== element && of(element).links * 2 > of(element).length) return undefined;
  const letters = (text: string): string => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "");
  const words = letters(rawText(heading).replace(NUMBERING, ""));
  // The second "search" is "search-1".
  const isSame = words === letters(element.id) || words === letters(element.id.replace(/[-_]\d+$/, ""));
  return isSame ? heading : undefined;
}

/** Whether a program has made the id, as generators of documentation do: of a heading itself, of a section of a level, of one that has a number or an address to copy. */
const isGenerated = (element: Element, heading: Element): boolean =>
  element === heading ||
  /\b(?:level|sect)\d\b/.test(element.names) ||
  NUMBERING.test(rawText(heading)) ||
  heading.children.some(
    (c) => typeof c === "object" && c.tag === "a" && c.children.length === 0 && /link|anchor/i.test(c.names),
  );

/** Lengths and votes of every element without the elements that are `out`; to be called when that is known. */
export function measureInside(page: Page, facts: readonly Facts[]): void {
  for (let i = page.elements.length - 1; i >= 0; i--) {
    const element = page.elements[i];
    const f = facts[i];
    if (f.out === true) continue;
    [f.netLength, f.netLinks, f.netProse] = [f.length, f.links, f.prose];
    for (const child of element.children) {
      if (typeof child === "string") continue;
      const c = facts[child.index];
      f.netLength -= c.length - c.netLength;
      f.netLinks -= c.links - c.netLinks;
      f.netProse -= c.prose - c.netProse;
    }
  }
}

function measure(element: Element, facts: readonly Facts[]): Facts {
  const f: Facts = {
    length: 0,
    links: 0,
    others: 0,
    direct: 0,
    votes: 0,
    own: 0,
    prose: 0,
    paragraphs: 0,
    netLength: 0,
    netLinks: 0,
    netProse: 0,
    called: "",
    names: NAMELESS,
    ofHeading: false,
    code: false,
    inLine: false,
    inComments: false,
    out: false,
  };
  for (const child of element.children) {
    if (typeof child === "string") {
      const { length, others } = count(child);
      f.length += length;
      f.others += others;
      if (length > f.direct) f.direct = length;
    } else {
      const c = facts[child.index];
      f.length += c.length;
      f.others += c.others;
      f.links += c.links;
      f.prose += c.prose;
      f.paragraphs += c.paragraphs;
    }
  }
  if (element.tag === "p") f.paragraphs++;
  if (element.link && element.tag === "a") f.links = f.length;
  if (f.length >= SHORTEST_VOTER && BLOCKS.has(element.tag)) {
    f.own = votesIn(element);
    f.prose += f.own;
  }
  return f;
}

interface Count {
  length: number;
  marks: number;
  others: number;
}
const counted: Count = { length: 0, marks: 0, others: 0 };
const MARKS = new Set([..."  ,;.!?:،؛۔。，、；！？।："].filter((c) => c !== " ").map((c) => c.charCodeAt(0)));

/** The same object every time. */
function count(text: string): Count {
  let length = 0;
  let marks = 0;
  let others = text.length;
  let space = true;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c <= 32 || c === 0xa0) {
      if (!space) length++;
      space = true;
      others--;
      continue;
    }
    space = false;
    length++;
    if (c < 128) {
      if (c >= 64) continue;
      if (c >= 48 && c <= 57) others--;
      else if (MARKS.has(c)) marks++;
    } else if (c >= 0x600) {
      if (MARKS.has(c)) marks++;
      else if ((c >= 0x3040 && c <= 0xd7af) || (c >= 0xe00 && c <= 0xe7f)) length++;
    }
  }
  counted.length = space && length > 0 ? length - 1 : length;
  counted.marks = marks;
  counted.others = others;
  return counted;
}

/** Characters; a paragraph with fewer has no vote. */
const SHORTEST_VOTER = 25;

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
  if (length < SHORTEST_VOTER) return 0;
  const density = links / length;
  if (density > 0.6) return 0;
  return (1 + Math.min(marks, 12) + Math.min(length / 100, 5)) * (1 - density) * (length < 60 ? 0.5 : 1);
}
