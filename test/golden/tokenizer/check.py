"""The other direction: Python loads a tokenizer that Lyceum trained and wrote, and gives the same ids and texts.

    npm run build && python test/golden/tokenizer/check.py

needs `tokenizers` and `transformers`; it writes nothing in the repository.
"""
import json
import pathlib
import subprocess
import tempfile

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from patterns import PATTERNS

HERE = pathlib.Path(__file__).parent

for name in PATTERNS:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["node", str(HERE / "ours.mjs"), name, folder], check=True)
        ours = json.loads((pathlib.Path(folder) / "ids.json").read_text(encoding="utf8"))
        rust = Tokenizer.from_file(f"{folder}/tokenizer.json")
        auto = AutoTokenizer.from_pretrained(folder)
        golden = json.loads((HERE / f"{name}.json").read_text(encoding="utf8"))
        assert json.loads(rust.to_str())["model"] == golden["model"], name
        for text, ids, decoded in zip(ours["texts"], ours["ids"], ours["decoded"]):
            assert rust.encode(text, add_special_tokens=False).ids == ids, (name, text)
            assert auto.encode(text, add_special_tokens=False) == ids, (name, text)
            assert rust.decode(ids, skip_special_tokens=False) == decoded, (name, text)
            assert auto.decode(ids) == decoded, (name, text)
        assert auto.eos_token == "<|endoftext|>"
        print(name, type(auto).__name__, len(ours["texts"]), "texts: the same ids and texts")
