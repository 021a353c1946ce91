"""The pages' examples run, their links lead somewhere, and README's commands are there for CI."""

import re
from pathlib import Path

import pytest

from support import ROOT

PAGES = ("README.md", "noprop_kernels/README.md", "noprop_kernels/backends/README.md")
OTHERS = (  # without examples
    "CONTRIBUTING.md",
    "bench/README.md",
    "bench/results/README.md",
    "csrc/README.md",
    "tests/README.md",
)
README = (ROOT / "README.md").read_text()
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(
        r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), {"__name__": "page"})


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, *OTHERS):
        text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        places = [place for place in re.findall(r"\]\((.+?)\)", text) if "://" not in place]
        assert places or page in ("bench/README.md", "tests/README.md")
        for place in places:
            assert (ROOT / page).parent.joinpath(place).exists(), (page, place)


def test_there_are_examples_and_commands() -> None:
    assert len(EXAMPLES) >= 4
    for name in ("main", "test"):
        assert re.search(rf"^<!-- command:{name} -->\n```bash\n.+?\n```", README, re.MULTILINE), (
            name
        )
