"""numpy's scalar argsort, as positions in ascending order: the order among equal values is part of the result.

The official LaMP code ranks with `numpy.argsort` of numpy 1.24.2, whose introsort is not stable, and newer numpy sorts
doubles with vector instructions that leave ties in yet another order. `argsort` gives the order of 1.24.2 on x86 Linux.
Where C's long double is wider than double, numpy still sorts it with the scalar code, so the cast does it at no cost;
elsewhere the same algorithm runs in Python (about 0.3 ms for 200 values).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_INSERTION_SORT_AT_MOST = 16
_LONG_DOUBLE_IS_WIDER = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


def argsort(values: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Give the positions of `values` (N,) in ascending order, ties as numpy 1.24.2 left them on x86 Linux."""
    if _LONG_DOUBLE_IS_WIDER:
        return np.argsort(values.astype(np.longdouble))
    return np.array(introsort(values.tolist()), np.intp)


def introsort(values: Sequence[float]) -> list[int]:
    """Give what `argsort` gives, without numpy: quicksort around the median of three, insertion sort for runs of at
    most 16, heapsort once 2·log2(N) levels are used up. Values must not be nan."""
    order = list(range(len(values)))
    todo = [(0, len(values) - 1, 2 * (len(values).bit_length() - 1))]
    while todo:
        low, high, depth = todo.pop()
        if depth < 0:
            _heapsort(values, order, low, high)
            continue
        while high - low >= _INSERTION_SORT_AT_MOST:
            cut = _partition(values, order, low, high)
            depth -= 1
            if cut - low < high - cut:
                todo.append((cut + 1, high, depth))
                high = cut - 1
            else:
                todo.append((low, cut - 1, depth))
                low = cut + 1
        _insertion_sort(values, order, low, high)
    return order


def _partition(values: Sequence[float], order: list[int], low: int, high: int) -> int:
    """Split order[low..high] around the median of its first, middle and last value; give the pivot's place."""
    middle = low + ((high - low) >> 1)
    for left, right in ((low, middle), (middle, high), (low, middle)):
        if values[order[right]] < values[order[left]]:
            order[left], order[right] = order[right], order[left]
    pivot = values[order[middle]]
    up, down = low, high - 1
    order[middle], order[down] = order[down], order[middle]
    while True:
        up += 1
        while values[order[up]] < pivot:
            up += 1
        down -= 1
        while pivot < values[order[down]]:
            down -= 1
        if up >= down:
            break
        order[up], order[down] = order[down], order[up]
    order[up], order[high - 1] = order[high - 1], order[up]
    return up


def _insertion_sort(values: Sequence[float], order: list[int], low: int, high: int) -> None:
    for first_unsorted in range(low + 1, high + 1):
        place, moving = first_unsorted, order[first_unsorted]
        while place > low and values[moving] < values[order[place - 1]]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = moving


def _heapsort(values: Sequence[float], order: list[int], low: int, high: int) -> None:
    heap = order[low : high + 1]

    def sift_down(parent: int, size: int, moving: int) -> None:
        while (child := 2 * parent + 1) < size:
            if child + 1 < size and values[heap[child]] < values[heap[child + 1]]:
                child += 1
            if not values[moving] < values[heap[child]]:
                break
            heap[parent] = heap[child]
            parent = child
        heap[parent] = moving

    for parent in range(len(heap) // 2 - 1, -1, -1):
        sift_down(parent, len(heap), heap[parent])
    for size in range(len(heap) - 1, 0, -1):
        moving, heap[size] = heap[size], heap[0]
        sift_down(0, size, moving)
    order[low : high + 1] = heap
