"""What more machines would take, on paper."""

import pytest

from bench.whole import campaign, engines

IT = engines.Measured(
    process_2=10, process_1=18, workers_2=11, start=4,
    block=0.5, head=0.75, checkpoint=0.3, checkpoint_bytes=3e6, rows_bytes=10**9,
)  # fmt: skip


@pytest.mark.parametrize(
    "T, N, busy, seconds, limit",
    [
        # 10 blocks of 50 s, with 10 checkpoints of 0.3 s in 30 s
        (10, 1, 1, 4 + 500 * 1.1, "a machine's blocks"),
        (10, 10, 10, 4 + 9 + 75 * 1.01, "the head"),
        (10, 1000, 11, 4 + 999 + 75 * 1.01, "the rows"),
        # 1000 checkpoints of 3 MB in 30 s are ten times what the store takes
        (1000, 100, 100, 4 + 99 + 500 * 1.1 * 10, "the store"),
    ],
)
def test_the_slowest_of_blocks_head_rows_and_store_limits(T, N, busy, seconds, limit) -> None:
    found = engines.on_paper(IT, T, N, epochs=100, network=1e9)
    assert found["seconds"] == pytest.approx(seconds)
    assert found["busy"] == busy and found["limited_by"] == limit


def test_what_happened_to_killed_drivers_counts_too() -> None:
    events = [
        {"event": "joined", "node": "a"},
        {"event": "turned", "saves": 3, "bytes_written": 30, "bytes_read": 1, "refused": [4]},
        {"event": "lost", "units": [1, 2], "steps_redone": 7},
        {"event": "stalled", "units": [3], "steps_redone": 1},
        {"event": "failed_save"},
        {"event": "ended", "saves": 3, "bytes_written": 30, "bytes_data": 5},
    ]
    assert campaign.sums(events) == {
        **{"workers_joined": 1, "workers_lost": 1, "units_gone_on": 3, "steps_redone": 8},
        **{"saves": 3, "refused_saves": 1, "failed_saves": 1},
        **{"bytes_data": 5, "bytes_written": 30, "bytes_read": 1},
    }
