"""The report as LaTeX: booktabs tables, each by itself and all in one document that compiles."""

from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.report.part import Part, Section
from relora_lab.errors import printable

ROWS, COLUMNS = 45, 14  # that a page has room for
LETTERS = 200  # of a cell: TeX knows no width of 6 m
COMMANDS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # which after \\\\ are no text
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "✓": r"$\checkmark$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≠": r"$\ne$",
    "≈": r"$\approx$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "∞": r"$\infty$",
    "√": r"$\surd$",
    "‖": r"$\Vert$",
    "Σ": r"$\Sigma$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "²": "$^2$",
    "§": r"\S{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "₀": "$_0$",
    "₁": "$_1$",
    "₂": "$_2$",
    "é": r"\'e",
    "ö": r"\"o",
}
HEAD = r"""% Compile in this folder, which has the figures: pdflatex report.tex
\documentclass{article}
\usepackage[margin=2cm]{geometry}
\usepackage{amssymb,booktabs,graphicx}
\setlength{\parindent}{0pt}
% As wide as the page at most.
\newcommand{\fitting}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
\begin{document}
\sloppy
"""


def render(about: str, findings: Sequence[str], sections: Sequence[Section]) -> str:
    """A document that has everything in it but the figures' files."""
    lines = [HEAD, r"\section*{Report}", escape(about)]
    if findings:
        lines += [r"\begin{itemize}", *(rf"\item {escape(finding)}" for finding in findings), r"\end{itemize}"]
    for section in sections:
        if section.title:
            lines += [rf"\section*{{{escape(section.title)}}}"]
        for part in section.parts:
            lines += _part(part)
    return "\n".join([*lines, r"\end{document}", ""])


def _part(part: Part) -> Iterator[str]:
    yield ""
    yield rf"\subsection*{{{escape(part.title)}}}"
    if part.drawing:
        width = f"{part.drawn().width:.2f}in"
        yield rf"\begin{{center}}\includegraphics[width={width}]{{{part.file('pdf')}}}\end{{center}}"
    elif part.shown is not None:
        # One that is longer than a page would run off it; its file has it whole.
        more = len(part.shown) - ROWS
        yield _fitting(part.shown.head(ROWS))
        if more > 0:
            yield rf"{more} more rows are in \texttt{{{escape(part.file('tex'))}}}."
    yield rf"{{\footnotesize {escape(part.note)}\par}}"
    for printed in part.printed:
        yield from ("", rf"\paragraph{{{escape(printed.title)}, as printed.}} {escape(printed.note)}")
        yield _fitting(printed.shown)
        if printed.flags:
            flags = " ".join(rf"\item {escape(flag)}" for flag in printed.flags)
            yield rf"{{\footnotesize\begin{{itemize}}{flags}\end{{itemize}}}}"


def _fitting(shown: pd.DataFrame) -> str:
    """A table in the middle, no wider than the page."""
    return rf"\begin{{center}}\fitting{{\small%{chr(10)}{table(_upright(shown)).strip()}}}\end{{center}}"


def _upright(shown: pd.DataFrame) -> pd.DataFrame:
    """A table of many columns and few rows turned over, which a page's width would make illegible."""
    if len(shown.columns) <= COLUMNS or len(shown) > COLUMNS // 2:
        return shown
    first = shown.columns[0]
    return shown.set_index(first).T.rename_axis(first).rename_axis(columns=None).reset_index()


def table(shown: pd.DataFrame) -> str:
    """A table's text as a tabular with booktabs' rules."""
    texts = shown.map(_cell).rename(columns=_cell)
    return str(texts.style.hide(axis="index").to_latex(hrules=True, column_format=_columns(shown)))


def _columns(shown: pd.DataFrame) -> str:
    """Text stands left, numbers right."""
    return "".join("r" if is_number(shown[name]) else "l" for name in shown)


def is_number(cells: pd.Series) -> bool:
    """Does a column of shown texts hold numbers (or nothing)?"""
    return bool(cells.str.fullmatch(r"|–|✓|[−\d][\d,.e−]*( %)?( (±|…|/) [−\d][\d,.e−]*)?").all())


def _cell(text: object) -> str:
    """A cell's text, of a long one the ends."""
    whole = str(text)
    return escape(whole if len(whole) <= LETTERS else f"{whole[: LETTERS // 2]} … {whole[-LETTERS // 2 :]}")


def escape(text: object) -> str:
    """Text that LaTeX prints as it is, in ASCII; a sign that it has no command for by its number."""
    signs = printable(str(text))
    return "".join(COMMANDS.get(sign, sign if sign.isascii() else f"{{[}}U+{ord(sign):04X}{{]}}") for sign in signs)
