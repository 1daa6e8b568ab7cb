"""What a front of rewarded soups costs, against the trainings and the reloads that it saves.

Four parts, each a table. Ratios are medians of the ratios turn by turn, with the smallest and the largest beside them.

``cost``
    A front of 11 points for two rewards, on HalfCheetah: 2 experts and 11 soups, against MORL with one training for
    each of the 11 points. All trainings and evaluations are really made, with the same steps each.
``reload``
    11 interpolations of two LoRA experts of a Llama of 58 million parameters (float32), each made ready to generate:
    written in place into the one network (mirepoix), against a merged checkpoint that is written and loaded again for
    each, and against PEFT, where base and adapters are loaded again, concatenated with weights and merged into the
    base. Beside it what generating 64 completions of 16 tokens takes.
``adapters``
    Two adapters of the size of a model of 7 billion parameters (32 layers of width 4096, rank 16 on four projections
    each) into one, on disk, against `cat` of the same bytes. The wish is less than a second.
``front``
    Mask, hypervolume, area and 11-point connectivity on 10,000 points. The wish is less than a second each.

    python benchmarks/rewards.py                             # a quarter of an hour on 2 cores with nothing else running
    python benchmarks/rewards.py --part reload --repeats 5 --json result.json

Needs ``pip install 'mirepoix[text,control]'`` for the parts ``cost`` and ``reload``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 11
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass
class Row:
    what: str
    seconds: list[float]
    base: list[float] = field(default_factory=list)
    note: str = ""

    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.seconds, self.base, strict=True)] if self.base else []

    def markdown(self) -> str:
        ratios = self.ratios()
        cells = [self.what, f"{statistics.median(self.seconds):.3f}"]
        cells.append(f"{min(self.seconds):.3f}-{max(self.seconds):.3f}")
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        cells.append(f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "")
        return "| " + " | ".join([*cells, str(len(self.seconds)), self.note]) + " |"


HEADER = """| what | seconds | min-max | ratio (median) | min-max | turns |  |
| --- | --: | --: | --: | --: | --: | --- |"""


def timed(make: Callable[[], Any]) -> float:
    started = time.perf_counter()
    make()
    return time.perf_counter() - started


def cost(options: argparse.Namespace) -> list[Row]:
    """Every training and every evaluation of both, in one process each after another."""
    from mirepoix.rewards import simplex_lattice, sweep
    from mirepoix.rewards.control import (
        Locomotion,
        PolicyEvaluation,
        PPORun,
        PPOTrainer,
        initial_policy,
        policy_expert,
    )

    steps = 2_000 if options.quick else options.steps
    task = Locomotion(episode_steps=100 if options.quick else None)
    size: dict[str, Any] = {"rollout_steps": 64, "batch_size": 64} if options.quick else {}
    start = PPOTrainer(reward={"risky": 0.9, "cautious": 0.1}, gather=True)(
        initial_policy(task), task, PPORun(steps=steps, learning_rate=5e-4, **size)
    )
    run = PPORun(steps=steps, **size)
    points = simplex_lattice(list(task.rewards), 2 if options.quick else POINTS - 1)
    evaluate = PolicyEvaluation(task, start, seeds=range(2 if options.quick else 6))
    trained, evaluated = [], []
    policies = []
    for preference in points:
        trainer = PPOTrainer(reward=preference)
        began = time.perf_counter()
        policies.append(trainer(start, task, run))
        trained.append(time.perf_counter() - began)
    for policy in policies:
        evaluated.append(timed(lambda policy=policy: evaluate(policy)))
    experts = [
        policy_expert(name, policies[next(i for i, point in enumerate(points) if point[name] == 1)], start)
        for name in task.rewards
    ]
    swept = timed(lambda: sweep(experts, points, evaluate))
    evaluate.close()
    # An expert is the MORL run with one reward alone, the same training; it was made once and counts for both.
    alone = [seconds for seconds, point in zip(trained, points, strict=True) if 1.0 in point.values()]
    morl = sum(trained) + sum(evaluated)
    count = len(points)
    return [
        Row(f"soups: {len(alone)} trainings", [sum(alone)], [sum(trained)], f"{steps:,} steps each"),
        Row(f"soups: {count} interpolated and evaluated", [swept], [sum(evaluated)]),
        Row(f"soups: front of {count} points", [sum(alone) + swept], [morl]),
        Row(f"MORL: {count} trainings", [sum(trained)]),
        Row(f"MORL: {count} evaluated", [sum(evaluated)]),
        Row(f"MORL: front of {count} points", [morl]),
    ]


def make_model(folder: Path, quick: bool) -> None:
    """A Llama with random weights and a byte-level tokenizer, as a folder of transformers."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    raw = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<eos>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    width, layers, words = (32, 2, 300) if quick else (512, 8, 32_000)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_adapters(base: Path, folders: Sequence[Path]) -> None:
    """Adapters as a training would leave them: with changes."""
    import peft
    import torch
    import transformers

    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
        config = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01)
        adapted.save_pretrained(folder)


