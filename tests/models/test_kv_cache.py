"""The KV cache: the longest cached prefix is found, within a capacity, as a copy."""

import pytest
import torch

from zs_lib.models.kv_cache import KVCache

ID_BYTES = (3 * 2 + 3 * 4) * 4
"""Bytes of an id's keys and values, for a layer of 3 heads whose keys are 2 and whose values are 4 wide."""


def own(text, shared=1):
    """Keys and values that say which text and which id they are of."""
    ids = torch.tensor(text[shared:], dtype=torch.float32)[None, :, None] + len(text) / 10
    return [(ids.repeat(3, 1, 2), -ids.repeat(3, 1, 4))]


def cache_of(*texts, capacity=1000 * ID_BYTES):
    cache = KVCache(capacity)
    cache.reset((7,), ())
    for text in texts:
        cache.put(text, own(text))
    return cache


@pytest.mark.parametrize(
    "text, count, of",
    [
        ((7, 1, 2, 3, 9), 3, (7, 1, 2, 3)),
        ((7, 1, 2, 4, 5), 3, (7, 1, 2, 4, 5)),  # the last id is never known: its logits are wanted
        ((7, 1, 2), 1, None),
        ((7, 1, 2, 9, 9), 2, None),
        ((7, 8, 8), 0, None),
        ((7, 0), 0, None),
    ],
)
def test_the_longest_prefix_is_found(text, count, of):
    found, (*kept,) = cache_of((7, 1, 2, 3), (7, 1, 2, 4, 5), (7, 9)).find(text)
    assert found == count and bool(kept) == bool(count)
    if count:
        expected = own(of or (7, 1, 2, 4, 5))[0]
        assert (
            kept[0][0][:, :count].floor().equal(expected[0][:, :count].floor()) and kept[0][1].shape[-1] == 4
        )
        assert of is None or kept[0][1].equal(expected[1])


def test_a_longer_text_replaces_its_prefix_and_what_exceeds_the_capacity_is_not_kept():
    cache = cache_of((7, 1, 2), (7, 5), (7, 1, 2, 3, 4), capacity=5 * ID_BYTES)
    assert (
        cache.size == 5 * ID_BYTES
        and cache.find((7, 1, 2, 3, 4, 5))[0] == 4
        and cache.find((7, 5, 6))[0] == 1
    )
    cache.put((7, 6), own((7, 6)))
    assert cache.size == 5 * ID_BYTES and cache.find((7, 6, 6)) == (0, ())
    cache.put((7, 5, 6), own((7, 5, 6)))  # too large, even without its prefix
    assert cache.size == 4 * ID_BYTES and cache.find((7, 5, 6)) == (0, ())


def test_a_text_that_is_put_again_is_kept_once():
    cache = cache_of((7, 1, 2), (7, 1, 3), (7, 1, 2))  # as rows of a group may write the same
    assert cache.size == 4 * ID_BYTES
    cache.evict_others([])
    assert cache.size == 0


def test_texts_that_do_not_go_on_are_evicted():
    cache = cache_of((7, 1, 2), (7, 1, 3), (7, 4), (7, 5, 5))
    cache.evict_others([(7, 1, 2, 8), (7, 5, 5, 8), (7, 6)])
    assert cache.size == 4 * ID_BYTES
    assert [cache.find((*text, 0))[0] for text in [(7, 1, 2), (7, 1, 3), (7, 4), (7, 5, 5)]] == [2, 1, 0, 2]


def test_texts_that_go_on_in_a_later_call_are_kept():
    cache = cache_of((7, 1, 2), (7, 1, 3), (7, 4))
    cache.awaited = [(7, 1, 3, 9)]
    cache.evict_others([(7, 4, 8)])
    assert [cache.find((*text, 0))[0] for text in [(7, 1, 2), (7, 1, 3), (7, 4)]] == [1, 2, 1]


def test_entries_are_copies():
    given = own((7, 1, 2))
    cache = cache_of()
    cache.put((7, 1, 2), given)
    given[0][0].zero_()
    assert cache.find((7, 1, 2, 3))[1][0][0].equal(own((7, 1, 2))[0][0])


def test_it_serves_texts_with_one_prefix():
    assert not KVCache().fits([(7, 1)])
    cache = cache_of((7, 1, 2))
    assert cache.fits([(7, 1), (7, 2)]) and not cache.fits([(7, 1), (7,)]) and not cache.fits([(8, 1)])
    cache.reset((), ())
    assert cache.fits([(8, 1)]) and cache.size == 0 and cache.find((7, 1, 2, 3)) == (0, ())
