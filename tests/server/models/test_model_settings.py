"""How an archive's config, what registering it said, and the server's defaults add up."""

import pytest

from torchport.server.errors import ArchiveRefused
from torchport.server.models.settings import ModelSettings, model_settings
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


def test_keys_of_handlers_are_theirs():
    assert model_settings({"handler": {"anything": 1}, "beta": True}, SERVER) == model_settings({}, SERVER)


def test_what_is_not_supported_is_said(caplog):
    model_settings({"torchrun": {"nproc-per-node": 2}, "continuousBatching": True}, SERVER)
    assert "torchrun, continuousBatching: not supported" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batchSize": 0}, "batch_size is 0"),
        ({"batchSize": "8"}, "batch_size is '8'"),
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
