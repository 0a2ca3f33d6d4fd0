"""Where the rows come from and where text and figures go."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from comparison.rows import Row, complete, load
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Page:
    """The report of one folder of rows; that of the committed rows lies beside their folder."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file of the report."""
        return (self.folder.parent if self._committed else self.folder) / "REPORT.md"

    def rows(self, name: str) -> list[Row]:
        """The rows of a question that have numbers."""
        return complete(load(self.folder / f"{name}.jsonl"))

    def measured(self, name: str) -> list[dict]:
        """The rows of the older benchmarks, one per metric."""
        return load(self.folder / f"{name}.jsonl")

    def left_out(self, name: str) -> list[str]:
        """What could not run, and why, once per method."""
        rows = load(self.folder / f"{name}.jsonl")
        ran = {row["method"] for row in complete(rows)}
        return list(
            dict.fromkeys(
                f"{row['method']} ({row['missing']})" for row in rows if "missing" in row and row["method"] not in ran
            )
        )

    def save(self, figure: Figure, name: str, words: str) -> str:
        """Write the figure beside the rows; the Markdown that shows it."""
        figure.savefig(self.folder / f"{name}.png", dpi=110)
        plt.close(figure)
        return self._link(name, words)

    def drawn(self, name: str, words: str) -> list[str]:
        """The Markdown that shows a figure that its benchmark drew beside the rows; nothing if it is not there."""
        return [self._link(name, words)] if (self.folder / f"{name}.png").exists() else []

    def _link(self, name: str, words: str) -> str:
        return f"![{words}]({'results/' if self._committed else ''}{name}.png)"

    @property
    def _committed(self) -> bool:
        return self.folder.resolve() == RESULTS.resolve()


def absent(what: str, command: str) -> str:
    """The sentence that stands for a section without rows."""
    return f"No rows of {what} are in this folder. `{command}` makes them."
