/** The chosen elements as plain text: paragraphs with an empty line between, lists, tables with " | ", code as it stands. */
import { BLOCKS } from "./measure.js";
import type { Element } from "./tree.js";

const PARAGRAPH = new Set("p h1 h2 h3 h4 h5 h6 ul ol dl table pre blockquote hr figure address details".split(" "));

/** Levels of a list that are indented; without an end, a page of 200 kB could become 20 MB of text. */
const MAX_INDENT = 10;

type Step =
  | { kind: "node"; node: Element | string; pre: boolean; list: number }
  | { kind: "close"; node: Element; pre: boolean; list: number };

/** Lines are collected with the number of empty lines that must come before them; iterative, so depth costs no stack. */
export function renderText(parts: readonly Element[], without: ReadonlySet<Element>): string {
  const out = new Lines();
  for (const part of parts) {
    out.block(true);
    const open: Step[] = [{ kind: "node", node: part, pre: false, list: 0 }];
    while (open.length > 0) {
      const step = open.pop()!;
      const { node, pre } = step;
      if (typeof node === "string") {
        out.text(node, pre);
        continue;
      }
      if (step.kind === "close") {
        close(node, out);
        continue;
      }
      if (without.has(node)) continue;
      if (node.tag === "br") {
        out.lineBreak(pre);
        continue;
      }
      if (node.tag === "table" && isDataTable(node)) {
        renderTable(node, without, out);
        continue;
      }
      begin(node, out, step.list);
      const inPre = pre || node.tag === "pre";
      const list = step.list + (node.tag === "ul" || node.tag === "ol" ? 1 : 0);
      open.push({ kind: "close", node, pre, list: step.list });
      for (let i = node.children.length - 1; i >= 0; i--)
        open.push({ kind: "node", node: node.children[i], pre: inPre, list });
    }
  }
  return out.end();
}

function begin(element: Element, out: Lines, list: number): void {
  const { tag } = element;
  if (!BLOCKS.has(tag)) return;
  out.block(PARAGRAPH.has(tag) && !(list > 0 && (tag === "ul" || tag === "ol" || tag === "p")));
  if (tag === "li") {
    const ordered = element.parent?.tag === "ol";
    const number = out.nextNumber(element.parent);
    out.prefix(`${"  ".repeat(Math.min(Math.max(0, list - 1), MAX_INDENT))}${ordered ? `${number}.` : "-"} `);
  }
}

function close(element: Element, out: Lines): void {
  const { tag } = element;
  if (tag === "li") out.dropPrefix();
  if (tag === "td" || tag === "th") out.text(" ", false);
  if (BLOCKS.has(tag)) out.block(PARAGRAPH.has(tag) && !out.inList);
}

const dataTables = new WeakMap<Element, boolean>();

/** A table of data has rows of several short cells; one that lays out a page has long ones, or tables within. */
export function isDataTable(table: Element): boolean {
  const known = dataTables.get(table) ?? looksLikeData(table);
  dataTables.set(table, known);
  return known;
}

function looksLikeData(table: Element): boolean {
  let rows = 0;
  let cells = 0;
  const open: Element[] = [table];
  while (open.length > 0) {
    const element = open.pop()!;
    if (element !== table && element.tag === "table") return false;
    if (element.tag === "tr") rows++;
    if (element.tag === "td" || element.tag === "th") {
      cells++;
      let length = 0;
      for (const child of element.children) {
        if (typeof child === "string") length += child.trim().length;
        else if (child.tag === "p" || child.tag === "div") length += textLength(child, 500);
        if (length > 400) return false;
      }
    }
    for (const child of element.children) if (typeof child !== "string") open.push(child);
  }
  return rows > 1 && cells > rows;
}

function textLength(element: Element, enough: number): number {
  let length = 0;
  const open: Element[] = [element];
  while (open.length > 0 && length < enough)
    for (const child of open.pop()!.children)
      if (typeof child === "string") length += child.trim().length;
      else open.push(child);
  return length;
}

function renderTable(table: Element, without: ReadonlySet<Element>, out: Lines): void {
  out.block(true);
  const open: Element[] = [table];
  while (open.length > 0) {
    const element = open.pop()!;
    if (without.has(element)) continue;
    if (element.tag === "tr") {
      const cells = element.children
        .filter((c): c is Element => typeof c !== "string" && (c.tag === "td" || c.tag === "th") && !without.has(c))
        .map((cell) => renderText([cell], without).replace(/\s+/g, " ").trim());
      if (cells.some((c) => c !== "")) {
        out.block(false);
        out.text(cells.join(" | "), true);
      }
    } else if (element.tag === "caption") {
      out.block(false);
      out.text(renderText([element], without), false);
    } else
      for (let i = element.children.length - 1; i >= 0; i--) {
        const child = element.children[i];
        if (typeof child !== "string") open.push(child);
      }
  }
  out.block(true);
}

class Lines {
  private readonly lines: string[] = [];
  private line = "";
  /** It ends with a space. To look would cost its length, as V8 joins the pieces for it, and a line may have many. */
  private spaced = false;
  private gap = false;
  private pending = "";
  private depth = 0;
  private lastWasPre = false;
  private readonly numbers = new WeakMap<Element, number>();

  nextNumber(list: Element | undefined): number {
    if (!list) return 1;
    const number = (this.numbers.get(list) ?? 0) + 1;
    this.numbers.set(list, number);
    return number;
  }

  get inList(): boolean {
    return this.depth > 0;
  }

  /** A block begins or ends here; `apart`: with an empty line. */
  block(apart: boolean): void {
    this.flush();
    if (apart) this.gap = true;
  }
  prefix(text: string): void {
    this.pending = text;
    this.depth++;
  }
  dropPrefix(): void {
    this.flush();
    this.pending = "";
    this.depth--;
  }
  lineBreak(pre: boolean): void {
    if (this.line.trim() === "" && !pre) {
      // The second break in a row makes a paragraph.
      if (this.lines.length > 0) this.gap = true;
      return;
    }
    this.flush();
  }
  text(text: string, pre: boolean): void {
    if (pre) {
      this.lastWasPre = true;
      const pieces = text.split(/\r\n?|\n/);
      for (const [i, piece] of pieces.entries()) {
        if (i > 0) {
          this.push(this.line);
          this.line = "";
        }
        this.line += piece;
        this.spaced = piece.endsWith(" ") || (piece === "" && this.spaced && i === 0);
      }
      return;
    }
    // Where a line may be broken, in Khmer between all words: nothing that is seen.
    const seen = text.includes("\u200b") ? text.replaceAll("\u200b", "") : text;
    const collapsed = seen.replace(/\s+/g, " ");
    const more = this.line === "" || this.spaced ? collapsed.replace(/^ /, "") : collapsed;
    if (more === "") return;
    this.line += more;
    this.spaced = more.endsWith(" ");
  }
  private flush(): void {
    const line = this.lastWasPre ? this.line.trimEnd() : this.line.trim();
    this.lastWasPre = false;
    this.line = "";
    if (line.trim() !== "") this.push(line);
  }
  private push(line: string): void {
    const text = this.pending + line.trimEnd();
    this.pending = "";
    if (this.gap && this.lines.length > 0) this.lines.push("");
    this.gap = false;
    this.lines.push(text);
  }
  end(): string {
    this.flush();
    return this.lines
      .join("\n")
      .replace(/\n{3,}/g, "\n\n")
      .trim();
  }
}
