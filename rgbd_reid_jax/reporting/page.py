"""HTML of the report: one file without scripts or outside resources; every text from data passes `escape`."""

import base64
import html

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f5f6f8; --text: #1d2129; --faint: #5b6472;
  --line: #d9dde3; --good: #14803c; --bad: #c2255c; --accent: #1c64b0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2027; --text: #e6e9ee; --faint: #9aa4b2;
  --line: #343b46; --good: #4cc27a; --bad: #ff7b9c; --accent: #7db8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
.faint, figcaption, small { color: var(--faint); font-size: .85rem; }
nav a { color: var(--accent); margin-right: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; max-width: 46rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { white-space: nowrap; font-weight: 600; color: var(--faint); font-size: .85rem; }
tbody th { font-weight: 600; }
td b { font-size: 1.1rem; }
td small, th small { display: block; font-weight: 400; }
.notice { border-left: 4px solid var(--bad); background: var(--card); padding: .5rem .8rem; max-width: 46rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
.plots figure { margin: 0; max-width: 36rem; }
.plots img { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 8px; }
.plots figcaption { margin-top: .35rem; }
.key { display: inline-block; width: 7rem; height: .8rem; margin: 0 .4rem; vertical-align: middle; border-radius: 2px; }
.strip { margin: 0 0 1rem; padding: .6rem .8rem .7rem; background: var(--card); border-radius: 8px; }
.strip p { margin: 0 0 .5rem; max-width: none; }
.row { display: flex; gap: .45rem; overflow-x: auto; align-items: flex-start; padding-bottom: .2rem; }
.row figure { margin: 0; flex: none; text-align: center; }
.row figcaption { font-size: .75rem; line-height: 1.3; margin-top: .2rem; white-space: nowrap; }
.row img { display: block; height: 128px; width: auto; margin: 0 auto; image-rendering: pixelated;
  border: 3px solid var(--line); border-radius: 4px; }
.row .paired img { height: 80px; }
.row .paired { margin-right: .5rem; padding-right: .6rem; border-right: 2px solid var(--line); }
.same img { border-color: var(--good); } .other img { border: 3px dashed var(--bad); }
.same b { color: var(--good); } .other b { color: var(--bad); }
@media (max-width: 34rem) {
  tr { display: grid; grid-template-columns: repeat(4, 1fr); }
  th, td { text-align: left; padding-left: 0; padding-right: 0; }
  th:first-child { grid-column: 1 / -1; } tbody th { border: 0; padding-bottom: 0; }
  td small { font-size: .75rem; white-space: nowrap; }
  .row { flex-wrap: wrap; row-gap: .6rem; } .row img { height: 104px; }
}
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { background: var(--card); padding: .8rem; border-radius: 8px; overflow-x: auto; font-size: .8rem; }
footer { margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: .6rem; }
"""
# The browser itself refuses anything that is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(value: object) -> str:
    """Text from data, safe between tags and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def data_uri(png: bytes) -> str:
    """A PNG file as the value of a src attribute."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def document(title: str, body: str) -> str:
    """The whole file.

    Args:
        title: plain text; escaped here.
        body: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(identifier: str, heading: str, body: str) -> str:
    """A headed part of the page; `identifier` and `heading` are plain text, `body` is HTML."""
    return f'<section id="{escape(identifier)}">\n<h2>{escape(heading)}</h2>\n{body}\n</section>'


def plot(png: tuple[bytes, bytes], description: str, caption: str) -> str:
    """A figure in the reader's colour scheme.

    Args:
        png: the figure on light and on dark ground.
        description: what it shows, for readers who cannot see it; plain text.
        caption: plain text below.
    """
    light, dark = png
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{data_uri(dark)}">'
        f'<img src="{data_uri(light)}" alt="{escape(description)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def collapsible(summary: str, text: str) -> str:
    """Preformatted plain text behind a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
