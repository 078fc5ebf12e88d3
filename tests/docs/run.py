"""Run what one page prints: python -m tests.docs.run [--list | --literal] PAGE [FOLDER], or --skips

  --literal   at the sizes that are printed, each command a process of its own, by the `flowpolicy` that the PATH has
  --list      only say what would be run, and what not and why
  --skips     say of every page which fences are not run, and why
  FOLDER      where it runs; default: a temporary one

Simple commands of flowpolicy run in this process, which loads torch once; whatever needs a shell gets one.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT, Step, pages, steps

# what an expansion, a pipe or a here-document needs, once what stands in quotes is taken out
_SHELL = re.compile(r"[$`*?|;&<>(){}~!]")
_QUOTED = re.compile(r"'[^']*'")


class PageError(Exception):
    """A command that did not do what its page says."""


def main(argv: list[str]) -> int:
    """Run or list a page; 0 where everything held."""
    options = [word for word in argv if word.startswith("--")]
    if "--skips" in options:
        for page in pages():
            print(
                *(f"{page.relative_to(ROOT)}:{at.line}: {at.skip}\n" for at in steps(page) if at.skip), sep="", end=""
            )
        return 0
    page, *folder = [Path(word).resolve() for word in argv if not word.startswith("--")]
    if "--list" in options:
        for step in steps(page):
            what = step.title or "; ".join(step.text.strip().splitlines())
            print(f"{step.line:4} {step.kind:7} {'SKIP, ' + step.skip + ': ' if step.skip else ''}{what}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        place = folder[0] if folder else Path(scratch)
        (place / "page").mkdir(parents=True, exist_ok=True)
        literal = "--literal" in options
        runner = Runner(place, literal=literal)
        try:
            for step in steps(page, literal=literal):
                runner.run(step)
        except PageError as error:
            print(f"{page.name}:{error}")
            return 1
        finally:
            os.chdir(ROOT)
    return 0


def serve() -> None:
    """Run the pages that come in as lines of JSON, [page, folder, file for what is printed], in a process each.

    Each is a copy of this process, in which what takes seconds to load and to compile has been used once. Answers with
    exit codes, a line each.
    """
    with tempfile.TemporaryDirectory() as scratch, _captured():
        from flowpolicy.cli.main import main as flowpolicy

        store, run = f"{scratch}/toy.zarr", f"{scratch}/run"
        flowpolicy(["data", "collect", "task=toy", "episodes=2", f"out={store}"])
        flowpolicy(["train", f"dataset.path={store}", f"out={run}", "trainer.steps=1"])
        flowpolicy(["evaluate", f"checkpoint={run}", "episodes=1", "envs=1"])
    for line in sys.stdin:
        page, folder, log = json.loads(line)
        if (child := os.fork()) == 0:
            file = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = main([page, folder])
            sys.stdout.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Runner:
    """One page: its folder, the environment that its commands leave, the names of its programs.

    Args:
        place: gets the folders `page`, where everything runs, and `bin`, the first of the PATH.
        literal: whether nothing runs in this process, and the PATH is left as it is.
    """

    def __init__(self, place: Path, *, literal: bool = False) -> None:
        self.folder, self.state, self.literal = place / "page", place / "environment", literal
        self.names: dict[str, Any] = {"__name__": "__main__"}
        os.chdir(self.folder)
        os.environ["TQDM_DISABLE"] = "1"
        os.environ.pop("PYTHONPATH", None)
        if not literal:
            self._programs(place / "bin")

    def _programs(self, programs: Path) -> None:
        """Put `flowpolicy` and `python` of this process on the PATH."""
        programs.mkdir(exist_ok=True)
        paths = f"{ROOT}:{ROOT / 'envs'}"
        for name, words in (("flowpolicy", "-P -m flowpolicy"), ("python", "")):
            (programs / name).write_text(
                f'#!/bin/sh\nPYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{paths}" exec {sys.executable} {words} "$@"\n'
            )
            (programs / name).chmod(0o755)
        os.environ["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(self, step: Step) -> None:
        """Do it, with a line for each command. Raises PageError."""
        if step.skip:
            print(f"{step.line}: skipped, {step.skip}")
        elif step.kind == "file":
            path = self.folder / step.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            print(f"{step.line}: wrote {step.title}")
        elif step.kind == "python":
            self._done(step, "python", lambda: self._program(step), fails=step.fails)
        else:
            commands = self._commands(step.text)
            for number, command in enumerate(commands):
                last = number == len(commands) - 1
                self._done(step, command, lambda command=command: self._command(command), fails=step.fails and last)

    def _commands(self, text: str) -> list[str]:
        """Line by line, or the whole where a line alone would not be a command."""
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        whole = any(re.match(r"(for|while|if|case)\b", line) or "<<" in line for line in lines)
        return [text] if whole else lines

    def _done(self, step: Step, shown: str, action: Any, *, fails: bool) -> None:
        began = time.perf_counter()
        code, said = action()
        print(f"{step.line}: {time.perf_counter() - began:5.1f} s  {shown}", flush=True)
        if self.literal:
            print(*(f"        {line}\n" for line in said.splitlines()[-4:]), sep="", end="", flush=True)
        if (code != 0) != fails:
            wanted = "to fail" if fails else "exit code 0"
            raise PageError(f"{step.line}: wanted {wanted}, got {code} from\n{shown}\n{said[-4000:]}")
        if fails:
            self._compare(step, said)

    def _compare(self, step: Step, said: str) -> None:
        flat = " ".join(said.split())
        for line in step.output:
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
            if not re.search(pattern, flat):
                raise PageError(f"{step.line}: wanted in the output\n  {line}\ngot\n{said[-4000:]}")

    def _command(self, command: str) -> tuple[int, str]:
        words = None if self.literal else self._simple(command)
        if words is None:
            return self._shell(command)
        with _extended(os.environ.get("PYTHONPATH", "").split(":")), _captured() as said:
            from flowpolicy.cli.main import main as flowpolicy

            code = flowpolicy(words)
        return code, said.getvalue()

    def _simple(self, command: str) -> list[str] | None:
        """Words of a command of flowpolicy that needs no shell."""
        plain = _QUOTED.sub("", command)
        if _SHELL.search(plain) or "\n" in command.strip():
            return None
        words = shlex.split(command, comments=True)
        return words[1:] if words[:1] == ["flowpolicy"] else None

    def _shell(self, command: str) -> tuple[int, str]:
        """Its exports and its folder hold for what comes after."""
        script = f"{command}\nenv -0 >{shlex.quote(str(self.state))}"
        done = subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", script], capture_output=True, text=True)
        if done.returncode == 0:
            left = dict(item.split("=", 1) for item in self.state.read_text().split("\0") if "=" in item)
            os.chdir(left["PWD"])
            os.environ.update({key: value for key, value in left.items() if key not in ("_", "SHLVL", "OLDPWD")})
        return done.returncode, done.stdout + done.stderr

    def _program(self, step: Step) -> tuple[int, str]:
        if self.literal:
            return self._shell(f"python -c {shlex.quote(step.text)}")
        with _extended([str(self.folder)]), _captured() as said:
            try:
                exec(compile("\n" * step.line + step.text, "the page", "exec"), self.names)
            except Exception:
                return 1, said.getvalue() + traceback.format_exc()
        return 0, said.getvalue()


@contextlib.contextmanager
def _extended(paths: list[str]) -> Iterator[None]:
    """Modules of these folders can be imported, and are forgotten afterwards: the next command is a new process."""
    paths = [str(Path(path).resolve()) for path in paths if path]
    before = list(sys.path)
    sys.path[:0] = paths
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            if any((getattr(module, "__file__", None) or "").startswith(f"{path}/") for path in paths):
                del sys.modules[name]


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Both streams."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["--serve"] else main(sys.argv[1:]))
