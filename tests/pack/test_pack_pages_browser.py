"""The pages of a pack in a real browser: on a desk, on a phone, on paper. Runs where chromium is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from evpack.pack.build import BuiltPack
from tests.waiting import DEADLINE_S

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")
PAGES = {
    "pack": "results/final_verdict.html",
    "report": "reports/example__tiny/prune_50pct_stress/run_1/evaluation.html",
    "broken": "reports/example__tiny/errors/nan_injection/evaluation.html",
}
WIDTHS = (1280, 390)
MEASURE = """
<!doctype html><body style="margin:0"><pre id="found"></pre><script>
const found = {}, frames = FRAMES;
function measure(name, frame) {
  const page = frame.contentDocument, root = page.documentElement, width = frame.clientWidth;
  const texts = [...page.querySelectorAll("body *")].filter(e => e.childNodes.length && e.innerText && e.offsetParent);
  const outside = [...page.querySelectorAll(".name, .strip, .figure, h1, h2, h3, p, dd, pre")]
    .filter(e => e.getBoundingClientRect().right > width + 1 || e.getBoundingClientRect().left < -1);
  const crossing = [...page.querySelectorAll(".plot > div")].filter(row => {
    const [a, b] = [row.querySelector(".name"), row.querySelector(".figure")].map(e => e.getBoundingClientRect());
    return a.right > b.left + 1 && a.bottom > b.top + 1 && b.bottom > a.top + 1 && a.width && b.width;
  });
  found[name] = {
    scroll: root.scrollWidth, width: width, plots: page.querySelectorAll(".plot").length,
    strips: Math.min(...[...page.querySelectorAll(".strip")].map(e => e.getBoundingClientRect().width)),
    smallest: Math.min(...texts.map(e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize))),
    outside: outside.map(e => e.className + " " + e.innerText.slice(0, 40)), crossing: crossing.length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").length,
    scripts: page.scripts.length, text: page.body.innerText.length,
  };
  if (Object.keys(found).length == Object.keys(frames).length)
    document.getElementById("found").textContent = JSON.stringify(found);
}
for (const [name, [path, width]] of Object.entries(frames)) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:800px;border:0`;
  frame.onload = () => measure(name, frame);
  frame.src = path;
  document.body.append(frame);
}
</script>
"""


def browse(tmp_path: Path, *options: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command.append("--disable-dev-shm-usage")  # in a container that is small
    if os.getuid() == 0:
        command.append("--no-sandbox")  # the kernel's sandbox wants another user; the pages are our own
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    return done.stdout


@pytest.fixture(scope="module")
def found(good_pack: BuiltPack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("browser")
    frames = {
        f"{name} {width}": [(good_pack.path / path).as_uri(), width] for name, path in PAGES.items() for width in WIDTHS
    }
    (folder / "measure.html").write_text(MEASURE.replace("FRAMES", json.dumps(frames)), encoding="utf-8")
    dom = browse(
        folder,
        "--disable-web-security",  # the measuring page looks into the frames of other files
        "--allow-file-access-from-files",
        "--virtual-time-budget=20000",
        "--window-size=1400,900",
        "--dump-dom",
        (folder / "measure.html").as_uri(),
    )
    match = re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)
    assert match is not None, dom[:2000]
    value: dict[str, Any] = json.loads(unescape(match[1]))
    return value


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_width_and_can_be_read(found: dict[str, Any], page: str, width: int) -> None:
    seen = found[f"{page} {width}"]
    assert seen["width"] == width
    assert seen["scroll"] <= width, "the page itself scrolls sideways"
    assert seen["outside"] == []
    assert seen["crossing"] == 0, "a label runs into the figure beside it"
    assert seen["smallest"] >= 10, "px"
    assert seen["plots"] >= (3 if page == "pack" else 1)
    assert seen["strips"] >= 150, "px that a strip has to show its figures in"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_for_nothing_and_runs_nothing(found: dict[str, Any], page: str) -> None:
    seen = found[f"{page} 1280"]
    assert (seen["requests"], seen["scripts"]) == (0, 0)
    assert seen["text"] > 500


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints(good_pack: BuiltPack, tmp_path: Path, page: str) -> None:
    target = tmp_path / "page.pdf"
    browse(tmp_path, f"--print-to-pdf={target}", "--no-pdf-header-footer", (good_pack.path / PAGES[page]).as_uri())
    data = target.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 6
