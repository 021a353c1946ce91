"""Runs that are killed: a short form of `python -m bench kills`."""

import random

from bench.whole import kills


def test_killed_runs_come_to_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "EARLY", 1.0)
    monkeypatch.setattr(kills, "KILLS_OF_A_RUN", 2)
    outcome = kills.measure(tmp_path, kills=2, epochs=40, rng=random.Random(0))
    assert outcome["other_bits"] == 0 and outcome["runs"] >= 1 and outcome["kills"] >= 2
