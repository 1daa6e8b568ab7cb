"""A rewarded soup of two language models: one fine-tuned to speak well of films, one to answer in five words.

Paper:    Rame et al. (2023), Rewarded soups; thesis, section 6.3.1: movie reviews with two rewards, with LLaMA-7B.
Command:  python examples/movie_reviews.py movie_reviews.zip --out OUT
Time:     five minutes on one core; with --smoke, half a minute. Killed and started again, it continues.
Expected: (sentiment, length) of the start (-0.17, 0.64), of the experts (-0.04, 0.51) and (-0.29, 0.84), of the soup of
          halves (-0.18, 0.72), of MORL (-0.23, 0.77), which lies on the front of the soups. No soup is below the chord
          of the experts' rewards. Hypothesis 6.1 holds within noise: -0.028 of sentiment at most, tolerance 0.044.
          With --preset far soups earn clearly less than their experts on average, and MORL dominates two of them.

Everything is made here: a tokenizer and a language model of 0.4 million parameters from nothing, trained on lines of
reviews; then two LoRA adapters by reinforcement learning from that one start, and a third for the sum of the rewards.
The corpus is the polarity data set of Pang and Lee as NLTK packs it (corpora/movie_reviews.zip).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mirepoix import strategies
from mirepoix.rewards import compare_fronts, evaluate_policies, reward_connectivity, simplex_lattice, sweep
from mirepoix.rewards.text import (
    FAR,
    NEAR,
    TextEvaluation,
    TextModel,
    TextTask,
    TextTrainer,
    automated_readability,
    distinct,
    length_target,
    movie_reviews,
    sentiment,
    soup,
    tiny_start,
    vader,
)
from mirepoix.store import Store

TRAINED = ("sentiment", "length")
TINY: dict[str, Any] = {"steps": 60, "words": 512, "width": 32, "layers": 1}
SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16, "completions": 4, "samples": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="movie_reviews.zip")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, experts and the front")
    parser.add_argument("--preset", choices=("near", "far"), default="near", help="how far experts go")
    parser.add_argument("--prompts", type=int, default=1000, help="for evaluation, from test reviews")
    parser.add_argument("--smoke", action="store_true", help="a smaller network and shorter trainings")
    options = parser.parse_args()
    began = time.perf_counter()

    def passed(what: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {what}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    store = Store(options.out / "store")
    run = NEAR if options.preset == "near" else FAR
    if options.smoke:
        run, options.prompts = run.with_(**SHORT), min(options.prompts, 64)

    corpus = movie_reviews(options.corpus)
    start = tiny_start(
        corpus, options.out / ("start-smoke" if options.smoke else "start"), **(TINY if options.smoke else {})
    )
    passed(f"start {start.fingerprint[:12]}")
    trained_on = [sentiment(corpus), length_target()]
    prompts = corpus.prompts("train", 2000)
    task = TextTask(prompts.texts, trained_on)

    def train_of(reward):
        return TextTrainer(start=start, reward=reward, store=store)

    experts = {}
    for name in TRAINED:
        experts[name] = train_of({name: 1.0})(start.weights, task, run)
        passed(f"expert for {name}, trained in {experts[name].record['seconds']:.0f} s")
    preference = dict.fromkeys(TRAINED, 0.5)
    (compromise,) = strategies.morl(train_of, start.weights, task, run, [preference])
    passed(f"MORL, trained in {compromise.record['seconds']:.0f} s")

    held_out = corpus.prompts("test", options.prompts)
    model = TextModel(start)
    # Rewards that nobody was trained on show what else has changed.
    rewards = [*trained_on, distinct(2), automated_readability(), vader()]
    evaluate = TextEvaluation(model, held_out.texts, rewards, temperature=1.0)
    kept = {"evaluation": evaluate.digest, "cache": options.out / "front"}
    front = sweep(
        [expert.expert(name) for name, expert in experts.items()],
        simplex_lattice(TRAINED, 10),
        evaluate,
        label=f"rewarded soups, {options.preset}",
        **kept,
    )
    morl = evaluate_policies([compromise], [preference], evaluate, **kept)
    passed(f"{len(front)} soups and MORL, {model.tokens_per_second:.0f} tokens per second")

    before = {name: values.mean() for name, values in evaluate(start.weights).items()}
    print("\nstart:", ", ".join(f"{name} {value:.3f}" for name, value in before.items()))
    print(front)
    print(morl)
    print()
    print(reward_connectivity(front).verdict())
    print()
    print(compare_fronts(front, morl))
    front.save(options.out / f"front-{options.preset}.json")

    half = soup(experts, preference)
    ensemble = evaluate.ensemble(experts, preference)
    print(
        "\nfunctional ensemble:",
        ", ".join(f"{name} {values.mean():.3f}" for name, values in ensemble.items()),
    )
    factor = soup(experts, preference, lora_mode="factor")
    error = 100 * factor.factor_report().lost_energy ** 0.5
    print(f"averaging the factors of the adapters instead would be wrong by {error:.0f} % of the change")
    print("\nSamples")
    said = {
        "start": evaluate.completions(start.weights),
        **{name: evaluate.completions(expert) for name, expert in experts.items()},
        "soup": evaluate.completions(half),
        "MORL": evaluate.completions(compromise),
    }
    for place in range(3):
        print(f"{held_out.texts[place]} ...")
        for name, texts in said.items():
            print(f"    {name:>10}: {texts[place].strip()}")
    passed("done")


if __name__ == "__main__":
    main()
