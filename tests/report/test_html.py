"""The page: nothing gets out of its cell, nothing comes from a network, and a browser runs it without a complaint."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from medseg.report import Pair, evaluate, evaluate_pairs
from medseg.report.html import _show
from medseg.volume import Labels

from .study import make_study, scan, tumour

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7 * 7 }}'


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def elements(page):
    parser = Elements()
    parser.feed(page)
    return parser.seen


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    masks, references = make_study(folder)
    evaluate(masks, references, folder / "out", labels=Labels({1: "tumour"}))
    return folder / "out" / "report.html"


def test_nothing_is_loaded_and_nothing_inline_runs(page):
    seen = elements(page.read_text("utf-8"))
    for tag, attributes in seen:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "action")], (
            attributes
        )
        target = attributes.get("href", "#")
        assert target.startswith(("#", "data:image/png;base64,")), target
    policy = next(a["content"] for t, a in seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_policy_names_the_style_and_script_that_are_there(page):
    text = page.read_text("utf-8")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_every_case_stands_in_the_page_with_its_reason(page):
    text = page.read_text("utf-8")
    for wanted in (
        "How empty masks count",
        "case_5",
        "extra",
        "MASK-GRID",
        "slices 4 and 6 are 5 mm apart",
        "Few cases",
    ):
        assert wanted in text
    cards = re.findall(r"<h3>(.*?)</h3>", text)
    assert cards[0] == "missing"  # the missing come first, then the worst
    assert cards[-1] in ("case_0", "case_3")  # the perfect ones last
    assert text.count("data:image/png") == 3  # one scan is known by the ledger: a slice in each plane


def test_names_cannot_break_out(tmp_path):
    pairs = [Pair(f"{EVIL}{n}", tumour, tumour, reason=EVIL) for n in range(3)]
    pairs.append(Pair("=cmd|'/C calc'!A0", tumour, None, reason=EVIL))
    evaluate_pairs(pairs, tmp_path, Labels({1: EVIL}))
    seen = elements((tmp_path / "report.html").read_text("utf-8"))
    assert not [t for t, a in seen if t == "img" or "onerror" in a]
    assert sum(t == "script" for t, _ in seen) == 1
    assert "49" not in re.findall(r"<h3>(.*?)</h3>", (tmp_path / "report.html").read_text("utf-8"))
    assert "\n'=cmd|" in (tmp_path / "scores.csv").read_text("utf-8")


def test_a_scan_elsewhere_leaves_a_plain_picture(tmp_path):
    from medseg.errors import InputError
    from medseg.grid import Grid
    from medseg.volume import Volume

    def elsewhere():
        volume = scan()
        return Volume(volume.voxels, Grid(volume.grid.shape, volume.grid.affine + 5 * (volume.grid.affine == 12)))

    def unreadable():
        raise InputError("GRID-SHAPE", "", "cannot be read")

    pairs = [
        Pair("a", tumour, tumour, elsewhere),
        Pair("b", tumour, tumour, unreadable),
        Pair("c", tumour, tumour, scan),
    ]
    evaluate_pairs(pairs, tmp_path, Labels({1: "tumour"}))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count("data:image/png") == 3  # of c, in three planes
    assert "Without the scan: cannot be read." in text


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "mm", "–"),
        (0.98765, "score", "0.988"),
        (12.345, "mm", "12.3"),
        (1.2345, "mm", "1.23"),
        (-231.4, "ml", "−231"),
        (0.01234, "ml", "0.012"),
        (1.2345, "ml", "1.23"),
        (0.0, "ml", "0"),
        (2.0, "count", "2"),
        (2.25, "count", "2.2"),
    ],
)
def test_numbers_for_people(value, form, text):
    assert _show(value, form) == text


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to run the page in")
def test_a_browser_sorts_and_searches_without_a_complaint(page, tmp_path):
    # The page's own policy forbids a foreign script, so the check is put in with its hash.
    check = """
const table = document.querySelector("table.sortable"), first = () => table.tBodies[0].rows[0].cells[0].dataset.v;
const dice = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "Dice");
table.tHead.rows[0].cells[dice].firstChild.click(); const low = first();
table.tHead.rows[0].cells[dice].firstChild.click(); const high = table.tBodies[0].rows[0].cells[dice].dataset.v;
const box = document.getElementById("search"); box.value = "case_4"; box.dispatchEvent(new Event("input"));
const shown = [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].dataset.v);
document.getElementById("outlines").click();
document.title = "RESULT " + JSON.stringify([low, high, shown, document.body.className]);
"""
    digest = base64.b64encode(hashlib.sha256(check.encode()).digest()).decode()
    text = page.read_text("utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ")
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", f"<script>{check}</script></body>"), "utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *options.split(), *more.split(), "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "CONSOLE" not in done.stderr
    assert 'RESULT ["missing","1.0",["case_4"],"plain"]' in done.stdout
