"""Aligned columns for people; the json beside them has the same numbers unrounded."""

from collections.abc import Mapping, Sequence


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of named cells under their names: the first column to the left, the others to the right, a gap is a dash.

    Args:
        rows: cells by the name of their column; columns stand in the order in which they are first met.

    Example:
        >>> print(format_table([{"program": "ours", "tokens/s": "1,234"}, {"program": "theirs", "ratio": "2.0"}]))
        program  tokens/s  ratio
        ours        1,234      -
        theirs          -    2.0
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "-") for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines)
