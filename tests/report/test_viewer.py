"""The viewer: what is packed comes out again, small enough, and a browser scrolls through it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest

from medseg.errors import MaskError
from medseg.grid import Grid
from medseg.report import Pair, evaluate_pairs
from medseg.report.viewer import embed
from medseg.volume import Labels, Mask, Volume

from .study import GRID, scan, tumour


def opened(packed):
    """Unpack as the page's script does: grey by running sums, then reference and mask."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(packed.payload)), np.uint8)
    size = int(np.prod(packed.shape))
    parts = [data[n : n + size] for n in range(0, len(data), size)]
    if packed.grey:
        parts[0] = np.cumsum(parts[0], dtype=np.uint64).astype(np.uint8)
    return [part.reshape(packed.shape) for part in parts]


def asymmetric():
    """One voxel of the reference at the patient's right, front and head; the mask beside it towards the left."""
    shape = (30, 40, 20)
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))  # stored RAS: i to R, j to A, k to S
    reference, mask = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    reference[25, 33, 17], mask[24, 33, 17] = 300, 7
    voxels = np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)
    return Mask(reference, grid), Mask(mask, grid), Volume(voxels, grid, "MR")


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_axes_run_to_head_back_and_left_however_it_is_stored(codes):
    reference, mask, volume = asymmetric()
    order = reference.grid.order_to(codes)
    grid = reference.grid.reordered(order)
    packed = embed(Mask(np.ascontiguousarray(order.apply(reference.labels)), grid), mask, volume)
    grey, wanted, found = opened(packed)
    assert packed.numbers == (0, 7, 300)
    assert packed.full == (20, 40, 30)
    # Head index 17 stays; back is 39 - 33 = 6 from the front; left is 29 - 25 = 4, its neighbour 5.
    assert np.argwhere(wanted == 2).tolist() == [[17 - packed.start[0], 6 - packed.start[1], 4 - packed.start[2]]]
    assert np.argwhere(found == 1).tolist() == [[17 - packed.start[0], 6 - packed.start[1], 5 - packed.start[2]]]
    # 80 mm at least around one voxel of 2 mm are shown where the scan has them: the scan is 60 x 80 x 40 mm.
    # To the left: 76 mm of margin are 19 voxels on each side of 4 and 5; to the back 19.5 around 6.
    assert (packed.start, packed.shape) == ((0, 0, 0), (20, 27, 26))
    values = packed.low + grey / 255.0 * (packed.high - packed.low)
    z, y, x = 17 - packed.start[0], 6 - packed.start[1], 4 - packed.start[2]
    # Within half a grey value (and what the percentiles cut off) of the stored number.
    stored = volume.voxels[0, 25, 33, 17]
    assert values[z, y, x] == pytest.approx(stored, abs=(packed.high - packed.low) / 255)


def test_a_large_volume_is_thinned_along_its_finest_axes():
    packed = embed(tumour(), tumour(start=7), scan(), most=600)
    assert np.prod(packed.shape) <= 600
    assert packed.step[0] == 1  # 3 mm slices stay, 1 mm and 1.2 mm pixels are thinned
    assert packed.spacing_mm == pytest.approx((3.0 * packed.step[0], 1.2 * packed.step[1], 1.0 * packed.step[2]))


def test_ct_has_a_fixed_scale_and_a_soft_tissue_window():
    voxels = np.full((1, *GRID.shape), 40, np.int16)
    packed = embed(tumour(), None, Volume(voxels, GRID, "CT"))
    assert (packed.unit, packed.window) == ("HU", (-200.0, 300.0))
    # 40 HU is (40 + 500) / 1280 of the range, times 255: 107.58.
    assert set(opened(packed)[0].ravel()) == {108}
    assert not opened(packed)[2].any()


def test_without_a_scan_empty_or_misplaced():
    assert len(opened(embed(tumour(), tumour(), None))) == 2
    empty = Mask(np.zeros(GRID.shape, np.uint8), GRID)
    assert embed(empty, None, None).shape == (10, 20, 24)
    constant = embed(tumour(), None, Volume(np.zeros((1, *GRID.shape), np.int16), GRID, "MR"))
    assert constant.high > constant.low
    with pytest.raises(MaskError):
        embed(tumour(), Mask(np.zeros((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4))), None)
    many = Mask(np.arange(4800, dtype=np.uint16).reshape(GRID.shape) % 300, GRID)
    assert embed(many, None, None) is None


