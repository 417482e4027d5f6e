"""The file that the commands name."""

import pytest


@pytest.fixture(autouse=True)
def config_file(tmp_path):
    """The file that CONFIG names: what starts a run elsewhere looks for it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "distill.py").write_text("")
