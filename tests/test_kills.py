"""Processes that are killed at random moments leave no incomplete file, and nothing that blocks the next start."""

import random

import pytest
from kills import kill_many


@pytest.mark.slow
def test_50_kills_at_random_moments(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    print(kill_many(tmp_path, 50, seed))
