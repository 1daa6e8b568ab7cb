"""All vectors of multiples of 1 / steps that sum to one, by trying every combination of counts."""

import itertools


def lattice(size, steps):
    return [
        tuple(count / steps for count in counts)
        for counts in itertools.product(range(steps + 1), repeat=size)
        if sum(counts) == steps
    ]
