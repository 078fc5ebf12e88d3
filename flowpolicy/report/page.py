"""One self-contained HTML page: the frame, the style sheet and small pieces; nothing is fetched from anywhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple


class Section(NamedTuple):
    """A titled part of the page. body: HTML.

    Args:
        title: Of the page or drawing.
        body: HTML.
        lead: One sentence under the title, plain text.
    """

    title: str
    body: str
    lead: str = ""


STYLE = """
:root { color-scheme: light dark; --ink:#1c2430; --soft:#5b6675; --line:#dfe4ea; --ground:#f6f7f9; --card:#ffffff;
  --good:#2f9e6e; --bad:#d4553f; --s0:#2f6fdb; --s1:#d9730d; --s2:#2f9e6e; --s3:#9b51c9; --s4:#c2385e; --s5:#6b7787; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6eaf0; --soft:#98a3b3; --line:#2c3541; --ground:#12171e;
  --card:#1a212a; --good:#4cc38a; --bad:#f0795f; --s0:#6ea3ff; --s1:#f5a350; --s2:#4cc38a; --s3:#c48ae8; --s4:#f07a9a;
  --s5:#9aa5b4; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--ground); color:var(--ink); font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,"DejaVu Sans",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 28px 72px; }
h1 { font-size:26px; line-height:1.25; letter-spacing:-.01em; margin:0 0 4px; }
h2 { font-size:18px; margin:0 0 2px; } h3 { font-size:14px; margin:22px 0 6px; }
p { margin:6px 0; } .lead,.none,.sub { color:var(--soft); } .none { font-style:italic; }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:22px 24px;
  margin-top:20px; }
.facts { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:14px; margin-top:24px; }
.fact { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 18px; min-width:0; }
.fact b { display:block; font-size:25px; line-height:1.25; font-weight:650; letter-spacing:-.01em;
  font-variant-numeric:tabular-nums; overflow-wrap:anywhere; }
.fact span { color:var(--soft); font-size:13px; } .fact i { display:block; color:var(--soft); font-style:normal;
  font-size:13px; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-size:13.5px; margin-top:12px; }
th,td { text-align:left; padding:6px 14px 6px 0; border-bottom:1px solid var(--line); white-space:nowrap; }
th { color:var(--soft); font-weight:550; font-size:12.5px; } tr:last-child td { border-bottom:0; }
.n { text-align:right; font-variant-numeric:tabular-nums; }
.grid2 { display:grid; grid-template-columns:repeat(auto-fit,minmax(420px,1fr)); gap:16px 20px; margin-top:12px; }
.grid3 { display:grid; grid-template-columns:repeat(auto-fill,minmax(290px,1fr)); gap:14px 16px; margin-top:12px; }
svg { display:block; max-width:100%; height:auto; overflow:visible; }
svg text { fill:var(--soft); font-size:11px; font-variant-numeric:tabular-nums; } svg .title { fill:var(--ink);
  font-size:12.5px; font-weight:600; } svg .label { fill:var(--ink); font-size:12.5px;
  paint-order:stroke; stroke:var(--card); stroke-width:3px; stroke-linejoin:round; }
svg g .label { fill:var(--c); }
svg .value { fill:var(--ink); font-size:11.5px; } svg .grid { stroke:var(--line); stroke-width:1; }
svg .axis { stroke:var(--soft); stroke-width:1; }
svg .mark { stroke:var(--ink); stroke-width:1; stroke-dasharray:3 3; opacity:.7; }
.s0 { --c:var(--s0); } .s1 { --c:var(--s1); } .s2 { --c:var(--s2); } .s3 { --c:var(--s3); } .s4 { --c:var(--s4); }
.s5 { --c:var(--s5); } .ink { --c:var(--ink); }
svg .line { fill:none; stroke:var(--c); stroke-width:1.8; stroke-linejoin:round; }
svg .faint { fill:none; stroke:var(--c); stroke-width:1; opacity:.4; }
svg .again { stroke-dasharray:6 4; } svg .line.ink { stroke-width:2.4; opacity:.75; } svg .dot { fill:var(--c); }
svg .whisker { stroke:var(--c); stroke-width:2; opacity:.45; }
svg .stairs { fill:none; stroke:var(--soft); stroke-width:1.4; stroke-dasharray:5 4; }
svg .band { fill:var(--c); opacity:.28; } svg .bar { fill:var(--c); opacity:.75; }
.key { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:13px; color:var(--soft); margin-top:8px; }
.key span::before { content:""; display:inline-block; width:14px; height:3px; border-radius:2px; background:var(--c);
  margin-right:7px; vertical-align:middle; } .key .again::before { background:linear-gradient(90deg,var(--c) 40%,
  transparent 40% 60%,var(--c) 60%); }
