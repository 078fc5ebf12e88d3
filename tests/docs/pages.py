"""What README.md and the pages of docs/ print, as a list of steps that can be run: commands, programs, files.

CONTRIBUTING.md says how a page marks its fences; every mistake in a mark is a ValueError that names page and line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("text", "yaml", "json", "toml", "dockerfile", "cfg", "mermaid")  # never run; written where they have a title
RUN = ("bash", "console", "python")
REASONS = (  # why a fence is not run
    "needs a GPU",
    "needs a robot",
    "needs a container engine",
    "needs the network",
    "needs your own data",
    "needs a checkout",
    "installs software",
    "takes hours",
)
# Words that make a command of flowpolicy small, in the place of the printed ones.
TOY = {
    "data collect": ["episodes=4"],
    "data view": ["episodes=2"],
    "train": ["trainer.steps=4", "eval.episodes=1"],
    "finetune": ["debug=true"],
    "evaluate": ["episodes=2", "envs=1"],
    "compare": ["episodes=2", "envs=1"],
    "sweep": ["episodes=2"],
    "protocol": ["debug=true", "demonstrations=3", "episodes=2"],
    "bench": ["repeats=5", "warmup=1", "observations=4"],
    "export": ["episodes=1", "repeats=5", "warmup=1", "observations=16"],
}

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<info>.*)$")
_COMMENT = re.compile(r"^ *<!-- run: (?P<text>.*?)(?P<end>-->)?$")
_WORD = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\|;&<>])+"""
_COMMAND = re.compile(rf"(?<![\w./-])flowpolicy(?P<words>(?:[ \t]+(?!#){_WORD})*)")


@dataclass(kw_only=True)
class Step:
    """One fence, or one hidden preparation.

    Args:
        line: of the page.
        kind: bash, python or file.
        text: commands, program or content.
        title: path of a file, below the page's folder.
        fails: whether the last command must end with an exit code other than 0.
        output: lines that must then occur in what it prints; `…` stands for anything.
        skip: why it is not run; empty where it is.
    """

    line: int
    kind: str
    text: str
    title: str = ""
    fails: bool = False
    output: list[str] = field(default_factory=list)
    skip: str = ""


