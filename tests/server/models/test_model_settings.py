"""How an archive's config, what registering it said, and the server's defaults add up."""

import pytest

from torchport.server.errors import ArchiveRefused
from torchport.server.models.settings import _TORCHSERVE_KEYS, ModelSettings, model_settings
from torchport.server.settings.settings import ServerSettings

SERVER = ServerSettings(default_response_timeout=33, job_queue_size=44)


def test_the_servers_defaults():
    settings = model_settings({}, SERVER)
    assert settings == ModelSettings(response_timeout=33, job_queue_size=44)


def test_the_archive_wins_over_the_request_but_for_batches():
    config = {"batchSize": 8, "maxBatchDelay": 50, "responseTimeout": 20, "minWorkers": 2, "maxWorkers": 3}
    asked = {"batch_size": 4, "max_batch_delay": None, "response_timeout": 99, "min_workers": 9}
    settings = model_settings(config, SERVER, asked=asked)
    assert (settings.batch_size, settings.max_batch_delay) == (4, 50)
    assert (settings.response_timeout, settings.min_workers, settings.max_workers) == (20, 2, 3)


def test_the_servers_word_on_a_model_is_between_them():
    known = {"responseTimeout": 55, "batchSize": 2}
    assert model_settings({}, SERVER, known=known).response_timeout == 55
    assert model_settings({"batchSize": 3}, SERVER, known=known).batch_size == 3


def test_more_workers_at_least_than_at_most():
    assert model_settings({"minWorkers": 4, "maxWorkers": 1}, SERVER).max_workers == 4


@pytest.mark.parametrize("key", sorted(set(_TORCHSERVE_KEYS) - {"deviceType", "deviceIds"}))
@pytest.mark.parametrize("number", ["3", "3.0", " 3 ", 3.0], ids=repr)
def test_whole_numbers_may_be_text_or_have_a_fraction_of_zero(key, number):
    assert getattr(model_settings({key: number}, SERVER), _TORCHSERVE_KEYS[key]) == 3
    known = model_settings({}, SERVER, known={key: number})
    assert getattr(known, _TORCHSERVE_KEYS[key]) == 3


def test_devices_may_be_text_too():
    assert model_settings({"deviceIds": ["0", 1.0, 2]}, SERVER).device_ids == (0, 1, 2)


def test_the_operators_word_on_workers_may_be_text(monkeypatch):
    monkeypatch.setattr("torchport.server.models.settings.available_cores", lambda: 1)
    assert model_settings({"minWorkers": 30}, SERVER, known={"minWorkers": "40"}).min_workers == 30


@pytest.mark.parametrize(
    "value", ["7.5", 7.5, "", "seven", "0x7", "1e3", True, float("inf"), float("nan"), [7]]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ArchiveRefused, match="a whole number from 0 to"):
        model_settings({"maxBatchDelay": value}, SERVER)


def test_keys_of_handlers_are_theirs():
    assert model_settings({"handler": {"anything": 1}, "beta": True}, SERVER) == model_settings({}, SERVER)


def test_what_is_not_supported_is_said(caplog):
    model_settings({"torchrun": {"nproc-per-node": 2}, "useJobTicket": True}, SERVER)
    assert "torchrun, useJobTicket: not supported" in caplog.text


OTHER_SEMANTICS = {
    "sequences": {"sequenceBatching": True},
    "sequences of older releases": {"sequenceMaxIdleMSec": 600, "maxNumSequence": 4},
    "both": {"sequenceBatching": True, "continuousBatching": True},
    "tokens one by one": {"continuousBatching": True},
    "later answers": {"asyncCommunication": True},
    "a flag in quotes": {"sequenceBatching": "true"},
    "a flag that is a number": {"continuousBatching": 1},
    "tensor parallel": {"parallelType": "tp", "torchrun": {"nproc-per-node": 4}},
    "pipeline parallel": {"parallelType": "PP", "parallelLevel": 2},
    "its own": {"parallelType": "custom"},
}


@pytest.mark.parametrize("case", OTHER_SEMANTICS)
def test_semantics_that_the_server_does_not_have_are_refused(case):
    config = OTHER_SEMANTICS[case]
    with pytest.raises(ArchiveRefused, match=next(iter(config))):
        model_settings(config, SERVER)


@pytest.mark.parametrize(
    "config",
    [
        {"sequenceBatching": False, "continuousBatching": False, "asyncCommunication": False},
        {"sequenceBatching": None, "parallelType": None},
        {"sequenceBatching": False, "sequenceMaxIdleMSec": 600, "maxNumSequence": 4},
        {"sequenceMaxIdleMSec": 0},
        {"parallelType": ""},
        {"parallelType": "none"},
        # Without parallelType they mean nothing on TorchServe either.
        {"parallelLevel": 1, "torchrun": {"OMP_NUMBER_THREADS": 2}},
    ],
)
def test_what_an_archive_does_without_is_no_reason_to_refuse_it(config):
    assert model_settings(config, SERVER) == model_settings({}, SERVER)


def test_an_archive_s_workers_are_bounded_by_the_machine(monkeypatch, caplog):
    monkeypatch.setattr("torchport.server.models.settings.available_cores", lambda: 3)
    found = model_settings({"minWorkers": 1000, "maxWorkers": 1024}, SERVER)
    assert (found.min_workers, found.max_workers) == (6, 6)
    assert "min_workers is 1000: 6 is the limit" in caplog.text
    assert model_settings({"minWorkers": 6, "maxWorkers": 7}, SERVER).max_workers == 6


def test_the_operator_s_word_on_workers_is_not_bounded(monkeypatch):
    monkeypatch.setattr("torchport.server.models.settings.available_cores", lambda: 1)
    config = {"minWorkers": 30}
    more = ServerSettings(max_workers_of_archive=20)
    assert model_settings(config, more).min_workers == 20
    assert model_settings(config, ServerSettings(max_workers_of_archive=64)).min_workers == 30
    assert model_settings(config, SERVER, known={"minWorkers": 25}).min_workers == 25
    assert model_settings(config, SERVER, asked={"min_workers": 28}).min_workers == 28
    assert model_settings({}, SERVER, asked={"min_workers": 50}).min_workers == 50
    assert model_settings({}, SERVER, known={"minWorkers": 50}).min_workers == 50


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batchSize": 0}, "batch_size is 0"),
        ({"batchSize": "8 rows"}, "batch_size is '8 rows'"),
        ({"minWorkers": True}, "min_workers is True"),
        ({"deviceIds": "0,1"}, "device_ids is '0,1'"),
        ({"torchport_server": 5}, "torchport_server: 5"),
        ({"torchport_server": {"queue_time": 5}}, "queue_time is not known: did you mean"),
        ({"torchport_server": {"recycle_above_mb": -1}}, "recycle_above_mb is -1"),
    ],
)
def test_a_wrong_value_is_named(config, message):
    with pytest.raises(ArchiveRefused, match=message.split(":")[0]):
        model_settings(config, SERVER)
