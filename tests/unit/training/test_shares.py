"""Shares: every row in exactly one, whole; bounded in tokens, however many windows the rows have."""

import numpy as np
import pytest

from lorabel.training.shares import MOST_TOKENS_PER_SHARE, Chunk, make_shares, tokens_per_joint_share


def chunk(member, lengths):
    return Chunk(member, np.arange(len(lengths)), np.array(lengths))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_row_is_in_one_share_with_all_its_tokens(workers):
    lengths = np.random.default_rng(0).integers(5, 5000, size=32)
    shares = make_shares([chunk(0, lengths), chunk(1, [9, 8, 7]), chunk(2, lengths[::-1])], workers)
    for member, expected in ((0, lengths), (1, np.array([9, 8, 7])), (2, lengths[::-1])):
        parts = [part for share in shares for part in share if part.member == member]
        places = np.concatenate([part.places for part in parts])
        assert sorted(places.tolist()) == list(range(len(expected)))
        assert np.array_equal(np.concatenate([part.lengths for part in parts]), expected[places])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("rows", "tokens"), [(32, 2048), (32, 4096), (6, 16000), (4, 8 * 512)])
def test_long_rows_go_into_more_shares_instead_of_larger_ones(rows, tokens, workers):
    shares = make_shares([chunk(0, [tokens] * rows)], workers)
    assert all(sum(part.tokens for part in share) <= max(MOST_TOKENS_PER_SHARE, tokens) for share in shares)


def test_what_fits_into_one_share_stays_in_one():
    assert len(make_shares([chunk(0, [512] * 32)], 1)) == 1
    assert len(make_shares([chunk(0, [512] * 32)], 2)) == 2
    assert len(make_shares([chunk(0, [512] * 64)], 1, joint_tokens=32768)) == 1


def test_members_that_go_up_in_the_workers_stay_whole_and_those_left_over_are_dealt_out():
    for members, workers, dealt in ((8, 2, 0), (3, 2, 1), (1, 2, 1), (7, 4, 3)):
        shares = make_shares([chunk(k, [60] * 64) for k in range(members)], workers)
        whole = [share[0].member for share in shares if len(share) == 1 and len(share[0].places) == 64]
        assert whole == list(range(members - dealt)), (members, workers)
        assert len(shares) == len(whole) + dealt * workers
        of_dealt = {member: [share[0].tokens for share in shares if share[0].member == member] for member in range(members - dealt, members)}
        assert all(len(tokens) == workers and len(set(tokens)) == 1 for tokens in of_dealt.values())


def test_the_fewer_layers_are_left_the_more_members_share():
    eight = [chunk(k, [50] * 32) for k in range(8)]
    counts = [len(make_shares(eight, 2, tokens_per_joint_share("cpu", 6, first))) for first in (0, 4, 5, 6)]
    assert counts == [8, 4, 2, 2]
    assert tokens_per_joint_share("cuda", 6, 5) == tokens_per_joint_share("cuda", 6, 0) > tokens_per_joint_share("cpu", 6, 5)
