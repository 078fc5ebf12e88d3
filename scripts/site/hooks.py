"""mkdocs: formulas become MathML when the site is built, so that a reader's browser needs no program for them."""

import html
import importlib
import re
from typing import Any

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<text>.*?)\\(?:\)|\])</(?P=tag)>', re.DOTALL
)


def on_page_content(text: str, **_: Any) -> str:
    """Replace every formula that the arithmatex extension has marked."""
    converter = importlib.import_module("latex2mathml.converter")  # of the site's environment

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return converter.convert(html.unescape(match["text"]).strip(), display=display)

    return _FORMULA.sub(formula, text)
