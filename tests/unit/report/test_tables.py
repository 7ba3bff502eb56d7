import csv
import io
import re

import pytest

from gkt_mpi.report.comparison_tables import (
    accuracy_table,
    cost_table,
    fields_table,
    percent,
    runs_table,
)
from gkt_mpi.report.groups import compare
from gkt_mpi.report.measures import Spread
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.tables import Section, Table, Text, to_csv, to_latex
from tests.made_runs import make_run, make_study

SPECIAL = r"a_b & 50% $x$ #1 {c} ~ ^ \d <e> 'f' α ± × †"


def unescape(text):
    r"""Read LaTeX text back: only what stands for one character of text may be in it."""
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
    symbols = {"alpha": "α", "mu": "μ", "pm": "±", "times": "×", "dagger": "†"}
    text = re.sub(r"\$\\([a-z]+)\$", lambda found: symbols[found[1]], text)
    parts = re.split(r"(\\text[a-z]+(?:\{\}| \\space | )|\\[&%$#_{}])", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            assert not re.search(r"[&%$#_{}~^\\]", part), part
        else:
            word = re.match(r"\\(text[a-z]+)", part)
            parts[i] = words[word[1]] + " " * part.endswith("space ") if word else part[1]
    return "".join(parts).replace("--", "–")


def rows_of_latex(text):
    """Parse a tabular: its columns, and its rows as lists of (text, span, is bold)."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[0].startswith("\\begin{tabular}{@{}") and lines[-1] == "\\end{tabular}"
    assert lines[1] == "\\toprule" and lines[-2] == "\\bottomrule"
    kinds = re.sub(r"p\{[^}]*\}", "p", lines[0].removeprefix("\\begin{tabular}{@{}").removesuffix("@{}}"))
    rows = []
    for line in lines[2:-2]:
        if line != "\\midrule":
            assert line.endswith(r" \\")
            rows.append([_cell(cell) for cell in re.split(r"(?<!\\) ?& ?", line.removesuffix(r" \\"))])
    return kinds, rows


def _cell(cell):
    span, is_bold = 1, False
    found = re.fullmatch(r"\\multicolumn\{(\d+)\}\{[^}{]*(?:\{\}[^}{]*)?[lc]\}\{(.*)\}", cell)
    if found:
        span, cell = int(found[1]), found[2]
    found = re.fullmatch(r"\\text(bf|it)\{(.*)\}", cell)
    if found:
        is_bold, cell = found[1] == "bf", found[2]
    return unescape(cell), span, is_bold


def read_csv(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    columns = (("digits", "homo", 0.5), ("digits", "hetero", 0.1), ("cifar100", "homo", 0.5))
    return compare([Run.load(path) for path in make_study(folder, seeds=2, rounds=3, columns=columns)])


def test_text_comes_back_from_latex():
    texts = [SPECIAL, r"\ ~ ^", "two\n\nlines"]  # an empty line would end the paragraph and the table
    table = Table("t", SPECIAL, [[Text(SPECIAL)]], [Section(SPECIAL, [[Text(text)] for text in texts])], [])
    _, rows = rows_of_latex(to_latex(table, "1"))
    found = [[text for text, _, _ in row] for row in rows]
    assert found == [["", SPECIAL], [SPECIAL, SPECIAL], ["", r"\ ~ ^"], ["", "two lines"]]


@pytest.mark.parametrize("make", [accuracy_table, cost_table, fields_table, lambda c: runs_table(c, c.runs[0].folder)])
def test_latex_has_the_cells_of_the_page(study, make):
    table = make(study)
    kinds, rows = rows_of_latex(to_latex(table, "1.2"))
    titles = int(any(section.title for section in table.sections))  # a column of their own
    assert len(kinds) == table.width + titles
    assert kinds.count("r") == max(0, table.width - table.first_number)
    assert all(sum(span for _, span, _ in row) == table.width + titles for row in rows)
    expected = [[""] * titles + [cell.text for cell in row] for row in table.header]
    for section in table.sections:
        for i, row in enumerate(section.rows):
            expected.append([section.title if i == 0 else ""] * titles + [cell.text for cell in row])
    assert [[text for text, _, _ in row] for row in rows] == expected


def test_the_best_cells_are_bold_in_latex_and_marked_in_csv(tmp_path):
    for seed, values in enumerate(((0.61, 0.5), (0.63, 0.5))):
        for algorithm, value in zip(("fedgkt", "fedavg"), values, strict=True):
            make_run(tmp_path / f"{algorithm}{seed}", algorithm, seed, (value,))
    table = accuracy_table(compare([Run.load(folder) for folder in sorted(tmp_path.iterdir())]))
    _, rows = rows_of_latex(to_latex(table, "1"))
    # Mean 62, squares 1 + 1 over n - 1 = 1: a deviation of 1.41 points.
    assert [row[1] for row in rows[2:]] == [("62.00 ± 1.41 (2)", 1, True), ("50.00 ± 0.00 (2)", 1, False)]
    assert "Bold" in table.caption
    assert [line["is_best_federated"] for line in read_csv(table)] == ["1", "0"]


def test_csv_has_the_numbers_of_the_runs_in_full(study):
    values = {
        (run.config["algorithm"], run.config["data"]["name"], run.config["data"]["partition"]): [] for run in study.runs
    }
    for run in study.runs:
        key = (run.config["algorithm"], run.config["data"]["name"], run.config["data"]["partition"])
        values[key].append(run.records[-1]["test_accuracy"])
    lines = read_csv(accuracy_table(study))
    own = [line for line in lines if line["is_of_another_partition"] == "0"]
    assert {(line["algorithm"], line["data"], line["partition"]) for line in own} == set(values)
    for line in own:
        a, b = values[line["algorithm"], line["data"], line["partition"]]
        assert float(line["test_accuracy_mean"]) == pytest.approx((a + b) / 2, rel=1e-14)
        assert float(line["test_accuracy_sd"]) == pytest.approx(abs(a - b) / 2**0.5, rel=1e-9)
        assert line["seeds"] == "2"
    borrowed = [line for line in lines if line["is_of_another_partition"] == "1"]
    assert [(line["algorithm"], line["partition"]) for line in borrowed] == [("centralized", "hetero")]


def test_the_cost_table_has_a_line_for_each_group_that_ran(study):
    lines = read_csv(cost_table(study))
    assert len(lines) == 5 * 3 + 2  # centralized training has not run with hetero
    gkt = next(line for line in lines if line["algorithm"] == "fedgkt")
    assert float(gkt["upload_bytes_per_round_and_client"]) == 40e6 / 4
    assert float(gkt["edge_flops_per_round_and_client"]) == 3e11 / 4
    assert float(gkt["virtual_s_per_round"]) == 400
    central = next(line for line in lines if line["algorithm"] == "centralized")
    assert central["upload_bytes_per_round_and_client"] == ""
    assert central["client_test_accuracy_mean"] == ""


def test_values_of_most_runs_are_abbreviated_and_last(study):
    table = fields_table(study)
    rows = [[cell.text for cell in row] for section in table.sections for row in section.rows]
    at = next(i for i, row in enumerate(rows) if row[0] == "split.mode")
    assert rows[at][1:] == ["parallel", "split learning (parallel), ResNet-56"]
    assert (rows[at + 1][0], rows[at + 1][2]) == ("", "all others")
    assert [section.title for section in table.sections] == ["run", "data", "split"]
    assert len(read_csv(table)) == len(study.runs) * len({line["field"] for line in read_csv(table)})


def test_csv_quotes_whatever_a_name_contains():
    table = Table("t", "", [[Text("a")]], [Section("", [])], [{"a": 'x,"y"\nz', "b": None}, {"a": "=1", "c": 2}])
    assert read_csv(table) == [{"a": 'x,"y"\nz', "b": "", "c": ""}, {"a": "'=1", "b": "", "c": "2"}]


def test_no_name_in_csv_is_a_formula_and_numbers_stay_numbers(tmp_path):
    """A spreadsheet evaluates text that begins with one of these characters; after an apostrophe it shows it."""
    names = ["=1+2", "+x", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1"]
    numbers = [-1.5, "-1.5", "+2e-3", -3, "a=b", "1-2", ""]
    records = [{"value": value} for value in (*names, *numbers)]
    table = Table("t", "", [[Text("value")]], [Section("", [])], records)
    rows = list(csv.reader(io.StringIO(to_csv(table), newline="")))
    expected = [*("'" + name.replace("\r", " ") for name in names), "-1.5", "-1.5", "+2e-3", "-3", "a=b", "1-2", ""]
    assert [row[0] if row else "" for row in rows[1:]] == expected
    runs = [make_run(tmp_path / f"=HYPERLINK({seed})", "fedavg", seed, client__lr=seed - 1.5) for seed in range(2)]
    comparison = compare([Run.load(folder) for folder in runs])
    lines = list(csv.DictReader(io.StringIO(to_csv(fields_table(comparison)))))
    assert {line["run"] for line in lines} == {"'=HYPERLINK(0)", "'=HYPERLINK(1)"}
    assert {line["value"] for line in lines} == {"-1.5", "-0.5"}


def test_a_single_seed_has_no_spread():
    assert percent(Spread(0.96449, None, 1)) == "96.45 (1)"
    assert percent(Spread(0.5, 0.00314, 3)) == "50.00 ± 0.31 (3)"
    assert percent(None) == "–"
