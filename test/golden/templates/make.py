"""Chat templates as Transformers renders, tokenizes and masks them.

    npm run build && python test/golden/templates/make.py

Makes tokenizer.json (a small byte-level BPE with the control tokens of the templates) and golden.json: for Lyceum's
templates and for some that are as other models' are, the text, the text with the generation prompt, the ids of
apply_chat_template, and where {% generation %} is used the assistant mask; and fallback.json: ids with a tokenizer that has byte
fallback (test/golden/tokenizer/fallback.py), which puts spaces before texts. Made with transformers 5, tokenizers 0.23.
"""
import json, pathlib, subprocess, sys
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

here = pathlib.Path(__file__).parent
sys.path.append(str(here / "../tokenizer"))
from patterns import changed
code = "import('./dist/dialogue/templates.js').then(m => console.log(JSON.stringify(m.TEMPLATES)))"
named = json.loads(subprocess.check_output(["node", "-e", code], cwd=here / "../../.."))
templates = {name: {"jinja": t["jinja"], "eos": t["endOfTurn"]} for name, t in named.items()}

# Contents trimmed, a token in front, spaces around replies, no generation prompt.
templates["trimmed"] = {"eos": "</s>", "jinja": """
{{- bos_token }}
{%- for m in messages %}
    {%- if m['role'] == 'system' %}{{ '<<SYS>>' ~ m['content'] | trim ~ '<</SYS>>\\n' }}
    {%- elif m['role'] == 'user' %}{{ '[INST] ' ~ m['content'] | trim ~ ' [/INST]' }}
    {%- else %}{{ ' ' ~ m['content'] | trim ~ ' ' ~ eos_token }}{% endif %}
{%- endfor %}"""}
# Replies marked; blocks on lines of their own.
templates["marked"] = {"eos": "<|im_end|>", "jinja": """{% for m in messages %}
  {% if m.role == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{ m.content + '<|im_end|>' }}{% endgeneration %}

  {% else %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
  {%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""}
# The last reply is written with an empty thought, earlier ones without: a turn changes when another follows.
templates["thinking"] = {"eos": "<|im_end|>", "jinja": """
{%- if tools is not none %}{{ raise_exception('no tools') }}{% endif %}
{%- for m in messages %}
    {%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""}
# Every turn written with what Transformers offers beside the messages; no system message is allowed.
templates["strict"] = {"eos": "<|end|>", "jinja": """
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {{- '<|turn|> ' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<|end|>' + '\\n' }}
{%- endfor %}
{%- if unk_token is defined %}{{ unk_token }}{% endif %}
{%- if add_generation_prompt %}{{ '<|turn|> model\\n' }}{% endif %}"""}

user = lambda text, **more: {"role": "user", "content": text, **more}
bot = lambda text: {"role": "assistant", "content": text}
system = {"role": "system", "content": "Be brief."}
conversations = [
    [user("Hi"), bot("Hello!")],
    [user("将下列文本翻译成英文：", input="今天天气真好"), bot("Today is a nice day！")],
    [system, user("One?"), bot("1"), user("Two?", input="in words"), bot("two")],
    [user("  spaces \n kept  "), bot("so \n"), user("Last?")],
    [user("{{ 1 + 1 }} {% raw %} \\n\n\n"), bot("'quoted' \"twice\" 👩‍👩‍👧"), user("é or é?"), bot("<think>hm</think>\n\nboth")],
    [user("a <|im_end|> b </s> <|end|>"), bot("typed <|im_end|>")],
    [user("Say it twice."), bot("\n\nit it"), user("Once more."), bot(" it")],
]

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
texts = [m["content"] + "\n\n### Response:\n### Instruction: assistant user system" for c in conversations for m in c]
control = ["<s>", "</s>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=420, min_frequency=2, show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=control))
bpe.add_special_tokens([AddedToken("<|turn|>", special=True, rstrip=True)])  # as Phi-3's: takes the spaces after it
bpe.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
(here / "tokenizer.json").write_text(bpe.to_str(pretty=False) + "\n")

listed = lambda numbers: " ".join(map(str, numbers))
def results(name, template, file):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(file), bos_token="<s>",
        eos_token=template["eos"], pad_token="<|pad|>", chat_template=template["jinja"])
    def made(messages):
        if name not in named:  # these know only of content
            messages = [{"role": m["role"], "content": m["content"] + m.get("input", "")} for m in messages]
        apply = lambda **more: tokenizer.apply_chat_template(messages, **more)
        try:
            whole = apply(tokenize=True, return_dict=True, return_assistant_tokens_mask="{% generation" in template["jinja"])
        except Exception as error:
            return {"refused": str(error)}
        return {
            "text": apply(tokenize=False), "prompt": apply(tokenize=False, add_generation_prompt=True),
            "ids": listed(whole["input_ids"]), "promptIds": listed(apply(tokenize=True, add_generation_prompt=True)["input_ids"]),
            **({"mask": listed(whole["assistant_masks"])} if "assistant_masks" in whole else {}),
        }
    return [made(c) for c in conversations]
golden = {name: {**t, "made": results(name, t, (here / "tokenizer.json").read_text())} for name, t in templates.items()}
lines = json.dumps({"conversations": conversations, "templates": golden}, ensure_ascii=False, indent=1)
(here / "golden.json").write_text(lines + "\n")

# Llama 2's tokenizer: a space before each text, or (newer files) before the first only. And a template as TinyLlama's chat model has.
templates["zephyr"] = {"eos": "</s>", "jinja": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"}
base = json.loads((here / "../tokenizer/llama2.json").read_text())
flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
more = ["added_tokens+", [{"content": t, **flags} for t in control if t not in ("<s>", "</s>")]]
first = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
changes = {"prepend": [more], "first": [more, ["normalizer", None], ["pre_tokenizer", first]]}
fallback = {}
for kind, change in changes.items():
    file = json.dumps(changed(json.loads(json.dumps(base)), change))
    chosen = {name: templates[name] for name in [*named, "trimmed", "zephyr"]}
    made = {n: [{k: v for k, v in m.items() if k.endswith("ds")} for m in results(n, t, file)] for n, t in chosen.items()}
    fallback[kind] = {"change": change, "templates": {n: {**t, "made": made[n]} for n, t in chosen.items()}}
(here / "fallback.json").write_text(json.dumps(fallback, ensure_ascii=False) + "\n")
