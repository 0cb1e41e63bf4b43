"""Print the changelog that the tags of this repository tell: `python tests/changelog.py [--write]`.

A release is a tag v1.2.3. Its annotation is what changed; the blob hash is that of its meticulous.py, as
`python meticulous.py --version` and `git hash-object meticulous.py` print it.
"""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
FIELDS = "%(refname:short)%00%(objecttype)%00%(contents:subject)%00%(contents:body)%01"


def run_git(directory, *arguments):
    return subprocess.check_output(["git", *arguments], cwd=str(directory)).decode()


def parse_version(tag):
    return [int(number) for number in re.findall(r"\d+", tag)]


def make_changelog(directory):
    """Return the changelog of the repository in *directory* as Markdown, the newest release first."""
    listing = run_git(directory, "for-each-ref", "--format=" + FIELDS, "refs/tags/v*")
    tags = [entry.split("\0") for entry in listing.split("\x01\n")[:-1]]
    sections = []
    for tag, kind, subject, body in sorted(tags, key=lambda fields: parse_version(fields[0]), reverse=True):
        date = run_git(directory, "log", "-1", "--format=%cd", "--date=short", tag).strip()
        blob = run_git(directory, "rev-parse", f"{tag}:meticulous.py").strip()
        section = f"### {tag[1:]} ({date})\n\nBlob `{blob}`\n"
        if kind == "tag":  # a tag without annotation would tell its commit's message
            section += f"\n{subject}\n" + (f"\n{body.strip()}\n" if body.strip() else "")
        sections.append(section)
    return "\n".join(sections) or "No release yet.\n"


def write_section(readme, name, text):
    """Replace what is between the markers of *name* in the file *readme* by *text*."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = readme.read_text("utf-8").partition(begin)
    _, is_there, after = rest.partition(end)
    if not is_there:
        raise SystemExit(f"{readme} lacks a line {begin.strip()} and after it a line {end.strip()}.")
    readme.write_bytes(f"{before}{begin}\n{text}\n{end}{after}".encode("utf-8"))


if __name__ == "__main__":
    changelog = make_changelog(README.parent)
    print(changelog, end="")
    if "--write" in sys.argv[1:]:
        write_section(README, "changelog", changelog)
