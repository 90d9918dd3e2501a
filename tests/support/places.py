"""Where the repository has its parts."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