@dataclass
class _Marks:
    """The comments above a fence."""

    skip: str = ""
    fails: bool = False
    printed: bool = False
    words: dict[str, list[str]] = field(default_factory=dict)
    replaced: list[tuple[str, str]] = field(default_factory=list)
    line: int = 0

    def add(self, text: str) -> None:
        """One comment. Raises ValueError for one that is not known."""
        if text.startswith("skip, "):
            self.skip = text.removeprefix("skip, ")
            if self.skip not in REASONS:
                raise ValueError(f"wanted one of {', '.join(REASONS)}, got {self.skip!r}")
        elif text == "fails":
            self.fails = True
        elif text == "as printed":
            self.printed = True
        elif match := re.fullmatch(r"replace (.+) with (.*)", text):
            self.replaced.append((match[1], match[2]))
        elif (match := re.fullmatch(r"with (data \w+|\w+) (.+)", text)) and match[1] in TOY:
            self.words[match[1]] = match[2].split()
        else:
            raise ValueError(
                f"wanted skip, REASON | fails | as printed | with VERB WORDS | replace A with B, got {text!r}"
            )


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md, SECURITY.md and the pages of docs/, but for the generated reference."""
    docs = [path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts]
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted(page for page in docs if page.name != "SUMMARY.md"),
    ]


def steps(page: Path, *, literal: bool = False) -> list[Step]:
    """Everything on a page that is run or written, in order. Raises ValueError for a fence or mark that is wrong.

    Args:
        page: Markdown.
        literal: at the sizes that are printed, with nothing replaced.
    """
    lines = page.read_text().splitlines()
    found, marks, number = [], _Marks(), 0
    while number < len(lines):
        line, at = lines[number], number + 1
        try:
            if match := _COMMENT.match(line):
                text, number = _comment(lines, number, match)
                if text.startswith("before"):
                    found.append(Step(line=at, kind="bash", text=text.removeprefix("before").strip()))
                else:
                    marks.add(text.strip())
                    marks.line = at
            elif match := _FENCE.match(line):
                body, number = _body(lines, number, match)
                found += _step(match["info"].strip(), body, marks, at, lines[number + 1 :], literal)
                marks = _Marks()
            elif marks.line and line.strip():
                raise ValueError("wanted a fence below the comment, got text")
        except ValueError as error:
            raise ValueError(f"{page.name}:{at}: {error}") from error
        number += 1
    if marks.line:
        raise ValueError(f"{page.name}:{marks.line}: wanted a fence below the comment, got the end of the page")
    return found


def _comment(lines: list[str], number: int, match: re.Match[str]) -> tuple[str, int]:
    """Text of a comment that may have several lines, and its last line."""
    if match["end"]:
        return match["text"].rstrip(), number
    last = next((i for i in range(number, len(lines)) if lines[i].rstrip().endswith("-->")), None)
    if last is None:
        raise ValueError("the comment has no end")
    body = [match["text"], *lines[number + 1 : last], lines[last].rstrip().removesuffix("-->")]
    return "\n".join(body), last


def _body(lines: list[str], number: int, match: re.Match[str]) -> tuple[str, int]:
    """Content of a fence without its indentation, and its last line."""
    indent, marks = len(match["indent"]), match["marks"]
    last = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == marks), None)
    if last is None:
        raise ValueError("the fence has no end")
    return "".join(line[indent:] + "\n" for line in lines[number + 1 : last]), last


def _step(info: str, body: str, marks: _Marks, line: int, after: list[str], literal: bool) -> Iterator[Step]:
    language = info.split()[0].strip("{.}") if info else ""
    if language not in (*SHOWN, *RUN):
        raise ValueError(f"wanted a fence of one of {', '.join((*RUN, *SHOWN))}, got {language!r}")
    title = re.search(r'title="([^"]+)"', info)
    if title is None and language in SHOWN:
        if marks.line:
            raise ValueError(f"a fence of {language} is not run")
        return
    kind, output = language, []
    if language == "console":
        kind, body, output = "bash", *_console(body)
    if title is not None:
        kind = "file"
    for old, new in marks.replaced:
        if old not in body:
            raise ValueError(f"{old!r} does not occur")
        body = body if literal else body.replace(old, new)
    if kind == "bash" and not (literal or marks.printed):
        body = toy(body, marks.words)
    if marks.fails and not output:
        output = _next_text(after)
    yield Step(
        line=line,
        kind=kind,
        text=body,
        title=title[1] if title else "",
        fails=marks.fails,
        output=output if marks.fails else [],
        skip=marks.skip,
    )


def _console(body: str) -> tuple[str, list[str]]:
    """Commands, and the lines of output below the last one."""
    commands, output, continued = [], [], False
    for line in body.splitlines():
        if line.startswith("$ ") or continued:
            commands.append(line if continued else line[2:])
            output = []
            continued = line.endswith("\\")
        else:
            output.append(line)
    if not commands:
        raise ValueError('wanted commands after "$ ", got none')
    return "\n".join(commands) + "\n", [line for line in output if line.strip()]


def _next_text(after: list[str]) -> list[str]:
    """Lines of the next fence, where it is one of text."""
    for number, line in enumerate(after):
        if match := _FENCE.match(line):
            body = _body(after, number, match)[0] if match["info"].strip() == "text" else ""
            return [line for line in body.splitlines() if line.strip()]
    return []


def toy(text: str, words: dict[str, list[str]]) -> str:
    """Commands with every size replaced by a small one.

    Args:
        text: of a shell, any number of lines.
        words: verb -> words that go before those of TOY.
    """
    joined = re.sub(r"[ \t]*\\\n[ \t]*", " ", text)
    return _COMMAND.sub(lambda match: "flowpolicy" + _toy_words(match["words"], words), joined)


def _toy_words(printed: str, words: dict[str, list[str]]) -> str:
    parts = printed.split()
    verb = " ".join(parts[:2] if parts[:1] == ["data"] else parts[:1])
    if verb not in TOY or {"--help", "-h"} & set(parts):
        return printed
    own = words.get(verb, [])
    keys = {word.split("=")[0] for word in own}
    for word in [*own, *(word for word in TOY[verb] if word.split("=")[0] not in keys)]:
        key = re.escape(word.split("=")[0])
        old = rf"""(?<=[ \t])(?:'\+{{0,2}}{key}=[^']*'|"\+{{0,2}}{key}=[^"]*"|\+{{0,2}}{key}={_WORD})"""
        printed, times = re.subn(old, lambda _, word=word: word, printed)
        printed += "" if times else f" {word}"
    return printed
