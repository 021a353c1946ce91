"""README's examples run, and its commands are there for CI to call."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {"__name__": "readme"})


def test_there_are_examples_and_commands() -> None:
    assert len(EXAMPLES) >= 4
    for name in ("main", "test"):
        assert re.search(rf"^<!-- command:{name} -->\n```bash\n.+?\n```", README, re.MULTILINE), (
            name
        )