def reload(options: argparse.Namespace) -> list[Row]:
    """Make the network ready for each of 11 points, in four ways, then generate."""
    import peft
    import torch
    import transformers

    from mirepoix.checkpoints import open_weights, read_json
    from mirepoix.merging import LoraAdapter, merge_into_base
    from mirepoix.rewards.text import AdaptedWeights, TextModel, TextStart, soup

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        root = Path(place)
        base, folders = root / "base", [root / "a", root / "b"]
        make_model(base, options.quick)
        make_adapters(base, folders)
        start = TextStart(base)
        adapters = {
            folder.name: LoraAdapter(
                read_json(folder / "adapter_config.json"),
                open_weights(folder / "adapter_model.safetensors"),
                folder.name,
            )
            for folder in folders
        }
        experts = {
            name: AdaptedWeights(start.weights, {name: adapter}, record={"start": start.identity})
            for name, adapter in adapters.items()
        }
        shares = [i / (POINTS - 1) for i in range(POINTS)]
        model = TextModel(start)
        prompts = [f"prompt number {number}" for number in range(4 if options.quick else 64)]

        def in_place(share: float) -> Any:
            model.write_(soup(experts, {"a": share, "b": 1 - share}))
            return model.network

        def merged(share: float) -> Any:
            folder = root / "merged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            merge_into_base(
                start.weights,
                adapters,
                folder / "model.safetensors",
                {"a": share, "b": 1 - share},
                strict=False,
                same_base=False,
            )
            return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)

        def by_peft(share: float) -> Any:
            network = transformers.AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
            adapted = peft.PeftModel.from_pretrained(network, folders[0], adapter_name="a")
            adapted.load_adapter(folders[1], adapter_name="b")
            adapted.add_weighted_adapter(["a", "b"], [share, 1 - share], "soup", combination_type="cat")
            adapted.set_adapter("soup")
            return adapted.merge_and_unload()

        # All three give the same network, which is checked once, at a point between.
        state = {name: tensor.clone() for name, tensor in in_place(0.3).state_dict().items()}
        for other in (merged(0.3), by_peft(0.3)):
            for name, tensor in other.state_dict().items():
                error = float((tensor - state[name]).abs().max())
                assert error < 1e-5, f"{name}: differs by {error}"
        ways = {"written in place": in_place, "merged, written, loaded": merged, "PEFT, all loaded": by_peft}
        found: dict[str, list[float]] = {name: [] for name in ways}
        generated = []
        for _ in range(options.repeats):
            for name, way in ways.items():
                found[name].append(timed(lambda way=way: [way(share) for share in shares]))
            with torch.inference_mode():
                once = timed(lambda: model.complete(prompts, max_tokens=16))
            generated.append(POINTS * once)
        ours = found["written in place"]
        rows = [Row(f"{POINTS} points {name}", seconds, ours) for name, seconds in found.items()]
        words = f"{len(prompts)} completions of 16 tokens each"
        rows.append(Row(f"{POINTS} points generated", generated, ours, words))
        size = sum(tensor.nbytes for tensor in state.values()) / 1e6
        rows[0].note = f"{size:.0f} MB of weights, rank 16 on all layers"
        return rows


