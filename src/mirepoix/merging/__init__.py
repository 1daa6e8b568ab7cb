"""Combining weights: one rule per file, one engine for all, and what an average needs afterwards.

The names are imported when they are first used: a soup of files takes less time than all of these would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.merging._average import Average
    from mirepoix.merging._batch_norm import Recommendation, recommend_batch_norm, reestimate_batch_norm
    from mirepoix.merging._check import Check, check_files
    from mirepoix.merging._dare import Dare
    from mirepoix.merging._ema import EMA, ExponentialAverage
    from mirepoix.merging._findings import Fault
    from mirepoix.merging._fisher import Fisher, fisher_diagonal
    from mirepoix.merging._interpolation import Interpolation
    from mirepoix.merging._lora import LoraLayerReport, LoraReport, merge_adapters
    from mirepoix.merging._lora_adapter import LoraAdapter, LoraLayer, adapter_delta, open_adapter
    from mirepoix.merging._lora_dense import merge_into_base
    from mirepoix.merging._merge import MergeReport, merge, merge_files
    from mirepoix.merging._mergekit import MergekitRecipe, read_mergekit
    from mirepoix.merging._model_stock import ModelStock
    from mirepoix.merging._permutation import Alignment, activation_costs, align, permute
    from mirepoix.merging._permutation_spec import Act, PermutationGroup, PermutationSpec, permutation_spec
    from mirepoix.merging._regmean import RegMean, gram_matrices
    from mirepoix.merging._repair import repair
    from mirepoix.merging._rule import Line, LinearRule, Piece, Rule
    from mirepoix.merging._running_mean import RunningMean
    from mirepoix.merging._slerp import Slerp
    from mirepoix.merging._task_arithmetic import TaskArithmetic
    from mirepoix.merging._ties import Ties

__all__ = [
    "EMA",
    "Act",
    "Alignment",
    "Average",
    "Check",
    "Dare",
    "ExponentialAverage",
    "Fault",
    "Fisher",
    "Interpolation",
    "Line",
    "LinearRule",
    "LoraAdapter",
    "LoraLayer",
    "LoraLayerReport",
    "LoraReport",
    "MergeReport",
    "MergekitRecipe",
    "ModelStock",
    "PermutationGroup",
    "PermutationSpec",
    "Piece",
    "Recommendation",
    "RegMean",
    "Rule",
    "RunningMean",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "activation_costs",
    "adapter_delta",
    "align",
    "check_files",
    "fisher_diagonal",
    "gram_matrices",
    "merge",
    "merge_adapters",
    "merge_files",
    "merge_into_base",
    "open_adapter",
    "permutation_spec",
    "permute",
    "read_mergekit",
    "recommend_batch_norm",
    "reestimate_batch_norm",
    "repair",
]

_PLACES = {
    "Average": "_average",
    "Recommendation": "_batch_norm",
    "recommend_batch_norm": "_batch_norm",
    "reestimate_batch_norm": "_batch_norm",
    "Check": "_check",
    "check_files": "_check",
    "Dare": "_dare",
    "EMA": "_ema",
    "ExponentialAverage": "_ema",
    "Fault": "_findings",
    "Fisher": "_fisher",
    "fisher_diagonal": "_fisher",
    "Interpolation": "_interpolation",
    "LoraLayerReport": "_lora",
    "LoraReport": "_lora",
    "merge_adapters": "_lora",
    "LoraAdapter": "_lora_adapter",
    "LoraLayer": "_lora_adapter",
    "adapter_delta": "_lora_adapter",
    "open_adapter": "_lora_adapter",
    "merge_into_base": "_lora_dense",
    "MergeReport": "_merge",
    "merge": "_merge",
    "merge_files": "_merge",
    "MergekitRecipe": "_mergekit",
    "read_mergekit": "_mergekit",
    "ModelStock": "_model_stock",
    "Alignment": "_permutation",
    "activation_costs": "_permutation",
    "align": "_permutation",
    "permute": "_permutation",
    "Act": "_permutation_spec",
    "PermutationGroup": "_permutation_spec",
    "PermutationSpec": "_permutation_spec",
    "permutation_spec": "_permutation_spec",
    "RegMean": "_regmean",
    "gram_matrices": "_regmean",
    "repair": "_repair",
    "Line": "_rule",
    "LinearRule": "_rule",
    "Piece": "_rule",
    "Rule": "_rule",
    "RunningMean": "_running_mean",
    "Slerp": "_slerp",
    "TaskArithmetic": "_task_arithmetic",
    "Ties": "_ties",
}

__getattr__, __dir__ = contents(__name__, _PLACES)
