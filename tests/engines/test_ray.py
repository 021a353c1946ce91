"""Nodes of Ray on this machine: workers that die, stall, leave and come."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: the extra ray")

from bench.whole import campaign
from bench.whole.campaign import Driver, Nodes, tensors_of
from noprop.engines.store import place_of
from noprop.runs import Run
from support.cli import call

EPOCHS = 150


@pytest.fixture(scope="module")
def nodes():
    """Three, of which each test may take one away for good: it adds one."""
    made = Nodes(campaign.NODES)
    yield made
    made.end()


def test_whatever_happens_to_workers_and_nodes_the_bits_are_those_of_one_process(tmp_path) -> None:
    """Five kills, a node that goes and one that comes; more in `python -m bench campaign`."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed of the moments: {seed}")  # shown where it fails
    rng = random.Random(seed)
    plan = ["kill"] * 5 + ["node"]
    rng.shuffle(plan)
    counts = campaign.measure(tmp_path, plan, len(plan), EPOCHS, rng)
    print(counts)
    assert counts["other_bits"] == 0
    assert counts["kill"] == 5 and counts["node"] == 1 and counts["runs"] >= 1
    assert counts["saves"] > 0 and counts["bytes_written"] > 0 and counts["workers_joined"] > 3


def test_ctrl_c_saves_all_and_a_run_without_engine_goes_on(tmp_path, nodes: Nodes) -> None:
    driver = Driver(tmp_path / "run", nodes.address, EPOCHS)
    assert driver.until(lambda: len(driver.place()) > 3)
    driver.process.send_signal(signal.SIGINT)
    _, errors = driver.process.communicate()
    assert driver.process.returncode == 128 + signal.SIGINT, errors
    assert "interrupted and saved; go on with: noprop train --resume" in errors
    assert any(any(place_of(share.progress)) for share in Run.load(tmp_path / "run").shares)
    call("train", "--resume", tmp_path / "run", "--threads", 1)
    options = [*campaign.OPTIONS, "--epochs", EPOCHS]
    call("train", *options, "--out", tmp_path / "one")
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "one")


def test_all_agree_on_what_the_poorest_node_has(tmp_path, nodes: Nodes, monkeypatch) -> None:
    patient = "from noprop.engines import driver; driver.JOIN_SECONDS = 1e9\n"
    monkeypatch.setattr(campaign, "PROGRAM", patient + campaign.PROGRAM)
    nodes.cluster.add_node(num_cpus=1, env_vars={"NOPROP_ISA": "baseline"}, **campaign.MEMORY)
    driver = Driver(tmp_path / "run", nodes.address, 2, workers=4)
    driver.finish()
    (agreed,) = [event for event in driver.events() if event["event"] == "agreed"]
    assert agreed["isa"] == "baseline"
    versions = [share.versions for share in Run.load(tmp_path / "run").shares]
    assert {of["instruction_set"] for of in versions if of is not None} == {"baseline"}
    options = [*campaign.OPTIONS, "--epochs", "2", "--out", str(tmp_path / "one")]
    subprocess.run(
        [sys.executable, "-m", "noprop", "train", *options],
        check=True, stdout=subprocess.DEVNULL,
        env=campaign.environment() | {"NOPROP_ISA": "baseline"},
    )  # fmt: skip
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "one")


def test_a_run_on_this_machine_alone_needs_no_cluster(alone, tmp_path: Path) -> None:
    options = [*campaign.OPTIONS, "--epochs", "3", "--json"]
    result = call("train", *options, "--engine", "ray", "--workers", 2, "--out", tmp_path / "run")
    assert "2 workers came and 0 were lost" in result.stderr
    assert not (tmp_path / "run" / "units").exists()
    call("train", *options, "--out", tmp_path / "one")
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "one")
