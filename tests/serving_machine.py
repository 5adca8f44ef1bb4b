"""A stand-in for the machine that tuning measures: servers with a set capacity, and a clock of their own."""

from contextlib import contextmanager
from dataclasses import replace

from torchport.errors import ServerError
from torchport.optimize.tune.candidates import Space
from torchport.optimize.tune.load import Measured
from torchport.optimize.tune.search import Effort, search
from torchport.optimize.tune.slo import Slo
from torchport.package.configuration import Configuration

DEFAULT = Configuration(backend="onnxruntime", precision="float32", threads=0, workers=1, batch_size=8)
TWO = replace(DEFAULT, threads=1, workers=2)
FOUR = replace(DEFAULT, threads=1, workers=4)
INT8 = replace(TWO, precision="int8")
ROUNDS = Effort(rounds=3, shapes=0)


def figures(per_second, p99, errors=0):
    latency = {"p50": p99 / 2, "p95": p99 * 0.9, "p99": p99}
    return Measured(per_second=per_second, latency_ms=latency, answers=100, errors=errors)


class Machine:
    """Stands in for servers and a clock: `most` answers a second by configuration, each after 10 ms at the
    least; `drift` are factors of the capacity at successive starts."""

    def __init__(self, most, *, broken=(), errors=(), drift=None, otherwise=100.0):
        self.most, self.broken, self.errors, self.drift = most, broken, errors, drift or {}
        self.otherwise, self.now, self.started = otherwise, 0.0, []

    def clock(self):
        return self.now

    @contextmanager
    def serve(self, configuration):
        self.now += 2.0
        if configuration in self.broken:
            raise ServerError("not enough memory")
        times = self.started.count(configuration)
        self.started.append(configuration)
        factors = self.drift.get(configuration, ())
        most = self.most.get(configuration, self.otherwise) * (factors[times] if times < len(factors) else 1)

        def ask(connections, seconds):
            self.now += seconds
            per_second = min(connections * 100.0, most)
            return figures(per_second, 1000 * connections / per_second, int(configuration in self.errors))

        yield ask


def space(*shapes, choosable=None, batch_sizes=(8,), cores=4):
    kinds = frozenset(choosable or {c.kind for c in (DEFAULT, *shapes)})
    return Space(
        default=DEFAULT, shapes=shapes, batch_sizes=batch_sizes, choosable=kinds, refused={}, cores=cores
    )


def searched(given, machine, *, slo=None, effort=ROUNDS, deadline=1e6):
    objective = Slo.parse(slo or [])
    return search(given, objective, machine.serve, deadline=deadline, effort=effort, clock=machine.clock)
