"""Each reader either reads a damaged file or says clearly what is wrong with it."""

import pytest
from damage import damaged
from fuzzed_readers import READERS, fresh
from hypothesis import HealthCheck, given, settings

EXAMPLES = 25
"""Of each reader; ``python tests/fuzz --minutes 10`` looks for longer."""


@pytest.mark.parametrize("name", READERS)
def test_the_valid_file_is_read(name, tmp_path):
    reader, folder = fresh(name, tmp_path)
    reader.read(folder)


@pytest.mark.parametrize("name", READERS)
def test_damage_is_named(name, tmp_path):
    reader, folder = fresh(name, tmp_path)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(damaged(reader.files[reader.target], reader.form))
    def attack(content):
        reader.attack(folder, content)

    attack()
