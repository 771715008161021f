import pytest

# It holds what the tests of this folder assert.
pytest.register_assert_rewrite("tests.sdk.instrument.world")
