"""Networks as a featurizer and a linear classifier, and the weights they start from."""

from mirepoix.models._branches import BranchNetwork, branch_weights, member_weights
from mirepoix.models._frozen import part_before
from mirepoix.models._multi_input import MultiInputNetwork, multi_input_weights
from mirepoix.models._network import Network, has_batch_norm
from mirepoix.models._pretrained import initial_weights, load_pretrained
from mirepoix.models._spec import NetworkSpec, input_size_hint

__all__ = [
    "BranchNetwork",
    "MultiInputNetwork",
    "Network",
    "NetworkSpec",
    "branch_weights",
    "has_batch_norm",
    "initial_weights",
    "input_size_hint",
    "load_pretrained",
    "member_weights",
    "multi_input_weights",
    "part_before",
]
