"""The frame that every HTML page of this package shares: head, findings, links, theme button, footer.

Guarantee: a page needs nothing but itself and asks for nothing (its policy forbids it); it is light or dark as the
reader's system is, or as the button says; the same arguments give the same bytes. The look is `assets/page.css`, which
the evaluation report has too. What is handed in is HTML: data is escaped by whoever makes it.
"""

from collections.abc import Mapping
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def document(
    *, kicker: str, title: str, findings: Mapping[str, tuple[str, str]], links: Mapping[str, str], main: str,
    footer: str, scripts: str = "",
) -> str:  # fmt: skip
    """Give the text of a page.

    findings: heading → (figure, what it is of), shown as cards. links: id of a section of `main` → its name.
    scripts: script elements for the end of the page.
    """
    cards = "\n".join(
        f'<article><h2>{name}</h2><p class="score">{value}</p><p>{more}</p></article>'
        for name, (value, more) in findings.items()
    )
    places = "\n".join(f'<a href="#{target}">{name}</a>' for target, name in links.items())
    css = (ASSETS / "page.css").read_text(encoding="utf-8")
    theme = (ASSETS / "theme.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<header class="page">
<p class="kicker">{kicker}</p>
<h1>{title}</h1>
<div class="findings" style="grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr))">
{cards}
</div>
</header>
<nav aria-label="Page">{places}
<button type="button" id="theme" title="Switch between light and dark">Light / dark</button></nav>
<main>
{main}
</main>
<footer>{footer}</footer>
<script>
{theme}
</script>
{scripts}
</body>
</html>
"""