@pytest.fixture
def page(tmp_path):
    pairs = [Pair(f"case '\"<{n}>", tumour, lambda n=n: tumour(start=6 + 2 * n), lambda n=n: scan(n)) for n in range(3)]
    evaluate_pairs(pairs, tmp_path, Labels({1: "tumour"}))
    return tmp_path / "report.html"


def test_the_size_limit_keeps_the_worst_and_says_so(tmp_path):
    pairs = [Pair(f"c{n}", tumour, lambda n=n: tumour(start=6 + n), lambda n=n: scan(n)) for n in range(4)]
    evaluate_pairs(pairs, tmp_path, Labels({1: "tumour"}), viewer_mb=0.011)
    text = (tmp_path / "report.html").read_text("utf-8")
    held = re.findall(r'data-case="(\w+)"', text)
    assert 0 < len(held) < 4
    assert held == ["c3", "c2", "c1", "c0"][: len(held)]
    assert "would make this file too large" in text
    evaluate_pairs(pairs, tmp_path, Labels({1: "tumour"}), viewer_mb=0)
    assert "<template" not in (tmp_path / "report.html").read_text("utf-8")


CHECK = """
const wait = (test) => new Promise((done) => { const look = () => (test() ? done() : setTimeout(look, 20)); look(); });
const press = (k) => new KeyboardEvent("keydown", { key: k, bubbles: true });
const key = (k) => document.getElementById("viewer").dispatchEvent(press(k));
const text = (plane) => document.querySelector(`[data-plane="${plane}"] output`).textContent;
window.requestAnimationFrame = (draw) => setTimeout(draw, 0); // no frames come while a browser without a screen dumps
const frame = () => new Promise((done) => setTimeout(done, 60));
(async () => {
  const seen = [], dialog = document.getElementById("viewer"), button = document.querySelector("button.scroll-case");
  button.click();
  await wait(() => dialog.dataset.ready === button.dataset.case); await frame();
  const here = document.getElementById("viewer-here").textContent.replace(/scan \\S+ · /, "");
  seen.push(text("axial"), text("coronal"), here);
  key("ArrowUp"); await frame(); seen.push(text("axial"));
  key("2"); key("ArrowDown"); await frame(); seen.push(text("coronal"));
  document.getElementById("viewer-overlay").value = "areas"; document.getElementById("viewer-opacity").value = 100;
  key("1"); key("ArrowDown"); await frame();
  const canvas = document.querySelector('[data-plane="axial"] canvas');
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const columns = (r, g, b) => { // leftmost pixel of nearly this colour
    let left = Infinity, n = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) > 60) continue;
      n++;
      left = Math.min(left, (i / 4) % canvas.width);
    }
    return [n, left];
  };
  const [missed, a] = columns(86, 180, 233), [extra, b] = columns(255, 140, 26);
  seen.push(missed > 50 && extra > 50, a < b);
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 50, cancelable: true }));
  await frame(); seen.push(text("axial"));
  key("f"); await frame(); seen.push(document.getElementById("viewer-planes").dataset.alone);
  key("n"); await wait(() => dialog.dataset.ready !== button.dataset.case); seen.push(dialog.dataset.ready);
  document.getElementById("viewer-close").click(); seen.push(dialog.open);
  document.title = "RESULT " + JSON.stringify(seen);
})().catch((error) => { document.title = "RESULT " + error.stack; });
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to run the page in")
def test_a_browser_scrolls_through_a_case_without_a_complaint(page, tmp_path):
    digest = base64.b64encode(hashlib.sha256(CHECK.encode()).digest()).decode()
    text = page.read_text("utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", f"<script>{CHECK}</script></body>"), "utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *options.split(), *more.split(), "--virtual-time-budget=9000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "CONSOLE" not in done.stderr
    result = re.search(r"<title>RESULT (.*?)</title>", done.stdout, re.DOTALL)
    assert result, done.stdout[:300]
    seen = json.loads(result.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    # The worst case: i 6 to 11 against 10 to 15 (towards the left), j 5 to 10, k 3 to 5: the cross at i 10 or 11, j 8.
    assert seen[:3] == ["slice 4 of 10", "slice 9 of 20", "At the cross: reference tumour · mask tumour"]
    assert seen[3:5] == ["slice 5 of 10", "slice 8 of 20"]
    assert seen[5:7] == [True, True]  # missed on the patient's right, too much on the left
    assert seen[7:] == ["slice 5 of 10", "axial", "case '\"<1>", False]
