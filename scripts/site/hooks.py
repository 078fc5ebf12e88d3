"""mkdocs: formulas become MathML when the site is built, so that a reader's browser needs no program for them; and the
picture of README.md is the site's, too.
"""

import html
import importlib
import re
from pathlib import Path
from typing import Any

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<text>.*?)\\(?:\)|\])</(?P=tag)>', re.DOTALL
)

_PICTURE = Path(__file__).resolve().parents[2] / ".github" / "rollout.gif"


def on_files(files: Any, *, config: Any) -> Any:
    """Add the picture."""
    pages = importlib.import_module("mkdocs.structure.files")
    files.append(pages.File.generated(config, _PICTURE.name, abs_src_path=str(_PICTURE)))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Replace every formula that the arithmatex extension has marked."""
    converter = importlib.import_module("latex2mathml.converter")  # of the site's environment

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return converter.convert(html.unescape(match["text"]).strip(), display=display)

    return _FORMULA.sub(formula, text)
