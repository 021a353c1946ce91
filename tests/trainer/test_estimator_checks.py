"""scikit-learn's own checks of NoPropClassifier, each shown with its outcome."""

import os
import subprocess
import sys

# a small network, so that the checks take seconds
CHECKS = """
import noprop
from sklearn.utils.estimator_checks import check_estimator

results = check_estimator(noprop.NoPropClassifier(hidden=16), on_fail=None, on_skip=None)
for result in results:
    reason = "" if result["status"] == "passed" else f": {result['exception']}"
    print(f"{result['check_name']} {result['status']}{reason}")
assert not any(result["expected_to_fail"] for result in results)
"""


def test_check_estimator(capsys):
    # one check is skipped without SCIPY_ARRAY_API, which SciPy reads when it is imported
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECKS],
        env=os.environ | {"SCIPY_ARRAY_API": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    lines = done.stdout.splitlines()
    assert len(lines) > 55
    assert [line for line in lines if not line.endswith(" passed")] == []
