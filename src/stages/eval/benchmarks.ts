/**
 * Records of known benchmarks as the Hub has them, told by their keys, in those of tasks.ts:
 *
 *   ARC, OpenBookQA, CommonsenseQA   question or question_stem, choices {text, label}, answerKey
 *   MMLU                             question, subject, choices, answer
 *   HellaSwag                        activity_label, ctx_a, ctx_b, endings, label
 *   PIQA                             goal, sol1, sol2, label
 *   SciQ                             question, support, distractor1 to 3, correct_answer
 *   C-Eval, CMMLU                    question, A, B, C, D, answer (CMMLU: Question, Answer); the answer is a letter
 *   GSM8K                            question, answer: the way, "####" and the number
 *   TriviaQA                         question, answer {value, aliases}
 *   SQuAD                            question, context, answers {text}
 *
 * A base model goes on from the words that the Language Model Evaluation Harness (Gao et al. 2021) gives it before each choice, so that its
 * accuracies are the same. Where the harness has the choices listed and asks for a letter (CommonsenseQA, C-Eval, CMMLU), which small models cannot tell,
 * the choices are scored here as for ARC; MMLU is the harness's mmlu_continuation, without its line on the subject.
 */
type Fields = Record<string, unknown>;

/** What of a benchmark's record stands for the same in the keys of tasks.ts; `query`: what a base model goes on from. */
export interface Known {
  question: unknown;
  choices?: unknown;
  answer?: unknown;
  answers?: unknown;
  field?: unknown;
  query?: string;
  /** Its answers stand at the end of a way. */
  reasoned?: true;
}

/** Undefined for a record of no known benchmark. */
export function benchmarkOf(r: Fields): Known | undefined {
  // The same words of three people are one answer.
  if (isObject(r.answers) && isTexts(r.answers.text))
    return { question: r.question, answers: [...new Set(r.answers.text)] };
  // Somebody's own record, whatever else it says.
  if (r.answers !== undefined || r.field !== undefined) return undefined;
  const { choices, answer } = r;
  if (isObject(choices) && isTexts(choices.text) && isTexts(choices.label)) {
    const { answerKey } = r;
    const right = typeof answerKey === "string" ? choices.label.indexOf(answerKey.trim()) : -1;
    const known = { choices: choices.text, answer: right < 0 ? answerKey : right };
    if (r.question_stem !== undefined) return { question: r.question_stem, ...known };
    return { question: r.question, ...known, ...asked(r.question) };
  }
  if (isTexts(choices) && typeof r.subject === "string" && typeof answer === "number")
    return { question: r.question, choices, answer, field: r.subject, ...asked(r.question, (q) => q.trim()) };
  if (isTexts(r.endings) && isText(r.activity_label) && isText(r.ctx_a) && isText(r.ctx_b)) {
    const question = withoutBrackets(`${r.activity_label}: ${r.ctx_a} ${sentence(r.ctx_b)}`);
    return { question, choices: r.endings.map(withoutBrackets), answer: index(r.label) };
  }
  if (isText(r.goal) && isText(r.sol1) && isText(r.sol2))
    return { question: r.goal, choices: [r.sol1, r.sol2], answer: index(r.label), ...asked(r.goal) };
  if (isText(r.distractor1) && isText(r.distractor2) && isText(r.distractor3) && isText(r.correct_answer)) {
    const support = isText(r.support) ? r.support.trimStart() : "";
    return {
      question: support === "" ? r.question : `${support}\n${r.question}`,
      choices: [r.distractor1, r.distractor2, r.distractor3, r.correct_answer],
      answer: 3,
      ...asked(r.question, (q) => q, `${support}\n`),
    };
  }
  const options = [r.A, r.B, r.C, r.D];
  if (isTexts(options)) {
    const letter = answer ?? r.Answer;
    const right = isText(letter) && letter.length === 1 ? "ABCD".indexOf(letter) : -1;
    const question = r.question ?? r.Question;
    return { question, choices: options, answer: right < 0 ? letter : right, ...asked(question, (q) => q.trim()) };
  }
  const number = isText(answer) ? /\n#### (-?[\d.,]+)\s*$/.exec(answer)?.[1] : undefined;
  if (number !== undefined)
    return { question: r.question, answers: [...new Set([number, number.replaceAll(",", "")])], reasoned: true };
  if (isObject(answer) && isText(answer.value)) {
    if (answer.value === "<unk>") return { question: r.question, answers: [] };
    const aliases = isTexts(answer.aliases) ? answer.aliases : [];
    return { question: r.question, answers: [...new Set([answer.value, ...aliases])].filter((a) => a.trim() !== "") };
  }
  return undefined;
}

const isText = (value: unknown): value is string => typeof value === "string";
const isTexts = (value: unknown): value is string[] => Array.isArray(value) && value.length > 0 && value.every(isText);
const isObject = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The harness's words around most questions. */
const asked = (question: unknown, shape = (q: string): string => q, before = ""): { query?: string } =>
  isText(question) ? { query: `${before}Question: ${shape(question)}\nAnswer:` } : {};
/** "3" or 3; what is no number stays, to be told. */
const index = (label: unknown): unknown => (isText(label) && /^\d+$/.test(label) ? Number(label) : label);
/** As Python's str.capitalize. */
const sentence = (text: string): string => text.slice(0, 1).toUpperCase() + text.slice(1).toLowerCase();
/** Brackets come from the pages of WikiHow. */
const withoutBrackets = (text: string): string =>
  text
    .trim()
    .replaceAll(" [title]", ". ")
    .replace(/\[.*?\]/g, "")
    .replaceAll("  ", " ");
