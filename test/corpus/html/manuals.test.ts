/** Manuals, references and code: what they are about is often called like what surrounds a text ("search", "print", "comment"). */
import { describe, expect, it } from "vitest";
import { extractHtml } from "../../../src/corpus/extract.js";

const p = (n: number): string =>
  `<p>Paragraph ${n} of the manual tells, at some length, what the program does here, when it does so, and why you may want it to.</p>`;
const page = (body: string, head = ""): string =>
  `<!DOCTYPE html><html lang="en"><head><title>Working with the editor</title>${head}</head><body>${body}</body></html>`;
const textOf = (body: string, head = ""): string => extractHtml(page(body, head)).text;
const inArticle = (html: string): string => textOf(`<div>${p(1)}${html}${p(2)}</div>`);

describe("words of a sentence", () => {
  it("stay, whatever they ask to do", () => {
    expect(
      inArticle(
        '<p>Choose <strong>Print</strong> from the menu, then press <span class="guilabel">Save</span>, and <span>Copy</span> the <strong>Report</strong> to <span>E-mail</span>.</p>',
      ),
    ).toContain("Choose Print from the menu, then press Save, and Copy the Report to E-mail.");
  });
  it("stay, whatever they are called, also inside of a link or of other words", () => {
    expect(
      inArticle(
        '<p><span class="dateline">BERGEN</span> — Open <em class="menu">File</em>, <b><span class="tooltip">Page setup</span></b> and <a href="/m"><span class="search">Find and replace</span></a>; close <i class="comment">all notes</i>.</p>',
      ),
    ).toContain("BERGEN — Open File, Page setup and Find and replace; close all notes.");
  });
  it("do not hold what is not seen, nor links to share or edit the line; names and dates in a line of their own are no sentence", () => {
    const text = inArticle(
      '<p>Open it twice<span class="sr-only"> (in a new window)</span>.</p><h2>Windows of the editor <span class="mw-editsection">[<a href="/e">change source</a>]</span></h2>' +
        '<div><span class="byline">By Jane Doe</span> | <span class="share">12 shares</span></div>',
    );
    expect(text).toContain("Open it twice.");
    expect(text).toContain("Windows of the editor\n");
    expect(text).not.toMatch(/change source|Jane Doe|12 shares/);
  });
});

describe("calls to do something", () => {
  it("go where a block says nothing else, also as a list or in a cell that lays out the page", () => {
    const text = inArticle(
      "<div>Advertisement</div><p><strong>Share this article</strong></p><p>Print</p><section><div>Copy</div></section><h3>Leave a Reply</h3><ul><li>Share</li><li><p>Tweet</p></li><li>Print</li></ul><ul><li>Save</li><li><a href='/f'>On the other site</a></li></ul><table><tr><td><div>Read more</div></td></tr></table>",
    );
    expect(text).not.toMatch(/Advert|Share|Print|Copy|Reply|Tweet|Save|other site|Read more/);
    expect(text).toMatch(/^Paragraph 1.*\n\nParagraph 2.*$/);
  });
  it("stay as headings, as items among others, as terms and as data", () => {
    const text = inArticle(
      '<p>The menu has these entries:</p><ul><li>Edit</li><li><p>Copy</p></li><li>Paste</li></ul><h2>Share</h2><p>Sends it to others.</p><div class="mw-heading"><h3>Print</h3></div><p>Prints it.</p>' +
        "<dl><dt>Save</dt><dd><p>Report</p></dd></dl><table><tr><th>Key</th><th>Entry</th></tr><tr><td>F2</td><td><p>Reply</p></td></tr></table>",
    );
    expect(text).toContain("- Edit\n- Copy\n- Paste\n");
    for (const part of ["Share\n\nSends", "Print\n\nPrints", "Save\n\nReport", "F2 | Reply"])
      expect(text).toContain(part);
  });
});

