"""The model that the trainings of these tests begin with."""

from pathlib import Path

import pytest
from policy_fixtures import save_backbone


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone")
    save_backbone(path)
    return path
