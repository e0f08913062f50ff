from tests.scenario.test_system import *  # noqa
from tests.scenario.test_system import EXAMPLES, run, PASSED
import pytest

test_the_system_bills_what_the_kernel_says = None


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.scenario")), ids=lambda p: p.stem)
def test_all(stack, running, path):
    result = run(path, system=running)
    assert result.diff == ""
    assert result.status == PASSED
