"""Requests say whom they are for, and those for another are refused on the loopback address."""

from __future__ import annotations

import socket

import pytest

from tests.server.http.connections import refused, wire
from torchport.server.http.host_rule import HostRule
from torchport.server.settings.settings import ServerSettings
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

REFUSED = {
    "none": (b"", 400),
    "two": (b"Host: localhost\r\nHost: localhost\r\n", 400),
    "two, of other letters": (b"Host: localhost\r\nhost: example.org\r\n", 400),
    "no name": (b"Host: a b\r\n", 400),
    "a URL": (b"Host: http://localhost/\r\n", 400),
    "a page's": (b"Host: rebound.example.org:8080\r\n", 403),
    "a page's that looks like ours": (b"Host: localhost.example.org\r\n", 403),
    "a machine's in the network": (b"Host: printer\r\n", 403),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("api", ["inference", "management"])
def test_a_request_for_nobody_or_another_is_refused(server: ServerProcess, case: str, api: str) -> None:
    lines, status = REFUSED[case]
    with wire(server, api) as raw:
        assert raw.send(b"GET /ping HTTP/1.1\r\n%b\r\n" % lines).answer().status == status
        assert raw.has_ended()


def test_older_protocols_need_no_host_and_have_no_other(server: ServerProcess) -> None:
    with wire(server) as raw:
        assert raw.send(b"GET /ping HTTP/1.0\r\n\r\n").answer().status == 200
    assert refused(server, b"GET /ping HTTP/1.0\r\nHost: example.org\r\n\r\n").status == 403


OURS = [
    "localhost",
    "LocalHost:8080",
    "localhost.:1",
    "a.localhost",
    "127.0.0.1:8080",
    "[::1]",
    "10.1.2.3",
    "127.1",
]
OURS += ["", socket.gethostname()]


@pytest.mark.parametrize("name", OURS)
def test_the_server_s_names(name: str) -> None:
    rule = HostRule.of(ServerSettings(), "127.0.0.1")
    assert [rule.status(name.encode()) for _ in range(2)] == [0, 0]


def test_names_can_be_added_or_all_allowed() -> None:
    settings = ServerSettings(allowed_hosts=("models.Example.org", ".internal"))
    for host in ("127.0.0.1", "0.0.0.0"):
        rule = HostRule.of(settings, host)
        for name in (b"models.example.org:80", b"a.b.internal", b"localhost"):
            assert rule.status(name) == 0
        for name in (b"example.org", b"x.models.example.org", b"internal", b"evil.internal.example.org"):
            assert rule.status(name) == 403
    assert HostRule.of(ServerSettings(allowed_hosts=("*",)), "::1").status(b"example.org") == 0


def test_an_address_that_strangers_reach_has_the_names_that_they_know() -> None:
    rule = HostRule.of(ServerSettings(), "0.0.0.0")
    assert (rule.status(b"example.org"), rule.status(b"a b")) == (0, 400)


def test_others_values_are_not_kept_for_ever() -> None:
    rule = HostRule.of(ServerSettings(), "127.0.0.1")
    assert all(rule.status(f"{number}.localhost".encode()) == 0 for number in range(1000))
    assert len(rule._fine) < 100
