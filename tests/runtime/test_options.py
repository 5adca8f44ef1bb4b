import pytest

from torchport_runtime import BackendError, BackendOptions


def test_environment_wins_over_the_file():
    options = BackendOptions.from_config(
        {"backend": "onnxruntime", "threads": 2, "handler": {"anything": 1}},
        {"TORCHPORT_BACKEND": "torchscript", "TORCHPORT_DEVICE": "cpu", "TORCHPORT_THREADS": "3"},
    )
    assert (options.backend, options.device, options.threads) == ("torchscript", "cpu", 3)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"bakend": "pt2"}, "torchport.bakend is not known, did you mean 'backend'"),
        ({"backend": "onxruntime"}, "did you mean 'onnxruntime'"),
        ({"device": "gpu"}, "auto, cpu, cuda or cuda:N"),
        ({"threads": -1}, "whole number"),
        ({"threads": True}, "whole number"),
        ({"tf32": "yes"}, "true or false"),
        ({"graph_optimization": "al"}, "did you mean 'all'"),
    ],
)
def test_wrong_values_say_what_is_right(config, reason):
    with pytest.raises(BackendError, match=reason):
        BackendOptions.from_config(config)


def test_a_wrong_number_of_threads_in_the_environment():
    with pytest.raises(BackendError, match="TORCHPORT_THREADS='many'"):
        BackendOptions.from_config({}, {"TORCHPORT_THREADS": "many"})


def test_threads_default_to_the_cores_there_are():
    assert BackendOptions().thread_count >= 1
    assert BackendOptions(threads=1).thread_count == 1


def test_what_changes_a_result_is_told_from_what_does_not():
    assert BackendOptions(threads=1).numerics() == BackendOptions(threads=4).numerics()
    assert BackendOptions(tf32=True).numerics() != BackendOptions().numerics()
