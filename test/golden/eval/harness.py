"""Golden accuracies of src/stages/eval/benchmarks.ts: python harness.py DIR (writes harness.json beside this file).

DIR is what `pip download --no-deps lm-eval==0.4.13` and unzip give: the Language Model Evaluation Harness's own task files say what stands before each
choice, and its rules what counts. (torch 2.13, transformers 5.18.) The model is that of make.py, in float64, with a context of 512.
The records have the benchmarks' keys; their words are made.
"""
import importlib.util
import json
import pathlib
import random
import sys
import types

import jinja2
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
TASKS = pathlib.Path(sys.argv[1]) / "lm_eval" / "tasks"
random.seed(1)
torch.set_num_threads(1)
model = LlamaForCausalLM.from_pretrained(HERE / "model", dtype=torch.float64, max_position_embeddings=512).eval()
tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
yaml.SafeLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
sys.modules["datasets"] = types.SimpleNamespace(Dataset=object)
env = jinja2.Environment(undefined=jinja2.StrictUndefined)


class Rows(list):
    """As much of datasets.Dataset as the harness's process_docs needs."""
    def map(self, f): return Rows({**row, **f(row)} for row in self)


def load(task):
    config = yaml.safe_load((TASKS / task).read_text())
    name = config.get("process_docs")
    if name is None: return config, lambda rows: rows
    spec = importlib.util.spec_from_file_location("task", (TASKS / task).parent / f"{name.split('.')[0]}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return config, getattr(module, name.split(".")[1])


def field(value, row):
    """A column's name, a list of choices, or a template."""
    if not isinstance(value, str): return value
    return row[value] if value in row else env.from_string(value).render(**row)


@torch.no_grad()
def log_prob(context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces: context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, before = tokenizer(context + continuation)["input_ids"], tokenizer(context)["input_ids"]
    logp = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
    return sum(float(logp[t - 1, whole[t]]) for t in range(len(before), len(whole)))


words = "the owl sees a fox and runs to its house in winter when snow is on old trees by northern river".split()
text = lambda n: " ".join(random.choice(words) for _ in range(n))
def options(n): return random.sample([text(1 + i % 4) for i in range(40)], n)
label = lambda n: "ABCDE"[:n]

def arc(i):
    n = 3 + i % 3
    labels = list(label(n)) if i % 4 else [str(j + 1) for j in range(n)]
    return dict(id=f"a{i}", question=text(6).capitalize() + "?" + " " * (i % 2), choices=dict(text=options(n), label=labels), answerKey=labels[i % n])
def openbook(i): return dict(id=f"o{i}", question_stem=text(5).capitalize(), choices=dict(text=options(4), label=list("ABCD")), answerKey="ABCD"[i % 4] if i % 3 else " " + "ABCD"[i % 4])
def mmlu(i):
    found = options(4)
    return dict(question=" " * (i % 2) + text(7).capitalize() + "?\n" * (i % 3 == 0), subject="astronomy" if i % 2 else "law", choices=found if i % 5 else [found[0], found[1], found[0], found[3]], answer=i % 4)
def hellaswag(i): return dict(ind=i, activity_label=text(2).capitalize(), ctx_a=f"[header] {text(4)} [title] {text(3)}." if i % 2 else text(6) + ".", ctx_b=text(2) + " THE Owl" * (i % 3 == 0) if i % 4 else "", ctx="unused",
                            endings=[f"{t} [step] {text(2)}." if i % 2 else f"  {t}." for t in options(4)], label=str(i % 4))
def piqa(i): return dict(goal=text(5).capitalize() + ".", sol1=text(4), sol2=text(6), label=i % 2)
def sciq(i): a, b, c, d = options(4); return dict(question=text(5).capitalize() + "?", distractor1=a, distractor2=b, distractor3=c, correct_answer=d, support=" " + text(9).capitalize() + "." if i % 3 else "")

golden = []
for name, task, make in [("ARC", "arc/arc_easy.yaml", arc), ("OpenBookQA", "openbookqa/openbookqa.yaml", openbook), ("MMLU", "mmlu/continuation/_continuation_template_yaml", mmlu),
                         ("HellaSwag", "hellaswag/hellaswag.yaml", hellaswag), ("PIQA", "piqa/piqa.yaml", piqa), ("SciQ", "sciq/sciq.yaml", sciq)]:
    config, process = load(task)
    rows = [make(i) for i in range(12)]
    found = []
    right = dict(acc=0, acc_norm=0, acc_bytes=0)
    for row in process(Rows(rows)):
        context = field(config["doc_to_text"], row)
        if name == "MMLU": choices = row["choices"]
        elif isinstance(config["doc_to_choice"], str) and config["doc_to_choice"] not in row: choices = env.compile_expression(config["doc_to_choice"].strip("{}"))(**row)
        else: choices = field(config["doc_to_choice"], row)
        gold = int(field(config["doc_to_target"], row))
        lls = [log_prob(context, f" {choice}") for choice in choices]
        best = lambda by: max(range(len(lls)), key=lambda i: lls[i] / by(choices[i]))
        for metric, by in dict(acc=lambda c: 1, acc_norm=len, acc_bytes=lambda c: len(c.encode())).items(): right[metric] += best(by) == gold
        found.append(lls)
    golden.append(dict(name=name, records=rows, logProbs=found, **{k: v / len(rows) for k, v in right.items()}))
    print(name, right)
(HERE / "harness.json").write_text(json.dumps(golden, indent=1) + "\n")
