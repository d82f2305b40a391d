/** What kind of page it is: of some, other things are the text than of an article. */
import type { Facts } from "./measure.js";
import type { Element, Page } from "./tree.js";

export interface PageKind {
  /** It says of itself that it is one article. */
  article: boolean;
  /** What readers wrote is the text: forums, questions and answers. */
  forum: boolean;
  /** Written by a generator of documentation, or full of code: lists of links are a part of it. */
  reference: boolean;
}

const FORUM = /\b(?:phpbb|vbulletin|xenforo|discourse|mybb|smf|invision|nodebb|flarum|fluxbb|punbb|bbpress|forums?)\b/i;
const FORUM_TYPES = ["discussionforumposting", "qapage", "question"];
const ARTICLE_TYPES = ["article", "newsarticle", "blogposting", "reportagenewsarticle", "techarticle"];
const GENERATORS =
  /sphinx|mkdocs|docusaurus|doxygen|javadoc|rustdoc|docbook|asciidoc|texinfo|makeinfo|hugo book|gitbook|mdbook|vuepress|vitepress/i;

/** Marks what stands in comments (`inComments`) on the way. */
export function kindOfPage(page: Page, of: (e: Element) => Facts): PageKind {
  const data = page.jsonLd.join(" ").toLowerCase();
  const has = (types: readonly string[]): boolean =>
    types.some((t) => page.types.has(t)) || (data !== "" && types.some((t) => data.includes(`"${t}"`)));
  let [comments, outside, code, articles] = [0, 0, 0, 0];
  let names = page.meta.get("generator") ?? "";
  let posts = 0;
  for (const element of page.elements) {
    if (element.tag === "code" || element.tag === "pre" || element.tag === "dt") code++;
    const f = of(element);
    if (element.tag === "body" || element.tag === "html") names += ` ${f.called}`;
    if (f.names.post) posts++;
    const inComments: boolean = f.names.comments || (element.parent !== undefined && of(element.parent).inComments);
    f.inComments = inComments;
    if (inComments) comments += f.own;
    else outside += f.own;
    if ((element.tag === "article" || f.names.articleBody) && !inComments && f.prose > 8) articles++;
  }
  const forum = posts > 0 || has(FORUM_TYPES) || FORUM.test(names);
  const article = !forum && (page.meta.get("og:type") === "article" || has(ARTICLE_TYPES) || articles === 1);
  return {
    article,
    forum: forum || (!article && outside < 8 && comments > outside),
    reference: GENERATORS.test(page.meta.get("generator") ?? "") || (code > 5 && !article),
  };
}
