"""Count the tokens of code in each chapter and part of meticulous.py: `python tests/chapters.py`.

Comments, docstrings and layout are not counted, so neither explaining nor dense lines change the size. The exit
code is 1 if the file, or what runs inside of the user's process (parts I and II), is larger than its limit.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "meticulous.py"
SOURCE = FILE.read_bytes().decode("utf-8")
LINES = SOURCE.splitlines()
BANNER = re.compile(r"# === (\S.*?) =+")
MOST_TOKENS = 29000
MOST_TOKENS_RECORDING = 17000
RECORDING = ("I", "II")
LAYOUT = {"COMMENT", "NEWLINE", "NL", "INDENT", "DEDENT", "ENDMARKER"}


def list_chapters():
    """List (title, first line, line after the last) of each chapter, lines counted from 1."""
    starts = [(match.group(1), line) for line, match in enumerate(map(BANNER.fullmatch, LINES), 1) if match]
    ends = [line for _, line in starts[1:]] + [len(LINES) + 1]
    return [(title, start, end) for (title, start), end in zip(starts, ends)]


CHAPTERS = list_chapters()


def find_chapter(line):
    """Return the position of the chapter that *line* is in; -1 above the first one."""
    return sum(start <= line for _, start, _ in CHAPTERS) - 1


def read_map():
    """Return the map at the end of the docstring: {"I Ground": [titles of its chapters], ...}."""
    docstring = ast.get_docstring(ast.parse(SOURCE))
    parts = {}
    for line in docstring[docstring.rindex("\n\n") :].strip("\n").splitlines():
        name = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith(" " * 8):
            list(parts.values())[-1].append(name)
        else:
            parts[name] = []
    return parts


def list_tokens(source):
    """List the line of each token of code in *source*; an f-string is one token, as it was before Python 3.12."""
    lines = []
    depth = 0
    is_statement_start = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name in LAYOUT:
            is_statement_start = is_statement_start or name == "NEWLINE"
            continue
        if not depth and not (
            is_statement_start and name == "STRING"
        ):  # no statement but a docstring begins so
            lines.append(token.start[0])
        depth += name.endswith("STRING_START") - name.endswith("STRING_END")
        is_statement_start = False
    return lines


def count_tokens():
    """Return the number of tokens of code in each chapter, by its title."""
    lines = list_tokens(SOURCE)
    return {title: sum(start <= line < end for line in lines) for title, start, end in CHAPTERS}


def main():
    tokens = count_tokens()
    recording = 0
    for part, titles in read_map().items():
        size = sum(tokens[title] for title in titles)
        recording += size if part.split()[0] in RECORDING else 0
        print(f"{size:6,} {part}")
        for title in titles:
            print(f"{tokens[title]:14,} {title}")
    total = sum(tokens.values())
    print(f"{total:6,} in all, of at most {MOST_TOKENS:,}")
    print(f"{recording:6,} in parts {' and '.join(RECORDING)}, of at most {MOST_TOKENS_RECORDING:,}")
    return int(total > MOST_TOKENS or recording > MOST_TOKENS_RECORDING)


if __name__ == "__main__":
    sys.exit(main())
