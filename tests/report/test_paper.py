"""Tables and figures for a paper: figures that are right, names that stay names."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from medseg.metrics import CaseScores, LabelScores
from medseg.report.compare import compare
from medseg.report.paper import write_comparison_paper, write_paper
from medseg.report.results import summarise
from medseg.report.tables import to_latex, to_markdown
from medseg.volume import Labels

EVIL = r"\input{/etc/passwd} $\frac{ & % # _ ^ ~ | <script> [x](y) `z` \\ {"


def make(values, label="tumour"):
    cases = [
        CaseScores(
            f"c{n}",
            (
                LabelScores(
                    label,
                    "hit" if v else "missed",
                    dice=v,
                    reference_ml=1.0 + n,
                    prediction_ml=1.5 + n,
                    difference_ml=0.5,
                ),
            ),
        )
        for n, v in enumerate(values)
    ]
    return summarise(Labels({1: label}), 2.0, cases)


def test_the_tables_say_what_the_report_says():
    report = make([0.0, 0.5, 0.7, 0.8, 0.9, 0.95])
    dice = report.label("tumour").summary("dice")
    # (0 + .5 + .7 + .8 + .9 + .95) / 6 = .6417, median (.7 + .8) / 2
    wanted = f"0.642 ({dice.mean_interval.low:.3f} to {dice.mean_interval.high:.3f})"
    assert f"\\emph{{tumour}}}} \\\\\nDice & 6 & 0 & {wanted} & 0.750" in to_latex(report)
    assert f"| tumour | Dice | 6 | 0 | {wanted} |".replace("(", r"\(").replace(")", r"\)") in to_markdown(report)
    assert "5 hit, 1 missed, 0 false alarm, 0 truly empty" in to_latex(report)
    assert "Both masks empty" in to_markdown(report)


def test_names_stay_names():
    report = make([0.5, 0.6, 0.7], EVIL)
    latex, markdown = to_latex(report), to_markdown(report)
    for line in latex.splitlines():
        if "textbackslash" in line:
            # The line of the label: nothing that LaTeX would act on but its own escapes.
            assert line.startswith(r"\multicolumn{5}{l}{\emph{") or line.startswith(r"\caption{")
            line = line.removeprefix(r"\multicolumn{5}{l}{\emph{").removesuffix(r"}} \\")
            line = line.removeprefix(r"\caption{").removesuffix("}")
            known = r"\\(text\w+\{\}|[&%$#_{}]|\\$)"
            rest = re.sub(known, "", line).replace("$-$", "").replace("{[}", "").replace("{]}", "")
            assert not set(rest) & set("\\$%#_{}~^"), rest
    assert r"\input" not in latex
    for line in markdown.splitlines()[2:4]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 7
    assert "<script>" not in markdown
    assert "[x](y)" not in markdown


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX")
def test_latex_accepts_it(tmp_path):
    text = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "a.tex").write_text(text + to_latex(make([0.5, 0.6, 0.7], EVIL)) + r"\end{document}", "utf-8")
    done = subprocess.run(["pdflatex", "-interaction=batchmode", "a.tex"], cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 0
    # A plain article's page is the narrowest; the label of signs alone is as long as its line.
    text = text + to_latex(make([0.5, 0.6, 0.7], "tumour")) + r"\end{document}"
    (tmp_path / "b.tex").write_text(text, "utf-8")
    subprocess.run(["pdflatex", "-interaction=batchmode", "b.tex"], cwd=tmp_path, check=True, timeout=60)
    assert "Overfull" not in (tmp_path / "b.log").read_text("latin-1")


@pytest.mark.parametrize("label", ["tumour", EVIL])
def test_figures_are_written_and_are_the_same_each_time(tmp_path, label):
    report = make([0.0, 0.5, 0.7, 0.8, 0.9, 0.95], label)
    files = write_paper(report, tmp_path / "a")
    names = [
        "dice.png",
        "dice.svg",
        "size-1.png",
        "size-1.svg",
        "table.md",
        "table.tex",
        "volumes-1.png",
        "volumes-1.svg",
    ]
    assert sorted(f.name for f in files) == names
    write_paper(report, tmp_path / "b")
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        if path.suffix == ".svg":
            texts = [t.text for t in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
            assert any(label in text for text in texts), texts
            assert not [text for text in texts if "mathdefault" in text]
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")


def test_figures_of_too_few_cases_are_left_out(tmp_path):
    assert sorted(p.stem for p in write_paper(make([0.5, 0.6]), tmp_path)) == ["dice", "dice", "table", "table"]
    empty = replace(make([0.5]), cases=(), results=summarise(Labels({1: "tumour"}), 2.0, []).results)
    assert "–" in to_markdown(empty)
    write_paper(empty, tmp_path / "empty")


def test_a_figure_of_differences(tmp_path):
    (found,) = compare({"A": make([0.1, 0.5, 0.6, 0.7, 0.8]), "B": make([0.5, 0.6, 0.5, 0.8, 0.8])})
    svg, png, sentences = write_comparison_paper([found], tmp_path)
    assert (svg.name, png.name) == ("differences-1.svg", "differences-1.png")
    assert "Dice: B minus A" in svg.read_text("utf-8")
    assert found.sentence() in sentences.read_text("utf-8")
