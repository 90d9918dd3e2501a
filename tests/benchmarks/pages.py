"""Pictures of report.html: of the main job's, and of one with 504 made-up runs; under results/.

python -m tests.benchmarks.pages outputs/pareto
"""

import io
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from sae_sweeps.pareto.report import report
from tests.benchmarks.main_job import RESULTS
from tests.support.reported import CHROMIUM, dress, write_sweep

WIDTHS = {"wide": 1500, "narrow": 420}
OPTIONS = [{"d_sae": width, "optimizer.lr": lr} for width in (1024, 4096) for lr in (1e-3, 3e-3)]


def picture(browser: Browser, page: Path, name: str, width: int) -> None:
    """Open a page, say how long it takes until all is drawn, and keep what is seen."""
    tab = browser.new_page(viewport={"width": width, "height": 1000})
    began = time.monotonic()
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector("body[data-ready]")
    seconds, size = time.monotonic() - began, page.stat().st_size / 1e6
    tab.screenshot(path=RESULTS / name, full_page=True)
    tab.close()
    sys.stdout.write(f"{name}: {size:.1f} MB, drawn after {seconds:.1f} s\n")


def main() -> None:
    """Draw both."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        many = Path(place) / "many"
        write_sweep(many, ks=(4, 8, 12, 16, 24, 32, 64), seeds=(0, 1, 2), options=OPTIONS)
        dress(many)
        report(many, console=Console(file=io.StringIO()))
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for size, width in WIDTHS.items():
            for sweep, name in ((Path(sys.argv[1]), "main_job"), (many, "many_runs")):
                picture(browser, sweep / "report.html", f"page_{name}_{size}.png", width)


if __name__ == "__main__":
    main()
