"""Docstrings as the site shows them: they are written for Python's help() and for readers of the source."""

import re
from typing import Any

import griffe

# The little LaTeX that the docstrings hold, in Unicode: no script has to be loaded to show it.
SYMBOLS = {
    r"\frac{1}{L}": "1/L",
    r"^{-2}": "⁻²",
    r"^2": "²",
    r"\leftarrow": "←",
    r"\nabla_": "∇",
    r"\sum": "Σ",
    r"\cdot": "·",
    r"\cos": "cos",
    r"\mu": "μ",
    r"\sigma": "σ",  # noqa: RUF001
    r"\epsilon": "ε",
    r"\sim": "~",
    r"\qquad": "   ",
    r"\, ": "",
}


def plain(match: re.Match[str]) -> str:
    """An equation as an indented line."""
    equation = match[1]
    for command, symbol in SYMBOLS.items():
        equation = equation.replace(command, symbol)
    if "\\" in equation:
        raise ValueError(f"docs/docstrings.py does not know a command of: {equation}")
    return f"    {equation}"


class Docstrings(griffe.Extension):
    """Turns the few things that Markdown does not know into what it does."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value
        text = re.sub(
            r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE
        )  # the heading that mkdocstrings knows
        text = re.sub(r":(?:func|meth|class|mod|attr):`~?([^`]+)`", r"`\1`", text)
        obj.docstring.value = re.sub(r"^\.\. math::\s*(.+)$", plain, text, flags=re.MULTILINE)
