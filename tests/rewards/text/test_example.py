"""The example runs to its end, and finds its way back after it."""

import subprocess
import sys

import pytest

for_text = "pip install 'mirepoix[text]'"
pytest.importorskip("trl", reason=for_text)
pytest.importorskip("vaderSentiment", reason=for_text)


@pytest.mark.slow
@pytest.mark.shared
def test_a_small_soup_of_movie_reviews(root, shared, tmp_path):
    path = shared / "data" / "text" / "movie_reviews.zip"
    if not path.is_file():
        pytest.skip("movie_reviews.zip is not here")
    command = [sys.executable, "-W", "error", root / "examples" / "movie_reviews.py", path]
    command += ["--out", tmp_path / "out", "--smoke"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "Linear mode connectivity" in done.stdout
        assert "difference of hypervolume" in done.stdout
        assert done.stdout.count("soup:") == 3
