"""Write docs/reference/: one page for each package of the library, filled from its docstrings when the site is built.

python scripts/site/reference.py
"""

import ast
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
APART = ("cli",)  # commands: the cheat sheet and --help are their reference


def public(path: Path) -> bool:
    """Whether a module has a class or function without an underscore."""
    defined = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return any(node.name[0] != "_" for node in defined)


def packages() -> dict[str, list[str]]:
    """Dotted package -> its public modules; a module of flowpolicy itself is in the package `flowpolicy`."""
    found: dict[str, list[str]] = {}
    for top in (ROOT / "flowpolicy", ROOT / "envs" / "flowpolicy_envs"):
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if path.name.startswith("__") or parts[0] in APART or not public(path):
                continue
            package = ".".join([top.name, *parts[:1]]) if len(parts) > 1 else top.name
            found.setdefault(package, []).append(".".join([top.name, *parts]))
    return found


def page(package: str, modules: list[str]) -> str:
    """Markdown of a page: the docstrings of the package's modules."""
    parts = [f"# {package}\n"]
    init = ROOT / ("envs" if package.startswith("flowpolicy_envs") else ".") / package.replace(".", "/") / "__init__.py"
    if init.is_file() and (text := ast.get_docstring(ast.parse(init.read_text()))):
        parts.append(text + "\n")
    return "\n".join([*parts, *(f"::: {module}\n" for module in modules)])


def main() -> None:
    """Write the pages, an index and the navigation anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    links = []
    for package, modules in sorted(packages().items()):
        (FOLDER / f"{package}.md").write_text(page(package, modules))
        links.append(f"[{package}]({package}.md)")
    listed = "".join(f"* {link}\n" for link in links)
    (FOLDER / "index.md").write_text(f"# Reference\n\nEvery public class and function, by package:\n\n{listed}")
    (FOLDER / "SUMMARY.md").write_text("* [Overview](index.md)\n" + listed)


if __name__ == "__main__":
    main()