describe("code", () => {
  const highlighted = (html: string): string =>
    `<div class="highlight-python notranslate"><div class="highlight">${html}</div></div>`;
  it("of Pygments keeps its tokens", () => {
    expect(
      inArticle(
        highlighted(
          '<pre><span></span><span class="kn">from</span> <span class="nn">copy</span> <span class="kn">import</span> <span class="n">copy</span>\n<span class="nb">print</span><span class="p">(</span><span class="mi">1</span><span class="p">)</span>\n<span class="n">model</span><span class="o">.</span><span class="n">save</span><span class="p">(</span><span class="n">path</span><span class="p">)</span>\n<span class="n">email</span> <span class="o">=</span> <span class="n">report</span><span class="o">.</span><span class="n">copy</span><span class="p">()</span>\n</pre>',
        ),
      ),
    ).toContain("from copy import copy\nprint(1)\nmodel.save(path)\nemail = report.copy()\n");
  });
  it("of highlight.js, Prism and Hexo keeps its comments and directives", () => {
    const text = inArticle(
      '<pre><code class="hljs language-c"><span class="hljs-meta">#<span class="hljs-keyword">include</span> <span class="hljs-string">&lt;stdio.h&gt;</span></span>\n<span class="hljs-comment">// says hello, or not</span>\nputs(x);</code></pre>' +
        '<pre class="language-js"><code><span class="token comment">/* Prism */</span>\n<span class="token function">print</span>(x)</code></pre>' +
        '<figure class="highlight js"><table><tr><td class="gutter"><pre><span class="line">1</span><br><span class="line">2</span><br></pre></td><td class="code"><pre><span class="line"><span class="comment">// of Hexo</span></span><br><span class="line"><span class="keyword">let</span> next;</span><br></pre></td></tr></table></figure>' +
        '<p>Inline: <code><span class="hljs-meta">@property</span></code>.</p><div class="line"><code class="comments"># alone in its line</code></div>',
    );
    for (const part of [
      "#include <stdio.h>\n// says hello, or not\nputs(x);",
      "/* Prism */\nprint(x)",
      "// of Hexo\nlet next;",
      "Inline: @property.",
      "# alone in its line",
    ])
      expect(text).toContain(part);
    expect(text).not.toMatch(/^1$/m);
  });
  it("is without the numbers of its lines, and keeps its own", () => {
    const text = inArticle(
      '<table class="highlighttable"><tr><td class="linenos"><div class="linenodiv"><pre><span class="normal">1</span>\n<span class="normal">2</span></pre></div></td><td class="code"><div><pre>a = 1\nb = 2</pre></div></td></tr></table>' +
        '<pre><span class="linenos">10</span>c = 3\n<span class="lineno">11 </span>d = 4</pre><pre class="line-numbers"><code>x = [5,\n6]<span aria-hidden="true" class="line-numbers-rows"><span></span></span></code></pre>' +
        '<div class="row no-gutter">2024</div>',
    );
    for (const part of ["a = 1\nb = 2", "c = 3\nd = 4", "x = [5,\n6]", "2024"]) expect(text).toContain(part);
    expect(text).not.toMatch(/^\s*[12]$|1[01]/m);
  });
  it("is not cut by its hrefs or blocks, as link lists and calls are", () => {
    expect(
      inArticle(
        '<pre><ol class="linenums"><li>copy</li><li><a href="/t">Report</a></li></ol><div>save</div><div class="search"><a href="/u">find()</a></div></pre>',
      ).replace(/\s+/g, " "),
    ).toContain("copy 2. Report save find()");
  });
});

