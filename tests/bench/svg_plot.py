"""Line plots as SVG, with nothing but Python."""
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 52, 48
COLOURS = ("#1f6fb4", "#d1495b", "#2e8b57", "#8a5fbf", "#c77f1b", "#555555")


def ticks(low, high, about=6):
    """Round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(path, title, x_label, y_label, lines, levels=(), marks=()):
    """`lines`: (name, [(x, y), ...]); those of one name share colour and entry. `levels`: (name, y)
    drawn across, in the colour of the lines of that name; `marks`: (text, x)."""
    points = [p for _, line in lines for p in line]
    xs, ys = [p[0] for p in points] + [x for _, x in marks], [p[1] for p in points]
    ys += [y for _, y in levels]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    pad = 0.04 * (y_high - y_low) or 1
    y_low, y_high = y_low - pad, y_high + pad
    x_high = x_high if x_high > x_low else x_low + 1

    def x_of(x):
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(y):
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    colour = {}
    for name, _ in lines:
        colour.setdefault(name, COLOURS[len(colour) % len(COLOURS)])
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']

    def segment(x1, y1, x2, y2, stroke, more=""):
        out.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                   f'stroke="{stroke}"{more}/>')

    def text(x, y, words, anchor="middle", more=""):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>')

    for x in ticks(x_low, x_high):
        segment(x_of(x), TOP, x_of(x), HEIGHT - BOTTOM, "#e4e4e4")
        text(x_of(x), HEIGHT - BOTTOM + 16, f"{x:g}")
    for y in ticks(y_low, y_high):
        segment(LEFT, y_of(y), WIDTH - RIGHT, y_of(y), "#e4e4e4")
        text(LEFT - 6, y_of(y) + 4, f"{y:g}", "end")
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label)
    text(16, (TOP + HEIGHT - BOTTOM) / 2, y_label,
         more=f' transform="rotate(-90 16 {(TOP + HEIGHT - BOTTOM) / 2:.0f})"')
    for name, y in levels:
        segment(LEFT, y_of(y), WIDTH - RIGHT, y_of(y), colour.get(name, "#555555"),
                ' stroke-dasharray="5 4"')
    for words, x in marks:
        segment(x_of(x), TOP, x_of(x), HEIGHT - BOTTOM, "#555555", ' stroke-dasharray="2 3"')
        text(x_of(x) + 4, TOP + 12, words, "start")
    for name, line in lines:
        where = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{where}" fill="none" stroke="{colour[name]}" '
                   'stroke-width="1.5"/>')
    x = LEFT
    for name, shade in colour.items():
        segment(x, 38, x + 20, 38, shade, ' stroke-width="3"')
        text(x + 26, 42, name, "start")
        x += 50 + 7 * len(name)
    out.append("</svg>\n")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out))
