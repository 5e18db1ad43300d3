"""One notation for what is written in many: Unicode signs, LaTeX commands that only dress, spaces of every width."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


_SIGNS = {
    **dict.fromkeys("−–‒‑‐﹣", "-"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **dict.fromkeys("·⋅∙", "\\cdot "),
    **{"×": "\\times ", "÷": "\\div ", "±": "\\pm ", "∓": "\\mp ", "π": "\\pi ", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ "},
    **{"≤": "\\leq ", "⩽": "\\leq ", "≥": "\\geq ", "⩾": "\\geq ", "≠": "\\neq ", "≈": "\\approx ", "∼": "\\sim "},
    **{"∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "ℝ": "\\mathbb{R}", "∅": "\\emptyset ", "∠": "\\angle ", "…": "\\ldots "},
    **{"√": "\\sqrt", "∛": "\\sqrt[3]", "Ω": "\\Omega ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "λ": "\\lambda "},
    **{"，": ",", "。": ".", "⁄": "/", "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor "},
    **{chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)},
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_ROOT = re.compile(r"([√∛])\s*([0-9]+(?:\.[0-9]+)?)")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")

_COMMANDS = [
    (re.compile(r"(?<!\\)\\\\(?=[dtc]?frac|sqrt|text|pi\b|times|cdot|left|right)"), "\\\\"),
    (re.compile(r",\\! ?|\{,\}"), ","),
    (re.compile(r"\\!|\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\[,;: ]|~|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])"), " "),
    (re.compile(r"(?<!text)\{([:.])\}"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])"), r"\\frac\1{\2}"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s+\{"), r"\\frac{"),
    (re.compile(r"(?<![\\A-Za-z])sqrt(?![A-Za-z])"), r"\\sqrt"),
    (re.compile(r"\\sqrt(\[\d\])?\s*\(([^()]*)\)"), r"\\sqrt\1{\2}"),
    (re.compile(r"\\sqrt(\[\d\])?\s*([0-9A-Za-z])"), r"\\sqrt\1{\2}"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\math(?:rm|it|up)\s*\{([ei])\}"), r"\1"),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm|bf|mathit|mathsf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:textbf|textit|textrm|textnormal|mathrm|mbox)\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\text(?:dollar|\{\s*(?:\\?\$|\\textdollar)\s*\})"), r"\\$"),
    (re.compile(r"\\text\{\s*([.,;])?\s*\}"), r"\1"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^?\s*\\(?:circ|degrees?)(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\(?:dots|ldots|cdots|dotsc)(?![A-Za-z])|\.\.\."), r"\\ldots "),
    (re.compile(r"\\le(?![A-Za-z])|\\leqslant(?![A-Za-z])|<="), r"\\leq "),
    (re.compile(r"\\ge(?![A-Za-z])|\\geqslant(?![A-Za-z])|>="), r"\\geq "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\ast(?![A-Za-z])"), "*"),
    (re.compile(r"(?i:\\text\{\s*)?all real(?: number)?s(?:\s*\})?|\\R(?![A-Za-z])"), r"\\mathbb{R}"),
]  # fmt: skip


def ascii_signs(text: str) -> str:
    """Unicode signs, digits, fractions and spaces as ASCII or LaTeX; ASCII text is returned as it is."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[sign] for sign in run[0]) + "}", text)
    # The sign reaches over all digits, LaTeX's command over one.
    text = _ROOT.sub(r"\1{\2}", text)
    text = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/"), text)
    return "".join(_sign(sign) for sign in text)


def _sign(sign: str) -> str:
    if sign.isascii():
        return sign
    digit = unicodedata.decimal(sign, None)
    return str(digit) if digit is not None else _SIGNS.get(sign, sign)


@lru_cache(maxsize=4096)
def normalised(expression: str) -> str:
    r"""An expression with one way of writing each thing: ``\frac{1}{2}`` for ``\dfrac12``, ``\sqrt{5}`` for ``√5``."""
    expression = ascii_signs(expression)
    if "\\" in expression or not _SIMPLE.fullmatch(expression):
        for pattern, replacement in _COMMANDS:
            expression = pattern.sub(replacement, expression)
    expression = expression.strip().removesuffix("\\\\").rstrip(" ,;")
    text = _TEXT.fullmatch(expression)
    return (text[1] if text else expression).strip()


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SIMPLE = re.compile(r"[0-9 ,.+*/=()%$-]*")
