"""A page of docs/ as a script: what it shows is run, and what it says comes out must come out.

    ```sh        run with bash, one after the other in one folder, as a person would type them; it must end well
    ```sh fails  the same, but its last command must end with an error
    ```python    run by the same Python
    ```yaml NAME written to the file NAME
    ```text      what the block before it prints, line by line; "..." stands for anything

A block after `<!-- not run here: REASON -->` needs what a test machine does not have: its syntax is checked, and that
every `saeflow` command and option in it exists.
"""

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

_FENCE = re.compile(r"(?P<note><!-- not run here: .+? -->\n)?^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)
MARK = "@@ block "


class Block(NamedTuple):
    """One fenced block: the line it begins at, its kind, what else its fence says, its text, and whether it runs."""

    line: int
    kind: str
    rest: str
    body: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    """All of a page's blocks, in order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        kind, _, rest = match["info"].partition(" ")
        line = text.count("\n", 0, match.start("info")) + 1
        found.append(Block(line, kind, rest, match["body"], match["note"] is None))
    return found


def script(page: list[Block]) -> str:
    """One bash script of what runs; before each block's output stands its line."""
    parts = ["set -uo pipefail"]
    for block in page:
        if not block.runs or block.kind not in ("sh", "python", "yaml"):
            continue
        parts.append(f"echo '{MARK}{block.line}'")
        if block.kind == "yaml":
            parts.append(f"cat > {shlex.quote(block.rest)} <<'@@'\n{block.body}@@")
        elif block.kind == "python":
            parts.append(f"python - <<'@@' || {{ echo '{MARK}failed'; exit 1; }}\n{block.body}@@")
        else:  # in this shell, so that what it exports stays; each command must do as the fence says
            *before, last = _commands(block.body)
            parts += [f"{command}\nends_well $?" for command in before]
            parts.append(f"{last}\n{'ends_badly' if block.rest == 'fails' else 'ends_well'} $?")
    return _ENDS + "\n".join(parts) + "\n"


_ENDS = f"""
ends_well() {{ [ "$1" = 0 ] || {{ echo '{MARK}failed'; exit 1; }}; }}
ends_badly() {{ [ "$1" != 0 ] || {{ echo '{MARK}failed'; exit 1; }}; }}
"""


def _commands(body: str) -> list[str]:
    """A block's commands; one that goes on in the next line ends it with a backslash."""
    return [line for line in re.split(r"(?<!\\)\n", body) if line.strip() and not line.lstrip().startswith("#")]


def outputs(page: list[Block], printed: str) -> list[tuple[Block, str]]:
    """Each `text` block that follows one that ran, with what that one printed."""
    by_line = {int(part.partition("\n")[0]): part for part in printed.split(MARK)[1:] if part[0].isdigit()}
    return [
        (block, by_line[before.line])
        for before, block in itertools.pairwise(page)
        if block.kind == "text" and before.line in by_line
    ]


def missing(block: Block, printed: str) -> list[str]:
    """Lines of a `text` block that were not printed, in any width of a terminal."""
    flat = " ".join(printed.split())
    gone = []
    for line in block.body.splitlines():
        pattern = r".*?".join(re.escape(" ".join(part.split())) for part in line.strip().split("..."))
        if not re.search(pattern, flat):
            gone.append(line)
    return gone


def unknown_commands(block: Block, app: click.Group) -> list[str]:
    """`saeflow` commands and options of a block that do not exist."""
    wrong = []
    for command in _commands(block.body):
        words = shlex.split(command, comments=True)
        if "saeflow" not in words:
            continue
        name, *arguments = words[words.index("saeflow") + 1 :] or ["--help"]
        if name.startswith("-"):
            continue
        if name not in app.commands:
            wrong.append(f"saeflow {name}")
            continue
        known = {option for parameter in app.commands[name].params for option in parameter.opts} | {"--help"}
        known |= {option for parameter in app.commands[name].params for option in parameter.secondary_opts}
        given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        wrong += [f"saeflow {name} {option}" for option in given if option not in known]
    return wrong