describe("ids", () => {
  const ROLES =
    "search metadata comments navigation feedback rating legal banner menu social copyright signature categories share related".split(
      " ",
    );
  const heading = (id: string): string => id[0].toUpperCase() + id.slice(1);
  it("that a heading gave to its section or to itself say nothing of the role", () => {
    for (const id of ROLES) {
      const shapes = [
        `<section id="${id}"><h2>${heading(id)}<a class="headerlink" href="#${id}" title="Permalink">¶</a></h2>${p(3)}${p(4)}</section>`,
        `<section id="${id}-2" class="level2"><h2 data-number="2.4">2.4. ${heading(id)}</h2>${p(3)}${p(4)}</section>`,
        `<div class="sect1" id="${id}"><div class="titlepage"><div><div><h2 class="title"><a id="x"></a>Chapter 3. ${heading(id)}</h2></div></div></div>${p(3)}${p(4)}</div>`,
        `<h2 id="_${id}">${heading(id)}</h2>${p(3)}${p(4)}`,
      ];
      for (const shape of shapes) {
        const text = inArticle(shape);
        expect(text).toMatch(new RegExp(`${heading(id)}\\n\\nParagraph 3[^]*Paragraph 4[^]*Paragraph 2`));
        expect(text).not.toContain("¶");
      }
    }
  });
  it("are what a part of a page is called where no program has made them, in an article", () => {
    for (const [id, words] of [
      ["comments", "Comments"],
      ["newsletter", "Newsletter"],
      ["related-posts", "Related posts"],
    ]) {
      const text = textOf(
        `<article>${[1, 2, 3, 4, 5, 6].map(p).join("")}</article><section id="${id}"><h2>${words}</h2>${p(7)}</section>`,
      );
      expect(text, id).not.toContain("Paragraph 7");
    }
  });
  it("of terms and of parts of a program neither", () => {
    const text = textOf(
      `<main><h1>Iterators of the library</h1>${p(1)}<dl class="py function"><dt class="sig sig-object py" id="print"><span class="sig-name descname"><span class="pre">print</span></span><span class="sig-paren">(</span><em class="sig-param">value</em><span class="sig-paren">)</span><a class="headerlink" href="#print">¶</a></dt><dd>${p(2)}</dd></dl>` +
        `<div class="impl-items">${["next", "skip", "search"].map((m, i) => `<details class="toggle method-toggle" open><summary><section id="method.${m}" class="method"><h4 class="code-header">fn <a href="#method.${m}" class="fn">${m}</a>(&amp;mut self)</h4><a class="doc-anchor" href="#x">§</a></section></summary><div class="docblock">${p(i + 3)}</div></details>`).join("")}</div>` +
        `<section class="detail" id="copy(int)"><h3>copy</h3><div class="member-signature"><span class="modifiers">public</span> <span class="return-type">void</span> <span class="element-name">copy</span>(int to)</div>${p(6)}</section></main>`,
      '<meta name="generator" content="rustdoc">',
    );
    for (const part of [
      "print(value)\n",
      "fn next(&mut self)",
      "fn skip(&mut self)",
      "fn search(&mut self)",
      "public void copy(int to)",
    ])
      expect(text).toContain(part);
    expect(text).not.toMatch(/[¶§]/);
  });
  it("are names where they are of no heading, or of a menu's", () => {
    const menu = Array.from({ length: 5 }, (_, i) => `<li><a href="/${i}">Entry number ${i}</a></li>`).join("");
    const text = inArticle(
      `<div id="comments"><h3>3 Comments</h3><p>Reader one says that this is wrong, and that he knows better.</p></div><div id="related"><p>You may like this as well, say all of our readers.</p></div><div id="navigation"><h2>Navigation</h2><ul>${menu}</ul></div><div id="cookie-banner"><h2>We use cookies</h2><p>To make this site work, we store cookies, and so do our partners.</p></div>`,
    );
    expect(text).toMatch(/^Paragraph 1.*\n\nParagraph 2.*$/);
  });
});

it("leaves no spaces where a line may be broken", () => {
  expect(inArticle("<p>ភាសា\u200bខ្មែរ \u200b និង\u200bអក្សរ</p>")).toContain("ភាសាខ្មែរ និងអក្សរ");
});

it("keeps the sign of a permalink that is text", () => {
  expect(inArticle('<p>The sign <b>#</b> begins a comment, see <a href="#p">¶ 7</a> and § 12.</p>')).toContain(
    "The sign # begins a comment, see ¶ 7 and § 12.",
  );
});
