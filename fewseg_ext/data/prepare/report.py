"""What a preparation found, beside what is known of the complete data."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewseg_ext.files import make_folder, remove_leftovers, write_text

REPORT = "report.txt"
PROBLEMS = "problems.txt"
DIFFERENCES = "differences.txt"


def output_folder(root: Path, out: str | os.PathLike[str] | None, name: str) -> Path:
    """The folder that a preparation writes, made: ``out``, or the one of that name inside ``root``.

    Raises:
        ValueError: in ``root``, which somebody else may have packed, it is a link to elsewhere.
    """
    folder = Path(out) if out is not None else root / name
    make_folder(folder, within=folder if out is not None else root)
    remove_leftovers(folder)
    return folder


def list_text(entries: Iterable[str]) -> str:
    """A list as its checksum sees it: sorted, without repetition, one entry a line."""
    return "".join(f"{entry}\n" for entry in sorted(set(entries)))


def checksum(entries: Iterable[str]) -> str:
    """SHA-256 of `list_text`, in hexadecimal digits."""
    return hashlib.sha256(list_text(entries).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    found: int
    expected: int | None = None  # None where no count is known
    checksum: str = ""
    reason: str = ""
    published: str = ""  # the checksum of the published list, where it is known
    explained: bool = False  # the reason accounts for the difference, which is none of the data's fault

    @property
    def as_known(self) -> bool:
        """Whether it is what is known of the complete data, as far as anything is."""
        same = self.expected in (None, self.found) and self.published in ("", self.checksum)
        return same or self.explained


@dataclass
class Report:
    """The result of a preparation.

    Attributes:
        name: of the data set.
        out: the folder that was written.
        rows: the table.
        missing: what is missing, and where it comes from.
        problems: files and entries that were left out, one line each.
        differences: entries in which a regenerated list and a published one differ.
        notes: what else a user should know, in sentences.
    """

    name: str
    out: Path
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every known count and checksum was met."""
        return not self.missing and all(row.as_known for row in self.rows)

    def add_list(
        self, what: str, entries: Sequence[str], expected: int | None = None, published: str = "", reason: str = ""
    ) -> None:
        """A row for a list; the reason stands there if it is not as known."""
        row = Row(what, len(entries), expected, checksum(entries) if entries else "", published=published)
        if row.as_known:
            reason = "equal to the published list" if published else ""
        elif row.expected == row.found:
            reason = "other entries than the published list"
        self.rows.append(replace(row, reason=reason))

    def save(self) -> None:
        """Writes what `print` shows, and all lines of `problems` and `differences`, into files of the folder."""
        text = io.StringIO()
        self.print(Console(file=text, width=160))
        write_text(self.out / REPORT, text.getvalue())
        write_text(self.out / PROBLEMS, "".join(f"{line}\n" for line in self.problems))
        write_text(self.out / DIFFERENCES, "".join(f"{line}\n" for line in self.differences))

    def print(self, console: Console) -> None:
        """The table, then what is missing, what was left out, and what it means."""
        table = Table(title=Text(f"{self.name}: {self.out}"), title_justify="left", box=None, pad_edge=False)
        table.add_column("what", no_wrap=True)
        for name in ("expected", "found", "difference"):
            table.add_column(name, justify="right")
        table.add_column("checksum")
        table.add_column("reason", style="dim")
        for row in self.rows:
            difference = "" if row.expected is None else f"{row.found - row.expected:+,d}".replace("+0", "0")
            table.add_row(
                row.what,
                "" if row.expected is None else f"{row.expected:,d}",
                f"{row.found:,d}",
                Text(difference, style="green" if difference == "0" else "yellow"),
                row.checksum[:12],
                row.reason,
            )
        console.print(table)
        for title, lines, where in (
            ("missing", self.missing, ""),
            ("left out", self.problems, PROBLEMS),
            ("differing from the published lists", self.differences, DIFFERENCES),
            ("note", self.notes, ""),
        ):
            if not lines:
                continue
            shown = 5 if where else len(lines)
            console.print()
            heading = f"{title} ({len(lines):,d}, all of them in {self.out / where}):" if where else f"{title}:"
            console.print(heading, markup=False, highlight=False, soft_wrap=True)
            for line in lines[:shown]:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        console.print()
        if self.complete:
            console.print("complete: everything known of the data was met", style="green")
        else:
            console.print(
                "WARNING: partial or different data; scores on it are not comparable with published ones",
                style="yellow",
            )
