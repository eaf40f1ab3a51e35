"""A hook of mkdocs: turn formulas into MathML, which browsers draw without a script."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(
    r'(?P<open><(?P<tag>span|div) class="arithmatex">)\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def to_mathml(
    match: re.Match,  # a formula as arithmatex leaves it
) -> str:
    "Return the formula as MathML, as a block where the page has it as a block."
    latex = html.unescape(match["latex"])
    display = "block" if match["tag"] == "div" else "inline"
    try:
        return f"{match['open']}{convert(latex, display=display)}</{match['tag']}>"
    except Exception as error:  # the exceptions of the package have no class in common
        raise PluginError(f"cannot convert the formula {latex} ({type(error).__name__})")


def on_page_content(
    text: str,  # HTML of a page
    **event,  # `page`, `config` and `files`, not used
) -> str:
    "Return the page with its formulas as MathML."
    return FORMULA.sub(to_mathml, text)
