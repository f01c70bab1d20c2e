"""Pictures of results as SVG, which is text: nothing has to be installed to draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#444444")
"""Paul Tol's bright scheme, told apart by colour-blind readers too (personal.sron.nl/~pault)."""
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _TOP = 860, 230, 90, 26, 14, 40
_FONT = 'font-family="sans-serif" font-size="13"'
_TICKS = 6


def stacked_bars(
    bars: Mapping[str, Mapping[str, float]],
    title: str,
    unit: str = "ms",
    labels: Mapping[str, str] | None = None,
    footer: Sequence[str] = (),
) -> str:
    """A bar of parts for every name, all to one scale; parts are coloured in the order in which they first come."""
    names = labels or {}
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    largest = max((sum(bar.values()) for bar in bars.values()), default=0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    bottom = _TOP + len(bars) * (_BAR + _GAP)
    body = [_text(_LEFT, 20, title, weight="bold")]
    for tick in ticks(0, largest):
        x = _LEFT + tick * scale
        body.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        body.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle"))
    body.append(_text(_WIDTH - _RIGHT + 8, bottom + 16, unit))
    for row, (name, bar) in enumerate(bars.items()):
        y, x = _TOP + row * (_BAR + _GAP), float(_LEFT)
        body.append(_text(_LEFT - 8, y + _BAR * 0.68, name, anchor="end"))
        for part, value in bar.items():
            colour, width = COLOURS[parts.index(part) % len(COLOURS)], value * scale
            tip = f"<title>{escape(names.get(part, part))}: {value:.3g} {unit}</title>"
            body.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.2f}" height="{_BAR}" fill="{colour}">{tip}</rect>'
            )
            x += width
        body.append(_text(x + 6, y + _BAR * 0.68, f"{sum(bar.values()):,.3g} {unit}"))
    body += _legend([names.get(part, part) for part in parts], bottom + 40)
    end = bottom + 40 + 22 * (-(-len(parts) // 4)) + 8
    return _document(body, end, footer)


def scatter(
    points: Sequence[tuple[float, float, str, int]], title: str, axes: tuple[str, str], groups: Sequence[str],
    line: Sequence[tuple[float, float]] = (), marked: Mapping[str, tuple[float, float]] | None = None,
    footer: Sequence[str] = (),
) -> str:  # fmt: skip
    """Points (x, y, what they are, number of their group) with a logarithmic x axis, a line, and points with names."""
    height = 470
    xs, ys = [x for x, *_ in points], [y for _, y, *_ in points]
    low, high = log10(min(xs)) - 0.05, log10(max(xs)) + 0.05
    span = max(max(ys) - min(ys), 1e-9)
    bottom, top = min(ys) - 0.06 * span, max(ys) + 0.08 * span

    def place(x: float, y: float) -> tuple[float, float]:
        along = (log10(x) - low) / (high - low) * (_WIDTH - 80 - 30)
        return 80 + along, _TOP + (top - y) / (top - bottom) * (height - _TOP - 90)

    body = [_text(80, 20, title, weight="bold")]
    for tick in ticks(bottom, top):
        _, y = place(10**low, tick)
        body.append(f'<line x1="80" y1="{y:.1f}" x2="{_WIDTH - 30}" y2="{y:.1f}" stroke="#dddddd"/>')
        body.append(_text(72, y + 4, f"{tick:.3g}", anchor="end"))
    for exponent in range(floor(low) - 1, floor(high) + 2):
        for digit in (1, 2, 5):
            value = digit * 10.0**exponent
            if low <= log10(value) <= high:
                x, _ = place(value, top)
                body.append(
                    f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{height - 90}" stroke="#dddddd"/>'
                )
                body.append(_text(x, height - 72, f"{value:g}", anchor="middle"))
    body.append(_text((_WIDTH + 50) / 2, height - 50, axes[0], anchor="middle"))
    middle = (height - 50) / 2
    body.append(
        f'<text x="18" y="{middle}" {_FONT} text-anchor="middle" transform="rotate(-90 18 {middle})">'
        f"{escape(axes[1])}</text>"
    )
    if line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        body.append(f'<polyline points="{path}" fill="none" stroke="#444444" stroke-dasharray="4 3"/>')
    for px, py, what, group in points:
        x, y = place(px, py)
        colour = COLOURS[group % len(COLOURS)]
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.75">'
            f"<title>{escape(what)}</title></circle>"
        )
    for name, point in (marked or {}).items():
        x, y = place(*point)
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="#000000" stroke-width="1.5"/>'
        )
        body.append(_text(x + 11, y - 7, name, weight="bold"))
    body += _legend(list(groups), height - 32)
    return _document(body, height, footer)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, some `_TICKS` of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = -(-low // step)
    marks: list[float] = []
    while (first + len(marks)) * step <= high:
        marks.append(round((first + len(marks)) * step, 12))
    return marks


def _legend(names: Sequence[str], top: float) -> list[str]:
    elements: list[str] = []
    for number, name in enumerate(names):
        x, y = 60 + 200 * (number % 4), top + 22 * (number // 4)
        colour = COLOURS[number % len(COLOURS)]
        elements.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        elements.append(_text(x + 18, y, name))
    return elements


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _document(body: Sequence[str], height: float, footer: Sequence[str]) -> str:
    lines = [_text(20, height + 16 * place, line) for place, line in enumerate(footer, start=1)]
    height += 16 * len(footer) + 8
    size = f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return (
        "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *body, *lines, "</svg>"]) + "\n"
    )
