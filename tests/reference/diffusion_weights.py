"""The weights of a reward-weighted loss, and that loss, by loops over numbers."""

import math


def mean_and_deviation(values):
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def scalar_rewards(rewards, coefficients):
    """One number per image: the sum of the rewards, each standardised, with their coefficients."""
    images = len(next(iter(rewards.values())))
    scores = [0.0] * images
    for name, coefficient in coefficients.items():
        mean, deviation = mean_and_deviation(rewards[name])
        for i in range(images):
            scores[i] += coefficient * (rewards[name][i] - mean) / deviation
    return scores


def kept_and_weights(scores, kept, clip):
    """The images that are kept, in their order, and what each weighs."""
    count = math.ceil(kept * len(scores))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen = sorted(order[:count])
    mean, deviation = mean_and_deviation([scores[i] for i in chosen])
    raw = [min(math.exp((scores[i] - mean) / deviation), clip) for i in chosen]
    return chosen, [weight / (math.fsum(raw) / len(raw)) for weight in raw]


def signal(time, times=200):
    """The product of 1 - beta up to a time, for the cosine schedule of Nichol and Dhariwal (2021), equation 17."""

    def f(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    product = 1.0
    for i in range(time + 1):
        product *= 1 - min(1 - f((i + 1) / times) / f(i / times), 0.999)
    return product


def noised(image, noise, time):
    """An image at a time, pixel by pixel."""
    share = signal(time)
    return [math.sqrt(share) * x + math.sqrt(1 - share) * e for x, e in zip(image, noise, strict=True)]


def weighted_loss(weights, noises, predictions):
    """The mean over images and pixels of the weighted squared errors."""
    total = 0.0
    for weight, noise, prediction in zip(weights, noises, predictions, strict=True):
        total += weight * math.fsum((e - p) ** 2 for e, p in zip(noise, prediction, strict=True)) / len(noise)
    return total / len(weights)
