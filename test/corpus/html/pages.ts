/**
 * Pages in the markup that widespread engines write (from their public templates, with made-up text), for kinds of page that no
 * package ships with gold text: forums, shops, documentation, services, listings. `text` must be found, `around` must not.
 */
export interface SamplePage {
  name: string;
  html: string;
  text: string[];
  around: string[];
}

const SUBJECTS =
  "The harbour master|A small engine|This version|The old bridge|Her letter|The committee|My neighbour|The second valve|A good recipe|The river path".split(
    "|",
  );
const VERBS =
  "closes early in winter|needs a new gasket every spring|was repaired by volunteers|does not explain the noise|reads better in the evening|carried more water than before|asked for two more weeks|stands behind the mill|cost less than we feared|turned out to be the cause".split(
    "|",
  );
const TAILS =
  "because the ice came sooner than anyone had said|and nobody wrote the number down|which is why we kept the receipt|although the manual says otherwise|so the whole row had to be moved|as far as the people at the counter know|while the rest of us waited outside|and that settled the matter for good".split(
    "|",
  );

/** A sentence that no other number gives. */
export function sentence(n: number): string {
  return `${SUBJECTS[n % 10]} ${VERBS[(n * 7 + ((n / 10) | 0)) % 10]}, ${TAILS[(n * 3 + ((n / 8) | 0)) % 8]} (${n + 100}).`;
}
const para = (n: number, sentences = 3): string =>
  Array.from({ length: sentences }, (_, i) => sentence(n * 10 + i)).join(" ");
const p = (n: number, sentences = 3): string => `<p>${para(n, sentences)}</p>`;
const links = (label: string, n: number): string =>
  Array.from({ length: n }, (_, i) => `<li><a href="/${label}/${i}">${label} link number ${i}</a></li>`).join("");

const HEADER = `<header class="site-header"><a class="logo" href="/">Site Name</a><nav><ul>${links("Menu", 7)}</ul></nav></header>`;
const FOOTER = `<footer class="site-footer"><div class="cols"><ul>${links("Footer", 9)}</ul></div><p>© 2025 Site Name. All rights reserved. Terms, privacy, imprint.</p></footer>`;
const COOKIES = `<div id="onetrust-consent-sdk"><div class="onetrust-pc-dark-filter"></div><div id="onetrust-banner-sdk" role="dialog" aria-label="Privacy"><div id="onetrust-policy"><div id="onetrust-policy-text">We and our 842 partners store and access information on your device, such as unique identifiers in cookies, to process personal data. You may accept or manage your choices by clicking below, including your right to object.</div></div><button>Accept all</button></div></div>`;
const COOKIE_TEXT = "We and our 842 partners";
const page = (title: string, body: string, head = ""): string =>
  `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>${title}</title>${head}</head><body>${body}</body></html>`;

const CHROME = ["Menu link number 3", "Footer link number 2", "All rights reserved"];

