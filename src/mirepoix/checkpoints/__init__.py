"""Files of weights: open any of them lazily and safely, write them whole or not at all.

Nothing here imports torch until a torch tensor or a torch file is asked for.
"""

from mirepoix.checkpoints._atomic import atomic_path, write_atomically
from mirepoix.checkpoints._checkpoint import Checkpoint
from mirepoix.checkpoints._digest import file_digest, fingerprint
from mirepoix.checkpoints._json import read_json, write_json
from mirepoix.checkpoints._open import open_weights
from mirepoix.checkpoints._quick import quick_digest
from mirepoix.checkpoints._stream import WeightsWriter, parse_size
from mirepoix.checkpoints._write import write_weights

__all__ = [
    "Checkpoint",
    "WeightsWriter",
    "atomic_path",
    "file_digest",
    "fingerprint",
    "open_weights",
    "parse_size",
    "quick_digest",
    "read_json",
    "write_atomically",
    "write_json",
    "write_weights",
]
