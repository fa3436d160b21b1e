"""Every command of consign that a page shows is one that exists, with its options."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from metrics import ROOT

PROGRAM = os.environ["CONSIGN_BIN"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "deploy/docs").rglob("*.md")), *sorted((ROOT / "deploy/examples").rglob("*.md")),
         ROOT / "deploy/prometheus/alerts.yml"]


@functools.cache
def help_of(words):
    told = subprocess.run([PROGRAM, *words, "--help"], capture_output=True, text=True)
    return told.stdout if told.returncode == 0 else None


def shown(page):
    """Commands in blocks and between backticks."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for match in re.finditer(r"(?:^ {4,}|^|`|\| |&& )(consign (?:[a-z-]+)\b[^`\n|;&#]*)", text, re.M):
        command = match.group(1).split("  ")[0].strip()
        line = text[text.rfind("\n", 0, match.start(1)) + 1:match.start(1)]
        # Prose that begins a line with the name is no command.
        if match.group(0).startswith("consign") and not line.strip() and not in_block(text, match.start(1)):
            continue
        yield command


def in_block(text, at):
    return text[:at].count("```") % 2 == 1 or text[text.rfind("\n", 0, at) + 1:].startswith("    ")


def judge(command):
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        words = command.split()[1:]
    path = ()
    for word in words:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", word):
            break
        told = help_of(path)
        if told is None or not re.search(rf"^  {word}\b", told, re.M):
            break
        path += (word,)
    told = help_of(path) or ""
    # Where a command must follow, any other word is a slip.
    rest = words[len(path):]
    must_follow = "Usage:" in told and told.split("Usage:")[1].split("\n\n")[0].strip().endswith("<COMMAND>") and "\n  " not in told.split("Usage:")[1].split("\n\n")[0]
    if not path or (must_follow and rest and not rest[0].startswith("-")):
        return f"there is no such command: {command}"
    for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", " " + " ".join(words)):
        if not re.search(rf"(?<![\w-]){option}(?![\w-])", told):
            return f"there is no option {option}: {command}"
    return None


if __name__ == "__main__":
    if not Path(PROGRAM).exists():
        print(f"skipped: there is no {PROGRAM} to compare the commands of the docs with")
        sys.exit(0)
    commands = [(page, command) for page in PAGES for command in shown(page)]
    found = [f"{page.relative_to(ROOT)}: {problem}" for page, command in commands if (problem := judge(command))]
    if len(commands) < 20:
        found.append(f"only {len(commands)} commands were found in the docs")
    print(f"{len(commands)} commands")
    print("\n".join(found))
    sys.exit(bool(found))