.pairs { display:grid; grid-template-columns:repeat(auto-fill,minmax(230px,1fr)); gap:2px 24px; margin:10px 0;
  font-size:13.5px; } .pairs div { display:flex; justify-content:space-between; border-bottom:1px solid var(--line);
  padding:4px 0; } .pairs span { color:var(--soft); }
.strip { display:flex; flex-wrap:wrap; gap:2px; margin:4px 0 10px; } .strip i { width:9px; height:14px;
  border-radius:2px; background:var(--good); } .strip i.bad { background:var(--bad); }
figure { margin:0; } figcaption { color:var(--soft); font-size:12.5px; margin-top:4px; }
video,img { width:100%; border-radius:8px; background:#000; display:block; }
.verdict { margin:10px 0; padding:2px 0 2px 14px; border-left:3px solid var(--line); }
.verdict.won { border-color:var(--good); } .verdict.lost { border-color:var(--bad); }
td.yes { color:var(--good); } td.no { color:var(--bad); }
details { margin-top:12px; } summary { cursor:pointer; font-weight:550; }
pre { background:var(--ground); border:1px solid var(--line); border-radius:8px; padding:12px 14px; overflow:auto;
  font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; max-height:420px; }
code { font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; }
footer { color:var(--soft); font-size:12.5px; margin-top:24px; }
@media print { body { background:#fff; } section,.fact { break-inside:avoid; } }
"""


def page(title: str, *, subtitle: str, head: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document. head: HTML between the title and the first section.

    Args:
        title: Of the page or drawing.
        subtitle: Plain text under the title.
        head: HTML between the title and the first section.
        sections: The parts, in order.
        footer: Plain text.
    """
    body = "".join(
        f"<section><h2>{escape(part.title)}</h2>"
        + (f"<p class='lead'>{escape(part.lead)}</p>" if part.lead else "")
        + part.body
        + "</section>"
        for part in sections
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        f"content='width=device-width,initial-scale=1'><title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1><p class='sub'>{escape(subtitle)}</p>{head}{body}"
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def facts(cards: Sequence[tuple[str, str, str]]) -> str:
    """Cards of (what it is, the number, a remark).

    Args:
        cards: (what it is, the number, a remark) each.
    """
    return (
        "<div class='facts'>"
        + "".join(
            f"<div class='fact'><span>{escape(name)}</span><b>{escape(value)}</b><i>{escape(remark)}</i></div>"
            for name, value, remark in cards
        )
        + "</div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of plain-text cells; the first `text_columns` are set left, the rest are numbers.

    Args:
        header: Of each column.
        rows: Lines of results.jsonl, one per episode.
        text_columns: How many columns, from the left, are text.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{'' if i < text_columns else ' class=n'}>{escape(cell)}</{tag}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{cells('th', header)}</tr>{body}</table></div>"


def pairs(values: Mapping[str, str]) -> str:
    """Many short name-value pairs in as many columns as fit.

    Args:
        values: Name -> value, plain text.
    """
    cells = "".join(f"<div><span>{escape(name)}</span>{escape(value)}</div>" for name, value in values.items())
    return f"<div class='pairs'>{cells}</div>"


def legend(names: Sequence[str]) -> str:
    """Colour key of the series 0, 1, ... with these names; empty for a single one. From the seventh on with dashes.

    Args:
        names: Of the series, in order.
    """
    if len(names) < 2:
        return ""
    spans = "".join(
        f"<span class='s{i % 6}{' again' if i >= 6 else ''}'>{escape(n)}</span>" for i, n in enumerate(names)
    )
    return f"<div class='key'>{spans}</div>"


def none(what: str) -> str:
    """The line that says what is missing and why.

    Args:
        what: A sentence.
    """
    return f"<p class='none'>{escape(what)}</p>"


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """A part that folds.

    Args:
        summary: What is seen when it is folded.
        body: HTML.
        is_open: Whether it is unfolded at first.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>"