def adapters(options: argparse.Namespace) -> list[Row]:
    """Two files of factors into one."""
    from safetensors.numpy import save_file

    from mirepoix.merging import merge_adapters

    width, layers, rank = (64, 2, 4) if options.quick else (4096, 32, 16)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        root, folders = Path(place), []
        for name in ("a", "b"):
            folder = root / name
            folder.mkdir()
            config = {
                "peft_type": "LORA",
                "base_model_name_or_path": "base",
                "r": rank,
                "lora_alpha": rank,
                "target_modules": list(PROJECTIONS),
                "task_type": "CAUSAL_LM",
            }
            (folder / "adapter_config.json").write_text(json.dumps(config))
            tensors = {}
            for layer in range(layers):
                for projection in PROJECTIONS:
                    key = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
                    tensors[f"{key}.lora_A.weight"] = random.standard_normal((rank, width)).astype(np.float32)
                    tensors[f"{key}.lora_B.weight"] = random.standard_normal((width, rank)).astype(np.float32)
            save_file(tensors, folder / "adapter_model.safetensors")
            folders.append(folder)
        files = [str(folder / "adapter_model.safetensors") for folder in folders]
        floor, ours = [], []
        for _ in range(options.repeats):
            with open(root / "both", "wb") as out:
                floor.append(timed(lambda out=out: subprocess.run(["cat", *files], stdout=out, check=True)))
            ours.append(
                timed(
                    lambda: merge_adapters(
                        dict(zip("ab", folders, strict=True)),
                        root / "soup",
                        {"a": 0.3, "b": 0.7},
                        overwrite=True,
                    )
                )
            )
        size = Path(files[0]).stat().st_size / 1e6
        return [
            Row("`cat` of both", floor, note=f"2 x {size:.0f} MB"),
            Row("exact soup, as one adapter", ours, floor, "wish: below 1 s"),
        ]


def front(options: argparse.Namespace) -> list[Row]:
    """The numbers of a front."""
    from mirepoix.rewards import (
        RewardFront,
        area_over_front,
        hypervolume,
        nondominated_probability,
        pareto_mask,
        reward_connectivity,
    )

    random = np.random.default_rng(0)
    count = 100 if options.quick else 10_000
    angle = random.uniform(0, np.pi / 2, count)
    two = np.column_stack([np.cos(angle), np.sin(angle)])
    three = np.abs(random.standard_normal((count, 3)))
    three /= np.linalg.norm(three, axis=1, keepdims=True)
    shares = [i / (POINTS - 1) for i in range(POINTS)]
    values = random.standard_normal((POINTS, 2, count))
    eleven = RewardFront(("a", "b"), ("a", "b"), tuple({"a": s, "b": 1 - s} for s in shares), values=values)
    works: Mapping[str, Callable[[], Any]] = {
        f"mask, {count:,} points, 2 rewards, all undominated": lambda: pareto_mask(two),
        f"mask, {count:,} points, 3 rewards, all undominated": lambda: pareto_mask(three),
        f"hypervolume, {count:,} points, 2 rewards": lambda: hypervolume(two, (0, 0)),
        f"hypervolume, {count:,} points, 3 rewards": lambda: hypervolume(three, (0, 0, 0)),
        f"area over the front, {count:,} points": lambda: area_over_front(two, scale="minmax"),
        f"connectivity, {POINTS} points, {count:,} items, 1,000 draws": lambda: reward_connectivity(eleven),
        f"probabilities, {POINTS} points, {count:,} items, 1,000 draws": lambda: nondominated_probability(
            values
        ),
    }
    return [
        Row(name, [timed(work) for _ in range(options.repeats)], note="wish: below 1 s")
        for name, work in works.items()
    ]


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Row]]] = {
    "cost": cost,
    "reload": reload,
    "adapters": adapters,
    "front": front,
}


def machine() -> dict[str, str]:
    names = ("mirepoix", "torch", "numpy", "transformers", "peft", "moocore")
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of each measurement but that of cost")
    parser.add_argument("--steps", type=int, default=20_480, help="of each training in the part cost")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    started, load = time.monotonic(), os.getloadavg()[0]
    tables = {}
    for part in options.part:
        print(part, file=sys.stderr)
        tables[part] = PARTS[part](options)
    facts = machine()
    command = " ".join(["python", *sys.argv])
    seconds = time.monotonic() - started
    print(f"`{command}`: {seconds:.0f} s; load before it: {load:.1f}, after: {os.getloadavg()[0]:.1f}.\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for part, rows in tables.items():
        print(f"\n**{part}**\n")
        print("\n".join([HEADER, *(row.markdown() for row in rows)]))
    if options.json:
        result = {
            "command": command,
            "machine": facts,
            "load": load,
            "tables": {
                part: [{**asdict(row), "ratios": row.ratios()} for row in rows]
                for part, rows in tables.items()
            },
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
