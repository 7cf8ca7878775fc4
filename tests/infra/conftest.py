"""A simulated AWS for a module's tests. Each makes stacks of a name of its own, and so meets none of the others."""

from collections.abc import Callable, Iterator

import pytest

from infra.aws import cloud, stacks
from tests.simulator import make_network, run_aws


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    with run_aws() as address:
        yield address


@pytest.fixture(scope="module")
def make_stacks(aws: str) -> Callable[[str], dict[str, str]]:  # noqa: ARG001
    """Makes what evergreen needs under a name, by the command; returns the outputs of both stacks."""

    def make(name: str) -> dict[str, str]:
        vpc, subnets = make_network()
        cloud.up(name=name, vpc=vpc, subnets=tuple(subnets), budget=50, budget_email="who@example.org")
        return read_outputs(name)

    return make


def read_outputs(name: str) -> dict[str, str]:
    both = [stacks.read_stack(f"{name}-{part}") for part in (cloud.STATE, cloud.SERVICES)]
    return {key: value for stack in both if stack for key, value in stack.outputs.items()}
