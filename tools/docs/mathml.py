"""A hook of mkdocs: formulas become MathML, which browsers draw without a script."""
import html, re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'(?P<open><(?P<tag>span|div) class="arithmatex">)\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.S)


def drawn(
    found:re.Match # a formula as arithmatex leaves it
) -> str:
    "The formula as MathML, on a line of its own where it was one."
    latex, display = html.unescape(found["latex"]), "block" if found["tag"] == "div" else "inline"
    try: return f"{found['open']}{convert(latex, display=display)}</{found['tag']}>"
    except Exception as e: raise PluginError(f"cannot draw the formula {latex} ({type(e).__name__})")   # its exceptions have no class in common


def on_page_content(
    text:str, # a page's HTML
    **event   # `page`, `config`, `files`, of no use here
) -> str:
    "The page with its formulas drawn."
    return FORMULA.sub(drawn, text)
