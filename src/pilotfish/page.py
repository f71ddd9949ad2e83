"""Self-contained HTML pages: cards, tables and SVG charts, no script and nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

__all__ = ["Mark", "Markup", "Series", "cards", "chart", "dollars", "page", "section", "table", "wrapped"]

_COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 680, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 16, 44


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud of points of a chart.

    Parameters
    ----------
    name : str
        Shown in the legend.
    x, y : sequence of float
        The points; those with a number that is not finite are left out.
    low, high : sequence of float, optional
        An interval around each point, drawn as a band.
    points : bool
        Draw points instead of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    points: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled vertical line of a chart."""

    x: float
    label: str


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent_x: bool = False,
    percent_y: bool = False,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """Draw lines and points with axes, a legend and labelled marks, as SVG.

    Parameters
    ----------
    series : sequence of Series
        What to draw, in the order of the legend.
    x_label, y_label : str
        Names of the axes.
    percent_x, percent_y : bool
        Write the axis in percent.
    y_range : tuple of float, optional
        Least and greatest value of the vertical axis; those of the data when left out.
    marks : sequence of Mark
        Vertical lines.

    Examples
    --------
    >>> chart([Series("cost", [0, 1], [0, 2])], x_label="share", y_label="dollars").startswith("<figure>")
    True
    """
    xs = [v for s in series for v in s.x if math.isfinite(v)] + [m.x for m in marks]
    ys = [v for s in series for part in (s.y, s.low or (), s.high or ()) for v in part if math.isfinite(v)]
    if not xs or not ys:
        return '<p class="empty">Nothing to draw yet.</p>'
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(*(y_range or (min(ys), max(ys))))
    x0, x1, y0, y1 = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def at_x(v: float) -> float:
        return _LEFT + (v - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

    def at_y(v: float) -> float:
        return _HEIGHT - _BOTTOM - (v - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for tick in y_ticks:
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}"/>'
        )
        out.append(
            f'<text x="{_LEFT - 8}" y="{at_y(tick) + 4:.1f}" text-anchor="end">{_number(tick, percent_y)}</text>'
        )
    for tick in x_ticks:
        label = _number(tick, percent_x)
        out.append(f'<text x="{at_x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    out += [
        f'<text class="axis" x="{centre}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="axis" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    for i, s in enumerate(series):
        colour, dashes = _look(i)
        kept = [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if s.low is not None and s.high is not None:
            around = [p for p in zip(s.x, s.low, s.high, strict=True) if all(map(math.isfinite, p))]
            edge = [(x, high) for x, _, high in around] + [(x, low) for x, low, _ in reversed(around)]
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in edge)
            out.append(f'<polygon points="{path}" fill="{colour}" opacity=".16"/>')
        if not s.points:
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in kept)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dashes}/>')
        if s.points or len(kept) <= 30:
            radius = 4.5 if s.points else 2.6
            for x, y in kept:
                label = f"{s.name}: {_number(x, percent_x)}, {_number(y, percent_y)}"
                out.append(
                    f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="{radius}" fill="{colour}">'
                    f"<title>{escape(label)}</title></circle>"
                )
    for i, mark in enumerate(marks):
        x = at_x(mark.x)
        side, anchor = (-5, "end") if x > _WIDTH * 0.7 else (5, "start")
        out.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text class="mark" x="{x + side:.1f}" y="{_TOP + 11 + 14 * (i % 4)}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    out.append("</svg>")
    names = "".join(
        f'<span><svg viewBox="0 0 26 10">{_key(i, s)}</svg>{escape(s.name)}</span>' for i, s in enumerate(series)
    )
    return f'<figure>{"".join(out)}<figcaption class="legend">{names}</figcaption></figure>'


def _key(i: int, series: Series) -> str:
    colour, dashes = _look(i)
    if series.points:
        return f'<circle cx="13" cy="5" r="4.5" fill="{colour}"/>'
    return f'<line x1="0" x2="26" y1="5" y2="5" stroke-width="3" stroke="{colour}"{dashes}/>'


def _look(i: int) -> tuple[str, str]:
    """Colour and dashes of the i-th series: colours begin anew after six, with other dashes."""
    dashes = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    return _COLOURS[i % len(_COLOURS)], f' stroke-dasharray="{dashes}"' if dashes else ""


