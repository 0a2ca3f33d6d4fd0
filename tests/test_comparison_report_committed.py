"""The committed rows of the experiments: all are in the report, and the committed report is what they give."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from report_cases import cells

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from reporting import crd, defeats, editing, guard, host, parts, promises, slider
from reporting.page import RESULTS, Page

PAGE = Page(RESULTS)


def committed(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("module", "name", "run"),
    [
        (crd, "crd", lambda row: row["variant"] != "base model" and (row["variant"], row["seed"])),
        (slider, "slider", lambda row: row["method"] != "base model" and (row["method"], row["seed"])),
        (
            editing,
            "edit_and_video",
            lambda row: row["method"] != "base model" and (row["task"], row["method"], row["seed"], str(row["omega"])),
        ),
        (guard, "step_guard", lambda row: row["task"] != "cost" and (row["task"], row["form"], row["seed"])),
    ],
)
def test_every_committed_run_is_counted(module: ModuleType, name: str, run: Callable[[dict], object]) -> None:
    runs = {found for row in committed(name) if (found := run(row))}
    shown = re.findall(r"^\| [^*|]+(?:\| [^|\d]+)?\| (\d+) \|", module.section(PAGE), re.MULTILINE)
    assert sum(map(int, shown)) == len(runs)


def test_every_committed_cell_is_shown() -> None:
    time, ranks, _ = parts.subsections(PAGE)
    assert len(re.findall(r"\[.+?\] \|", time)) == len(committed("step_cost_parts"))
    assert len(re.findall(r"\[.+?\] \|", ranks)) == len(committed("distributed"))
    cost = [row for row in committed("step_guard") if row["task"] == "cost"]
    assert len(re.findall(r"\d\] \|", guard.section(PAGE))) == len(cost)
    for variant, count in Counter(row["variant"] for row in committed("conformance")).items():
        assert sum(map(int, cells(promises.section(PAGE), variant)[2:])) == count


def test_every_file_of_rows_has_a_reader() -> None:
    source = "".join(path.read_text("utf-8") for path in (RESULTS.parent / "reporting").glob("*.py"))
    # The rates chosen there stand in the settings of classic's rows; coverage has a page of its own beside its rows.
    files = {path.stem for path in RESULTS.glob("*.jsonl")} - {"classic_tuning", "coverage"}
    assert {name for name in files if f'"{name}"' not in source} == set()


def test_the_committed_report_is_what_the_rows_give() -> None:
    report = (RESULTS.parent / "REPORT.md").read_text("utf-8")
    texts = [module.section(PAGE) for module in (crd, slider, editing, guard, promises, defeats)]
    hosts = [row for row in PAGE.measured("kernels") if row["benchmark"] == host.BENCHMARK]
    for text in [*texts, *parts.subsections(PAGE), host.paragraph(hosts)]:
        assert text in report, f"{text.splitlines()[0]}: run `python -m benchmarks --report`"
        for figure in re.findall(r"!\[.+?\]\((.+?)\)", text):
            assert (RESULTS.parent / figure).exists()