export const samplePages: SamplePage[] = [
  {
    name: "phpBB thread",
    html: page(
      "Engine stalls when cold - Boat Forum",
      `<div id="wrap" class="wrap"><div id="page-header"><div class="headerbar"><h1>Boat Forum</h1><p>The forum for people with boats</p></div><div class="navbar"><ul class="linklist">${links("Board", 5)}</ul></div></div>
<div id="page-body" class="page-body"><h2 class="topic-title"><a href="./viewtopic.php?t=7">Engine stalls when cold</a></h2>
<div class="action-bar bar-top"><a href="./posting.php" class="button">Post Reply</a><div class="pagination">5 posts • Page <strong>1</strong> of <strong>1</strong></div></div>
${[1, 2, 3, 4, 5]
  .map(
    (
      n,
    ) => `<div id="p${n}" class="post has-profile bg${n % 2}"><div class="inner"><dl class="postprofile" id="profile${n}"><dt><a href="./u${n}" class="username">sailor${n}</a></dt><dd class="profile-rank">Able seaman</dd><dd class="profile-posts"><strong>Posts:</strong> <a href="./s${n}">${n * 31}</a></dd><dd class="profile-joined"><strong>Joined:</strong> Tue Mar 0${n}, 2016 9:14 am</dd></dl>
<div class="postbody"><div id="post_content${n}"><h3 class="first"><a href="#p${n}">Re: Engine stalls when cold</a></h3><ul class="post-buttons"><li><a href="./quote" title="Reply with quote" class="button">Quote</a></li></ul><p class="author">by <strong><a href="./u${n}">sailor${n}</a></strong> » Tue Mar 0${n}, 2016 10:11 am</p><div class="content">${para(n, n === 4 ? 1 : 3)}<br><br>${para(n + 10, 2)}</div><div id="sig${n}" class="signature">Life is better with a sail, and a hot cup of tea</div></div></div></div></div><hr class="divider">`,
  )
  .join("")}
<div class="action-bar"><a href="./viewforum.php">Return to “Engines”</a></div><div class="stat-block online-list"><h3>Who is online</h3><p>Users browsing this forum: No registered users and 3 guests</p></div></div>
<div id="page-footer" class="page-footer"><div class="copyright">Powered by phpBB® Forum Software © phpBB Limited</div></div></div>`,
    ),
    text: [1, 2, 3, 5].flatMap((n) => [para(n), para(n + 10, 2)]).concat(para(4, 1)),
    around: ["Powered by phpBB", "Board link number 2", "Users browsing this forum"],
  },
  {
    name: "Discourse topic as crawlers get it",
    html: page(
      "How do you stop the valve from leaking? - Support - Valve Community",
      `<header><a href="/"><img alt="Valve Community"></a></header><div id="main-outlet" class="wrap" role="main"><div id="topic-title"><h1><a href="/t/7">How do you stop the valve from leaking?</a></h1><div class="topic-category"><span class="category-title">Support</span></div></div>
<div itemscope itemtype="http://schema.org/DiscussionForumPosting">${[1, 2, 3, 4]
        .map(
          (n) =>
            `<div id="post_${n}" itemprop="comment" itemscope itemtype="http://schema.org/Comment" class="topic-body crawler-post"><div class="crawler-post-meta"><span class="creator" itemprop="author"><a href="/u/${n}"><span itemprop="name">user_${n}</span></a></span><span class="crawler-post-infos"><time itemprop="datePublished" class="post-time">March ${n}, 2024, 7:02am</time></span></div><div class="post" itemprop="text">${p(n + 20)}${n === 2 ? "<pre><code>valve --close --all</code></pre>" : ""}${p(n + 30, 2)}</div><div class="post-likes" itemprop="interactionStatistic">${n} Likes</div></div>`,
        )
        .join("")}</div>
<div id="related-topics" class="more-topics__list" role="complementary"><h3>Related topics</h3><table class="topic-list"><tbody>${Array.from({ length: 5 }, (_, i) => `<tr class="topic-list-item"><td class="main-link"><a href="/t/x${i}" class="title raw-link">Another topic about valves number ${i}</a></td><td>${i}</td><td>May 2023</td></tr>`).join("")}</tbody></table></div></div>
<footer class="container wrap"><nav class="crawler-nav"><ul>${links("Home", 4)}</ul></nav><p class="powered-by-link">Powered by Discourse, best viewed with JavaScript enabled</p></footer>`,
    ),
    text: [1, 2, 3, 4].flatMap((n) => [para(n + 20), para(n + 30, 2)]).concat("valve --close --all"),
    around: ["Another topic about valves", "Powered by Discourse", "Home link number 2"],
  },
  {
    name: "question and answers",
    html: page(
      "lua - How to read a file by lines? - Questions",
      `${HEADER}<div class="container"><div id="left-sidebar" class="left-sidebar"><nav role="navigation"><ol>${links("Tags", 6)}</ol></nav></div><div id="content"><div itemprop="mainEntity" itemscope itemtype="https://schema.org/Question"><div id="question-header"><h1 itemprop="name"><a href="/q/7" class="question-hyperlink">How to read a file by lines?</a></h1><a href="/ask">Ask Question</a></div><div>Asked <time>4 years ago</time> Viewed 12k times</div>
<div id="mainbar" role="main"><div class="question js-question" id="question"><div class="post-layout"><div class="votecell"><div class="js-vote-count" itemprop="upvoteCount">42</div></div><div class="postcell"><div class="s-prose js-post-body" itemprop="text">${p(41)}<pre class="lang-lua"><code>for line in io.lines(name) do
  print(line)
end</code></pre>${p(42, 2)}</div><div class="post-taglist"><a href="/t/lua" class="post-tag">lua</a></div></div></div></div>
<div id="answers"><div id="answers-header"><h2>2 Answers</h2></div>${[1, 2]
        .map(
          (n) =>
            `<div id="answer-${n}" class="answer js-answer" itemprop="suggestedAnswer"><div class="post-layout"><div class="votecell">17</div><div class="answercell"><div class="s-prose js-post-body" itemprop="text">${p(n + 42)}<ul><li>${sentence(n + 950)}</li></ul></div><div class="user-info">answered Mar 3 by <a href="/u/${n}">coder${n}</a></div></div></div></div>`,
        )
        .join("")}</div></div>
<div id="sidebar" class="show-votes" role="complementary"><div class="module sidebar-related"><h4>Related</h4>${Array.from({ length: 8 }, (_, i) => `<div class="spacer"><a href="/q/r${i}" class="question-hyperlink">Some other question number ${i} that is related?</a></div>`).join("")}</div></div></div></div></div>${FOOTER}`,
    ),
    text: [para(41), para(42, 2), "for line in io.lines(name) do", para(43), para(44), sentence(951), sentence(952)],
    around: [...CHROME, "Some other question number 3", "Tags link number 2"],
  },
  {
    name: "thread of comments in tables",
    html: page(
      "Ask: why is my bread so flat? | Bread News",
      `<center><table id="hnmain" border="0" width="85%"><tr><td bgcolor="#ff6600"><table border="0" width="100%"><tr><td><span class="pagetop"><b class="hnname"><a href="news">Bread News</a></b> <a href="newest">new</a> | <a href="front">past</a> | <a href="ask">ask</a></span></td></tr></table></td></tr>
<tr id="pagespace"></tr><tr><td><table class="fatitem" border="0"><tr class="athing" id="1"><td class="title"><span class="titleline"><a href="item?id=1">Ask: why is my bread so flat?</a></span></td></tr><tr><td class="subtext"><span class="subline"><span class="score">57 points</span> by <a href="user?id=x" class="hnuser">baker</a> <span class="age"><a href="item?id=1">3 hours ago</a></span> | <a href="hide?id=1">hide</a></span></td></tr><tr><td><div class="toptext">${para(51)}</div></td></tr></table><br>
<table border="0" class="comment-tree">${[1, 2, 3, 4, 5, 6]
        .map(
          (n) =>
            `<tr class="athing comtr" id="c${n}"><td><table border="0"><tr><td class="ind" indent="${n % 3}"></td><td class="default"><div><span class="comhead"><a href="user?id=u${n}" class="hnuser">miller${n}</a> <span class="age"><a href="item?id=c${n}">${n} hours ago</a></span> <span class="navs"> | <a href="#c1">next</a></span></span></div><br><div class="comment"><div class="commtext c00">${para(n + 51, 2)}<p>${para(n + 61, 2)}</p></div><div class="reply"><p><font size="1"><u><a href="reply?id=c${n}">reply</a></u></font></p></div></div></td></tr></table></td></tr>`,
        )
        .join(
          "",
        )}</table></td></tr><tr><td><center><span class="yclinks"><a href="guidelines">Guidelines</a> | <a href="faq">FAQ</a></span></center></td></tr></table></center>`,
    ),
    text: [para(51), ...[1, 2, 3, 4, 5, 6].flatMap((n) => [para(n + 51, 2), para(n + 61, 2)])],
    around: ["Guidelines"],
  },
  {
    name: "article with more comments than text",
    html: page(
      "The mill is open again - Valley Post",
      `${HEADER}<main><article class="post type-post hentry"><header class="entry-header"><h1 class="entry-title">The mill is open again</h1><div class="entry-meta">Posted on <time>3 May 2024</time> by <a href="/a">Reporter</a></div></header><div class="entry-content">${p(71)}${p(72)}<h2>What comes next</h2>${p(73)}</div></article>
<div id="comments" class="comments-area"><h2 class="comments-title">9 thoughts on “The mill is open again”</h2><ol class="comment-list">${Array.from({ length: 9 }, (_, n) => `<li id="comment-${n}" class="comment even"><article class="comment-body"><footer class="comment-meta"><b class="fn">Reader ${n}</b> says:</footer><div class="comment-content"><p>I disagree with comment ${n}. ${para(n + 300)}</p></div><div class="reply"><a href="#r">Reply</a></div></article></li>`).join("")}</ol><div id="respond" class="comment-respond"><h3>Leave a Reply</h3><p>Your email address will not be published.</p></div></div></main>
<aside id="secondary" class="widget-area"><section class="widget widget_recent_entries"><h2>Recent Posts</h2><ul>${links("Recent", 5)}</ul></section></aside>${FOOTER}${COOKIES}`,
    ),
    text: [para(71), para(72), "What comes next", para(73)],
    around: [...CHROME, "I disagree with comment", "Leave a Reply", "Recent link number 2", COOKIE_TEXT],
  },
  {
    name: "product of a shop",
    html: page(
      "Oak Table 180 cm – Wood Shop",
      `<div class="announcement-bar"><p>Free shipping over 50</p></div>${HEADER}<main id="MainContent" role="main"><nav class="breadcrumb"><a href="/">Home</a> › <a href="/tables">Tables</a></nav><section id="shopify-section-template--main" class="shopify-section"><div class="product grid"><div class="product__media-wrapper"><img src="t.jpg" alt="Oak table"></div><div class="product__info-wrapper"><h1 class="product__title">Oak Table 180 cm</h1><div class="price"><span class="price-item">€ 890.00</span></div><div class="product-form"><button>Add to cart</button></div>
<div class="product__description rte"><p>${sentence(810)} ${sentence(811)}</p><ul><li>Solid European oak, oiled twice by hand</li><li>Seats eight people</li></ul><p>${sentence(812)}</p></div><div class="product__accordion accordion"><details><summary><h2 class="accordion__title">Dimensions</h2></summary><div class="accordion__content rte"><table><tbody><tr><td>Length</td><td>180 cm</td></tr><tr><td>Width</td><td>90 cm</td></tr><tr><td>Height</td><td>75 cm</td></tr></tbody></table></div></details><details><summary><h2>Care</h2></summary><div class="accordion__content"><p>${sentence(813)}</p></div></details></div></div></div></section>
<section class="product-recommendations related-products"><h2>You may also like</h2><ul class="grid">${Array.from({ length: 4 }, (_, i) => `<li class="grid__item"><a href="/p/${i}">Pine shelf number ${i}</a><span class="price-item">€ ${i}9.00</span></li>`).join("")}</ul></section></main>${FOOTER}${COOKIES}`,
    ),
    text: [sentence(810), sentence(812), "Solid European oak", "Seats eight people", "Length | 180 cm", sentence(813)],
    around: [...CHROME, "Pine shelf number 2", COOKIE_TEXT],
  },
  {
    name: "landing page of a service",
    html: page(
      "Clean gutters, every season | Gutter Company",
      `${HEADER}<div class="elementor elementor-12"><section class="elementor-section hero"><div class="elementor-container"><div class="elementor-widget-heading"><h1 class="elementor-heading-title">Clean gutters, every season</h1></div><div class="elementor-widget-text-editor"><p>${sentence(821)}</p></div><a class="elementor-button" href="/quote">Get a quote</a></div></section>
${[1, 2, 3].map((n) => `<section class="elementor-section"><div class="elementor-container"><div class="elementor-column"><h2>Service number ${n}</h2><p>${sentence(820 + n * 3)} ${sentence(821 + n * 3)}</p></div></div></section>`).join("")}
<section class="elementor-section"><h2>Questions people ask</h2><div class="faq">${[1, 2, 3].map((n) => `<div class="faq-item"><h3>How long does job ${n} take?</h3><div class="answer"><p>${sentence(840 + n)}</p></div></div>`).join("")}</div></section></div>${FOOTER}${COOKIES}`,
    ),
    text: [
      sentence(821),
      "Service number 1",
      sentence(823),
      "Service number 3",
      sentence(829),
      "How long does job 2 take?",
      sentence(842),
      sentence(843),
    ],
    around: [...CHROME, COOKIE_TEXT],
  },
  {
    name: "documentation with menus on both sides",
    html: page(
      "Configuration | Tool Docs",
      `<div id="__docusaurus"><nav aria-label="Main" class="navbar navbar--fixed-top"><div class="navbar__inner"><a class="navbar__brand" href="/">Tool</a>${links("Nav", 4)}</div></nav><div class="main-wrapper"><div class="docsWrapper_BCFX"><aside class="theme-doc-sidebar-container docSidebarContainer_b6E3"><nav class="menu thin-scrollbar"><ul class="theme-doc-sidebar-menu menu__list">${links("Chapter", 14)}</ul></nav></aside>
<main class="docMainContainer_gTbr"><div class="container padding-top--md"><div class="row"><div class="col docItemCol_VOVn"><div class="docItemContainer_Djhp"><article><nav class="theme-doc-breadcrumbs breadcrumbsContainer_Z_bl"><ul class="breadcrumbs"><li class="breadcrumbs__item"><a href="/">Guides</a></li></ul></nav><div class="theme-doc-markdown markdown"><header><h1>Configuration</h1></header><p>${sentence(861)}</p><div class="theme-admonition theme-admonition-note admonition_xJq3 alert alert--secondary"><div class="admonitionHeading_Gvgb">note</div><div class="admonitionContent_BuS1"><p>${sentence(862)}</p></div></div><h2 class="anchor" id="options">Options<a class="hash-link" href="#options">​</a></h2><table><thead><tr><th>Option</th><th>Meaning</th></tr></thead><tbody><tr><td><code>depth</code></td><td>how far it goes</td></tr><tr><td><code>width</code></td><td>how broad it gets</td></tr></tbody></table><div class="language-js codeBlockContainer_Ckt0"><div class="codeBlockContent_biex"><pre tabindex="0" class="prism-code"><code class="codeBlockLines_e6Vv"><span class="token-line">export default {<br></span><span class="token-line">  depth: 3,<br></span><span class="token-line">};<br></span></code></pre><div class="buttonGroup__atx"><button type="button" aria-label="Copy code to clipboard">Copy</button></div></div></div><dl><dt>depth</dt><dd>${sentence(863)}</dd></dl><p>See <a href="/x">the other page</a>, <a href="/y">the plugins</a> and <a href="/z">the themes</a>.</p></div><footer class="theme-doc-footer docusaurus-mt-lg"><div class="theme-doc-footer-edit-meta-row"><a class="theme-edit-this-page" href="https://example.com">Edit this page</a></div></footer></article><nav class="pagination-nav docusaurus-mt-lg" aria-label="Docs pages"><a class="pagination-nav__link" href="/prev"><div class="pagination-nav__sublabel">Previous</div><div class="pagination-nav__label">Installation steps</div></a></nav></div></div><div class="col col--3"><div class="tableOfContents_bqdL thin-scrollbar theme-doc-toc-desktop"><ul class="table-of-contents table-of-contents__left-border">${links("Toc", 5)}</ul></div></div></div></div></main></div></div><footer class="footer footer--dark"><div class="container"><div class="footer__title">Community</div><ul>${links("Footer", 4)}</ul></div></footer></div>`,
    ),
    text: [
      sentence(861),
      sentence(862),
      "Options",
      "Option | Meaning",
      "depth | how far it goes",
      "export default {\n  depth: 3,\n};",
      sentence(863),
      "See the other page, the plugins and the themes.",
    ],
    around: [
      "Chapter link number 3",
      "Toc link number 2",
      "Edit this page",
      "Footer link number 2",
      "Installation steps",
    ],
  },
  {
    name: "article with hashed class names",
    html: page(
      "The long winter of the ferry | The Paper",
      `<div id="__next"><div class="css-1x2y3z"><div class="css-9h8g7f"><a href="/">The Paper</a><ul class="css-menu1">${links("Section", 8)}</ul></div><div class="sc-a1b2c3 kXyZab"><div class="sc-d4e5f6"><h1 class="sc-g7h8i9">The long winter of the ferry</h1><div class="sc-j1k2"><span>By <a href="/a">A. Writer</a></span><span>Mar 3, 2024</span></div></div>
${[1, 2].map((k) => `<div class="sc-m3n4o5">${p(870 + k * 3)}${p(871 + k * 3)}</div><div class="sc-q6r7 ad-slot"><div>Advertisement</div></div>`).join("")}<div class="sc-m3n4o5"><blockquote><p>${sentence(899)}</p></blockquote>${p(880)}</div>
<div class="sc-s8t9u0"><div>More on this story</div><div><a href="/m1">A ferry that never left the quay</a></div><div><a href="/m2">The captain remembers it well</a></div></div></div><div class="css-foot"><span>© 2024 The Paper. All rights reserved.</span>${links("Legal", 4)}</div></div></div>${COOKIES}`,
    ),
    text: [para(873), para(874), para(876), para(877), sentence(899), para(880)],
    around: ["Section link number 3", "A ferry that never left", "All rights reserved", COOKIE_TEXT],
  },
  {
    name: "wiki article",
    html: page(
      "Lantern - Encyclopedia",
      `<div id="mw-page-base" class="noprint"></div><div id="content" class="mw-body" role="main"><h1 id="firstHeading" class="firstHeading">Lantern</h1><div id="bodyContent"><div id="siteSub" class="noprint">From the encyclopedia</div><div id="mw-content-text" class="mw-body-content"><div class="mw-parser-output"><div role="note" class="hatnote navigation-not-searchable">This article is about the lamp. For other uses, see <a href="/d">Lantern (disambiguation)</a>.</div><table class="infobox"><tbody><tr><th colspan="2">Lantern</th></tr><tr><th>Type</th><td>Lamp</td></tr><tr><th>Invented</th><td>Antiquity</td></tr></tbody></table><p><b>Lantern</b> is a lamp. ${para(901)}<sup class="reference"><a href="#cite1">[1]</a></sup></p><div id="toc" class="toc" role="navigation"><h2>Contents</h2><ul>${links("Contents", 4)}</ul></div><h2><span class="mw-headline" id="History">History</span><span class="mw-editsection">[<a href="/e">edit</a>]</span></h2>${p(902)}<table class="wikitable"><caption>Lanterns by year</caption><tbody><tr><th>Year</th><th>Number</th></tr><tr><td>1900</td><td>12</td></tr><tr><td>1910</td><td>48</td></tr></tbody></table><h2><span class="mw-headline">See also</span></h2><ul><li><a href="/wiki/Candle">Candle</a></li><li><a href="/wiki/Torch">Torch</a></li></ul><div role="navigation" class="navbox"><table><tbody><tr><td><a href="/n1">Navbox entry one</a></td><td><a href="/n2">Navbox entry two</a></td></tr></tbody></table></div></div></div><div id="catlinks" class="catlinks"><a href="/c">Categories</a>: <a href="/c1">Lamps</a></div></div></div><div id="mw-navigation"><div id="mw-panel"><ul>${links("Panel", 6)}</ul></div></div><div id="footer" role="contentinfo"><ul><li>This page was last edited on 3 March 2024.</li></ul></div>`,
    ),
    text: [para(901), "History", para(902), "Year | Number", "1910 | 48"],
    around: ["Panel link number 2", "Navbox entry one", "last edited", "Contents link number 2", "[edit]"],
  },
  {
    name: "listing of articles",
    html: page(
      "Notes on sailing",
      `${HEADER}<main><h1>Notes on sailing</h1><div class="posts">${Array.from({ length: 6 }, (_, n) => `<article class="post-card"><a href="/n/${n}"><h2>Note number ${n} about knots</h2></a><time>2024-0${n + 1}-01</time><p>${sentence(920 + n)} ${sentence(930 + n)}</p><a class="read-more" href="/n/${n}">Read more</a></article>`).join("")}</div><nav class="pagination"><a href="?page=2">Older posts</a></nav></main>${FOOTER}`,
    ),
    text: Array.from({ length: 6 }, (_, n) => [`Note number ${n} about knots`, sentence(920 + n)]).flat(),
    around: [...CHROME, "Older posts"],
  },
];
