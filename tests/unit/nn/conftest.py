"""What tests of the compiled library's functions share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparse_accel.nn.cpu_kernels import kernel
from sparse_accel.nn.dropout import use_compiled_dropout


@pytest.fixture
def compiled_dropout() -> Iterator[None]:
    """Dropout, and attention with dropout, are the library's until the end of the test."""
    if kernel() is None:
        pytest.skip("the library is not built")
    use_compiled_dropout()
    yield
    use_compiled_dropout(False)
