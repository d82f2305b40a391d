"""Which code points Hugging Face tokenizers (Oniguruma) take for letters and numbers, as the tables of
src/tokenizer/unicode.ts hold them: gap and length of each range in base 36. Run with a Python that has `tokenizers`:

    python test/golden/tokenizer/classes.py

prints the two tables. They follow the Unicode version of Oniguruma, which both sides must share to cut text alike.
"""
import tokenizers
from tokenizers import Regex, normalizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and c != 10]


def members(expression):
    """Every match becomes a newline, so the places of the newlines are the members."""
    mark = normalizers.Replace(Regex(expression), "\n")
    found = []
    for at in range(0, len(POINTS), 4096):
        points = POINTS[at : at + 4096]
        marked = mark.normalize_str("".join(map(chr, points)))
        assert len(marked) == len(points)
        found += [c for c, m in zip(points, marked) if m == "\n"]
    return found


def base36(n):
    digits = ""
    while True:
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[n % 36] + digits
        n //= 36
        if n == 0:
            return digits


def ranges(points):
    out, end, i = [], 0, 0
    while i < len(points):
        j = i
        while j + 1 < len(points) and points[j + 1] == points[j] + 1:
            j += 1
        out += [base36(points[i] - end), base36(j - i + 1)]
        end = points[j] + 1
        i = j + 1
    return " ".join(out)


if __name__ == "__main__":
    print("tokenizers", tokenizers.__version__)
    for name, expression in (("LETTERS", r"\p{L}"), ("NUMBERS", r"\p{N}")):
        print(name, ranges(members(expression)))
