"""Normalised rewards, value by value."""

import math


def init_worst(value, models, initial):
    return (value - min(models)) / (initial - min(models))


def minmax(value, models, margin=0.0):
    extent = max(models) - min(models)
    low, high = min(models) - margin * extent, max(models) + margin * extent
    return (value - low) / (high - low)


def zscore(value, samples):
    mean = sum(samples) / len(samples)
    return (value - mean) / math.sqrt(sum((s - mean) ** 2 for s in samples) / len(samples))


def rank(value, models):
    """The mean of the places that a value may take when equal models are put in any order."""
    below = sum(model < value for model in models)
    equal = sum(model == value for model in models)
    places = [below + i + 1 for i in range(equal)]
    return sum(places) / equal if equal else below + 0.5
