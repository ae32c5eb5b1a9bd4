"""Worker threads: order, faults, shares, and threads inside a worker."""

import threading

import numpy as np
import pytest
import torch

from lorabel.models.crew import Crew, crew_for_rows, deal

CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    def work(item):
        threading.Event().wait(0.002 * (item % 3))
        return item

    with Crew(workers) as crew:
        assert list(crew.map(work, range(20))) == list(range(20))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_is_raised_and_later_items_are_not_begun(workers):
    begun = []

    def work(item):
        begun.append(item)
        if item == 2:
            raise ValueError("third")
        return item

    with Crew(workers) as crew:
        found = []
        with pytest.raises(ValueError, match="third"):
            found.extend(crew.map(work, range(1000)))
    assert found == [0, 1]
    assert len(begun) < 50


def test_two_workers_work_at_the_same_time():
    meet = threading.Barrier(2, timeout=20)
    with Crew(2) as crew:
        list(crew.map(lambda _: meet.wait(), range(2)))


def test_threads_inside_a_worker_are_its_own():
    before = torch.get_num_threads()
    with Crew(2, 1) as crew:
        assert set(crew.map(lambda _: torch.get_num_threads(), range(4))) == {1}
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(("threads", "rows", "workers"), [(1, 32, 1), (2, 32, 2), (4, 32, 4), (16, 32, 4), (6, 32, 3), (2, 15, 1), (2, 16, 2), (3, 16, 1)])
def test_shares_never_fall_below_the_least_rows(threads, rows, workers):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert crew_for_rows(rows, CPU, 8).workers == workers
        assert crew_for_rows(rows, torch.device("meta"), 8).workers == 1
    finally:
        torch.set_num_threads(before)


def test_every_row_is_dealt_once_and_tokens_are_even():
    lengths = np.random.default_rng(0).integers(5, 200, size=33)
    shares = deal(lengths, 4)
    assert sorted(np.concatenate(shares).tolist()) == list(range(33))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max()
    assert [share.tolist() for share in deal(np.array([3, 1]), 4)] == [[1], [0]]
