"""Tables as people read them: Markdown and LaTeX of the columns that say something."""

import re
from collections.abc import Iterable

import pandas as pd

from fsd.report.columns import Column, lines_of, used

# What GitHub would not show as it stands. Left alone where it does: `<` before a number, `>` between
# spaces, underscores within a word.
MARKDOWN = re.compile(
    r"[\\`*|~$]|<(?![\d\s])|(?<!\s)>|>(?!\s)|(?<![^\W_])_|_(?![^\W_])|](?=\()|&(?=#?\w+;)"
)


def one_line(text: str) -> str:
    """Text without line breaks and control characters, a space for each."""
    return "".join(character if character.isprintable() else " " for character in text)


def markdown_text(text: str) -> str:
    """Text within a line or a cell that GitHub shows as it stands."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown(table: pd.DataFrame, columns: list[Column]) -> str:
    """A GitHub table of the columns that say something."""
    columns = used(columns, table)
    head = [markdown_text(column.title) for column in columns]
    body = [[markdown_text(c.text(line)) for c in columns] for line in lines_of(table)]
    wide = [max(3, *(len(row[i]) for row in [head, *body])) for i in range(len(head))]

    def row(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column.left else cell.rjust(width)
            for cell, width, column in zip(cells, wide, columns, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if c.left else "-" * (w - 1) + ":" for w, c in zip(wide, columns, strict=True)]
    return "\n".join([row(head), row(rule), *map(row, body)])


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$"},
    **{"–": "--", "−": "$-$", "≥": r"$\ge$", "≤": r"$\le$", "→": r"$\to$", "√": r"$\surd$"},
    **{"·": r"$\cdot$", "…": r"\ldots{}", "[": "{[}", "]": "{]}"},  # [ after \\ is an argument
    "`": r"\textasciigrave{}",
}


def latex_text(text: str, numeric: bool = False) -> str:
    """Text that TeX prints as it stands; in numbers a hyphen is a minus.

    Letters beyond ASCII stay: which of them there are is up to TeX's fonts.
    """
    table = LATEX | ({"-": "$-$"} if numeric else {})
    text = one_line(text)
    written = [table.get(character, character) for character in text]
    for i in range(len(text) - 1):
        if text[i] == text[i + 1] and text[i] in "-',":  # would be printed as one sign
            written[i] += r"\/"
    return "".join(written)


def latex(table: pd.DataFrame, columns: list[Column], caption: str, label: str) -> str:
    """A table environment of the columns that say something; needs the package booktabs."""
    columns = used(columns, table)
    numeric = [not column.left for column in columns]
    head = " & ".join(latex_text(column.title) for column in columns)
    body: list[str] = []
    datasets: list[str] = []
    for line in lines_of(table):
        if datasets and line["dataset"] != datasets[-1]:
            body.append(r"\midrule")
        datasets.append(line["dataset"])
        cells = (latex_text(c.text(line), n) for c, n in zip(columns, numeric, strict=True))
        body.append(rf"{' & '.join(cells)} \\")
    kinds = "".join("r" if n else "l" for n in numeric)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def latex_notes(notes: Iterable[str]) -> str:
    """The footnotes, small, below the tables."""
    items = [rf"\item {latex_text(note)}" for note in notes]
    return "\n".join(
        [r"\begin{footnotesize}\begin{itemize}", *items, r"\end{itemize}\end{footnotesize}"]
    )
