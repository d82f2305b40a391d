"""Renderings of Lyceum's chat templates by Transformers' apply_chat_template.

    npm run build && python test/golden/templates/make.py MODEL_DIR

MODEL_DIR is any folder with a tokenizer.json (a run's model/); only the templates matter. Made with transformers 5.
"""
import json, pathlib, subprocess, sys
from transformers import AutoTokenizer

here = pathlib.Path(__file__).parent
code = "import('./dist/dialogue/templates.js').then(m => console.log(JSON.stringify(m.TEMPLATES)))"
templates = json.loads(subprocess.check_output(["node", "-e", code], cwd=here / "../../.."))
user = lambda text, **more: {"role": "user", "content": text, **more}
bot = lambda text: {"role": "assistant", "content": text}
conversations = [
    [user("Hi"), bot("Hello!")],
    [user("将下列文本翻译成英文：", input="今天天气真好"), bot("Today is a nice day！")],
    [{"role": "system", "content": "Be brief."}, user("One?"), bot("1"), user("Two?", input="in words"), bot("two")],
    [user("  spaces \n kept  "), bot(" so \n"), user("Last?")],
    [user("{{ 1 + 1 }} {% raw %} <|im_end|> \\n"), bot("'quoted' \"twice\"")],
]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
golden = {}
for name, template in templates.items():
    tokenizer.chat_template = template["jinja"]
    golden[name] = {
        "jinja": template["jinja"],
        "texts": [
            [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=g) for g in (False, True)]
            for c in conversations
        ],
    }
(here / "golden.json").write_text(
    json.dumps({"conversations": conversations, "templates": golden}, ensure_ascii=False, indent=1) + "\n"
)
