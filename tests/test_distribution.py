from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.distribution import SECONDS, LongestFirst


class Node:
    """Stands in for a test process."""

    def __init__(self):
        self.sent, self.shutting_down = [], False
        self.gateway = SimpleNamespace(id="a process")

    def send_runtest_some(self, indices):
        self.sent += indices

    def shutdown(self):
        self.shutting_down = True


@pytest.fixture
def given(pytestconfig):
    """A function that gives tests to two processes; what each is sent at first."""

    def give(tests):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pytestconfig.option, "tx", ["2*popen"])
            scheduler = LongestFirst(pytestconfig)
        nodes = Node(), Node()
        for node in nodes:
            scheduler.add_node(node)
            scheduler.add_node_collection(node, tests)
        scheduler.schedule()
        return [[tests[index] for index in node.sent] for node in nodes]

    return give


def test_what_takes_longest_is_started_first_and_what_has_most_tests_next(given):
    few, many = (f"tests/test_{name}.py::test_" for name in ("few", "many"))
    longest = [f"{next(iter(SECONDS))}::test_{number}" for number in range(3)]
    tests = [*(few + str(n) for n in range(3)), *(many + str(n) for n in range(4)), *longest]
    one, other = given(tests)
    assert one[:3] == longest
    assert other[:4] == [many + str(n) for n in range(4)]


def test_a_module_and_a_folder_of_the_servers_tests_stay_whole(given):
    folder = [f"tests/server/grpc/test_{name}.py::test[a::b]" for name in "abc"]
    module = [f"tests/verify/defects/test_a.py::test_{number}" for number in range(4)]
    # The folder is in the table; the module is not, whatever its folder holds.
    assert given([*folder, *module]) == [folder, module]


def test_the_table_names_what_is_there():
    assert all((ROOT / name).exists() for name in SECONDS)
