import json
import shutil

import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.text import TextStart
from mirepoix.types import InputError


def test_the_identity_names_weights_tokenizer_and_settings(start, tmp_path):
    copy = shutil.copytree(start.folder, tmp_path / "copy")
    assert TextStart(copy).identity == start.identity
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "transformers_version": "0"}))
    assert TextStart(copy).identity == start.identity
    (copy / "generation_config.json").write_text(json.dumps({**settings, "temperature": 2.0}))
    other = TextStart(copy).identity
    assert [part for part in other if other[part] != start.identity[part]] == ["generation"]


def test_the_tokenizer_pads_on_the_left_and_ends(start):
    assert start.tokenizer.padding_side == "left"
    assert start.end_tokens == [start.tokenizer.eos_token_id]
    assert not start.model().training


def test_what_is_no_start_is_refused(start, tmp_path):
    with pytest.raises(InputError, match=r"got no config\.json"):
        TextStart(tmp_path)
    copy = shutil.copytree(start.folder, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="has no tokenizer that can be read"):
        TextStart(copy).tokenizer  # noqa: B018