def _ticks(low: float, high: float) -> list[float]:
    if high - low < 1e-12:
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{value * 100:.4g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def dollars(amount: float) -> str:
    """Write an amount of US dollars with as many digits as it needs.

    Examples
    --------
    >>> dollars(12.345), dollars(0.99999), dollars(0.00123)
    ('$12.35', '$1.00', '$0.00123')
    """
    return f"${amount:,.2f}" if amount >= 0.9995 or amount == 0 else f"${amount:.3g}"


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Lay out headline numbers: label, number, note."""
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
            f'<div class="note">{escape(note)}</div></div>'
            for label, value, note in items
        )
        + "</div>"
    )


class Markup(str):
    """Text that is HTML already, for a cell of a table."""


_LONG_WORD = re.compile(r"\S{30}(?=\S)")


def wrapped(text: str) -> str:
    """Escaped text whose long words may be broken: one address, or one run of letters, is else as wide as the table."""
    ends = [m.end() for m in _LONG_WORD.finditer(text)]
    return "<wbr>".join(escape(text[a:b]) for a, b in pairwise([0, *ends, len(text)]))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Lay out a table; the columns in ``numeric`` are aligned to the right."""
    right = set(numeric)

    def cell(tag: str, i: int, text: str) -> str:
        inner = text if isinstance(text, Markup) else wrapped(text)
        return f"<{tag}{' class=num' if i in right else ''}>{inner}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(headers))
    body = "".join("<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *parts: str, note: str = "") -> str:
    """Group parts, which are HTML already, under a heading."""
    said = f'<p class="lead">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{''.join(parts)}</section>"


def page(title: str, subtitle: str, *sections: str) -> str:
    """Make the whole page of sections, which are HTML already.

    Examples
    --------
    >>> made = page("Report", "all tasks", section("Now", cards([("calls", "12", "today")])))
    >>> made.count("<section>"), "http" in made
    (1, False)
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>{''.join(sections)}</main></body></html>\n"
    )


_STYLE = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#17202b;--soft:#5b6776;--line:#e2e6ec;--c1:#0b6e99;--c2:#d9730d;--c3:#2f9e66;
--c4:#8a4fbf;--c5:#c23b57;--c6:#7a7f87}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e8edf3;--soft:#9aa7b6;--line:#2c3541;
--c1:#4fb3dd;--c2:#f0994d;--c3:#5cc98f;--c4:#b98be6;--c5:#ef7089;--c6:#a3a9b2}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}header h1{margin:0;font-size:28px;letter-spacing:-.01em}
header p{margin:4px 0 0;color:var(--soft)}h2{font-size:19px;margin:0 0 6px}h3{font-size:15px;margin:18px 0 6px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 22px;margin-top:20px}
.lead{margin:0 0 12px;color:var(--soft);max-width:75ch}.cards{display:grid;gap:12px;
grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin-top:10px}
.card{border:1px solid var(--line);border-radius:10px;padding:12px 14px}.label{color:var(--soft);font-size:13px}
.value{font-size:25px;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.note{color:var(--soft);font-size:13px}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;color:var(--soft);text-align:left;font-size:13px}th,td{padding:7px 10px 7px 0;vertical-align:top;
border-bottom:1px solid var(--line)}td.num{white-space:nowrap}
td:last-child:not(.num){overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}.num{text-align:right;padding-left:12px;
font-variant-numeric:tabular-nums}figure{margin:8px 0 0}
svg{width:100%;height:auto;max-width:820px;display:block;overflow:visible}
svg text{fill:var(--soft);font-size:11.5px;font-family:inherit}svg text.axis{font-size:12.5px}
svg .grid{stroke:var(--line);stroke-width:1}svg .mark{stroke:var(--soft);stroke-dasharray:3 3}
svg text.mark{stroke:none;fill:var(--ink)}.legend{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--soft);
font-size:13px;padding-left:58px}.legend svg{display:inline-block;width:26px;height:10px;
margin-right:6px}.empty{color:var(--soft)}
mark{background:rgba(217,115,13,.22);color:inherit;border-radius:3px;padding:1px 2px}
.two{display:grid;gap:18px;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr))}
.two svg text{font-size:15px}.two svg text.axis{font-size:16px}.two .legend{padding-left:36px}
@media(max-width:600px){svg text,.two svg text,.two svg text.axis{font-size:17px}
figure .legend,.two .legend{padding-left:0}}
"""
