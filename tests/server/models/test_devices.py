"""Which device a worker gets. No worker is started: there need not be any device."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.server.models.unpacked_model import unpacked_model
from torchport.server.dispatch.host import SharedHosts
from torchport.server.dispatch.worker import State
from torchport.server.models.settings import ModelSettings
from torchport.server.models.statistics import ModelStatistics
from torchport.server.models.version import ModelVersion
from torchport.server.models.worker_spec import WorkerDefaults

MODEL = unpacked_model()


def versions(count, **settings):
    """Versions of a server with two devices, each of which sees the workers of all."""
    made = []
    for _ in range(count):
        made.append(
            ModelVersion(
                MODEL,
                ModelSettings(**settings),
                ModelStatistics(),
                SharedHosts(),
                WorkerDefaults(gpus=2),
                taken_gpus=lambda: [gpu for version in made for gpu in version.gpus],
            )
        )
    return made


def start_worker(version):
    """As the pool does, but for the process."""
    spec = version._worker_spec(1)
    worker = SimpleNamespace(spec=spec, state=State.READY)
    version.pool.workers.append(worker)
    return worker


def run(test):
    async def inside():
        test()

    asyncio.run(inside())


def test_workers_are_spread_over_the_devices_and_keep_them():
    def test():
        first, second = versions(2)
        workers = [start_worker(v) for v in (first, second, first, second)]
        assert [w.spec.load.gpu for w in workers] == [0, 1, 0, 1]
        workers[1].state = State.GONE
        for _ in range(3):
            first._worker_spec(1)  # Looking at what a worker would be takes no device.
        assert start_worker(second).spec.load.gpu == 1

    run(test)


@pytest.mark.parametrize(
    ("settings", "gpus"), [({"device_type": "cpu"}, [None, None]), ({"device_ids": (1,)}, [1, 1])]
)
def test_the_model_config_has_its_say(settings, gpus):
    def test():
        (version,) = versions(1, **settings)
        assert [start_worker(version).spec.load.gpu for _ in range(2)] == gpus

    run(test)
