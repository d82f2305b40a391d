/**
 * Jinja as chat templates use it in Transformers: @huggingface/jinja, and the methods of Python's strings that it has only in part.
 * Its strip, lstrip and rstrip take no characters; templates with thoughts (`.lstrip('\n')`) would lose spaces by that.
 */
import { Template } from "@huggingface/jinja";

/** A compiled template: variables to text. Throws Error when the text is not Jinja, and when rendering fails. */
export function compileJinja(source: string): (variables: Readonly<Record<string, unknown>>) => string {
  const template = new Template(source);
  callStripWithCharacters(template.parsed);
  return (variables) => template.render({ ...PYTHON_STRIP, ...variables });
}

type Stripped = (text: unknown, characters: unknown) => string;
const stripped =
  (left: boolean, right: boolean): Stripped =>
  (text, characters) => {
    if (typeof text !== "string" || typeof characters !== "string")
      throw new Error("strip takes a text and the characters to strip");
    const set = new Set(characters);
    const points = [...text];
    let [start, end] = [0, points.length];
    while (left && start < end && set.has(points[start])) start++;
    while (right && end > start && set.has(points[end - 1])) end--;
    return points.slice(start, end).join("");
  };
const PYTHON_STRIP: Record<string, Stripped> = {
  python_strip: stripped(true, true),
  python_lstrip: stripped(true, false),
  python_rstrip: stripped(false, true),
};

/** A node of a parsed template, as far as it matters here. */
interface Node {
  type?: string;
  callee?: Node & { object?: Node; property?: Node; computed?: boolean };
  args?: Node[];
  value?: unknown;
}

/** text.strip(characters) becomes python_strip(text, characters), everywhere in the tree. */
function callStripWithCharacters(tree: object): void {
  const node = tree as Node;
  const { callee, args = [] } = node;
  const { property, object } = callee ?? {};
  if (
    node.type === "CallExpression" &&
    args.length > 0 &&
    object &&
    property?.type === "Identifier" &&
    callee?.computed === false &&
    /^[lr]?strip$/.test(String(property.value))
  ) {
    node.args = [object, ...args];
    node.callee = { ...property, value: `python_${String(property.value)}` };
  }
  const children = tree instanceof Map ? [...tree].flat() : Object.values(node);
  for (const child of children as unknown[])
    if (typeof child === "object" && child !== null) callStripWithCharacters(child);
}
