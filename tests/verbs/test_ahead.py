"""Tensors loaded ahead of the writer: each once, in order, no more than a few at a time; large ones alone."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gradience import spectral
from gradience.io.safetensors import planned
from gradience.rewriting import writing
from gradience.rewriting.writing import loaded_ahead


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(spectral, "cores", lambda: 2)


def tensors(load, count, shape=(3,)):
    return [planned(str(place), "F32", shape, lambda place=place: load(place)) for place in range(count)]


@pytest.mark.usefixtures("two_cores")
def test_data_come_in_order_and_several_threads_compute_no_more_than_a_few_ahead():
    both, begun = threading.Barrier(2), []

    def load(place):
        begun.append(place)
        if place < 2:
            both.wait(timeout=300)  # passed only if another thread is at work
        return np.full(3, place, np.float32)

    with loaded_ahead(tensors(load, 40)) as waiting:
        assert waiting[0].load()[0] == 0
        time.sleep(0.1)
        assert len(begun) <= 5  # two for each thread, and the one that is written
        assert [tensor.load()[0] for tensor in waiting[1:]] == list(range(1, 40))
    assert sorted(begun) == list(range(40))


@pytest.mark.usefixtures("two_cores")
def test_a_large_tensor_is_read_when_it_is_written(monkeypatch):
    monkeypatch.setattr(writing, "_LARGE", 12)
    read = []

    def load(place):
        read.append(place)
        return np.zeros(4, np.float32)

    with loaded_ahead(tensors(load, 3, (4,))) as waiting:
        waiting[0].load()
        assert read == [0]


@pytest.mark.usefixtures("two_cores")
def test_what_comes_with_another_tensor_keeps_no_thread_waiting_for_it():
    loaded_by = {}

    def load(place):
        loaded_by[place] = threading.current_thread()
        return np.zeros(3, np.float32)

    pairs = [tensor._replace(with_another=place % 2 == 1) for place, tensor in enumerate(tensors(load, 6))]
    with loaded_ahead(pairs) as waiting:
        for tensor in waiting:
            tensor.load()
    assert [thread is threading.main_thread() for _, thread in sorted(loaded_by.items())] == [False, True] * 3


@pytest.mark.usefixtures("two_cores")
def test_an_error_reaches_the_writer_and_the_rest_is_left():
    read = []

    def load(place):
        read.append(place)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"), loaded_ahead(tensors(load, 40)) as waiting:
        waiting[0].load()
    assert len(read) <= 5
