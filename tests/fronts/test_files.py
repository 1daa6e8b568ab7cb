import base64
import io

import numpy as np
import pytest
from PIL import Image

from mirepoix.checkpoints import open_weights
from mirepoix.fronts._files import data_uri, input_file, input_folder, write_soup
from mirepoix.fronts._subject import Place, Silence
from mirepoix.store import Store
from mirepoix.types import InputError


def place(tmp_path, data=None):
    return Place(tmp_path / "recipes" / "own.toml", data, Store(tmp_path / "store"), Silence())


def test_inputs_lie_in_the_data_beside_the_recipe_or_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("recipes", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("x")
    (tmp_path / "here.txt").write_text("x")
    data = tmp_path / "data"
    for name in ("recipes.txt", "data.txt", "here.txt"):
        assert input_file("task.prompts", name, place(tmp_path, data)).name == name
    assert input_folder("task.model", "recipes", place(tmp_path, tmp_path)).name == "recipes"
    with pytest.raises(
        InputError, match=r"task.prompts: there is no file 'other.txt'; looked for .*other.txt"
    ):
        input_file("task.prompts", "other.txt", place(tmp_path, data))
    with pytest.raises(InputError, match="--data"):
        input_file("task.prompts", "data.txt", place(tmp_path))
    with pytest.raises(InputError, match="there is no folder"):
        input_folder("task.model", "here.txt", place(tmp_path))


def test_the_data_may_be_the_file_itself(tmp_path):
    path = tmp_path / "reviews.zip"
    path.write_bytes(b"x")
    assert input_file("task.corpus", "reviews.zip", place(tmp_path, path)) == path


def test_a_soup_is_written_and_an_image_fits_into_a_page(tmp_path):
    thetas = {"a": {"w": np.ones(2, np.float32)}, "b": {"w": np.zeros(2, np.float32)}}
    assert write_soup(thetas, {"b": 0.75, "a": 0.25}, tmp_path) == "chosen.safetensors"
    assert np.asarray(open_weights(tmp_path / "chosen.safetensors")["w"]).tolist() == [0.25, 0.25]
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    kind, _, content = data_uri(image).partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), image)
