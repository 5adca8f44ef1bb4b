"""The command as a user types it: a process, its output, its exit code."""

import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_stages
from tests.warm_processes import torchport
from torchport.recipe.loading import load_recipe


@pytest.fixture
def store_option(shipped, linear_archive):
    return ("--store", shipped.path)


@pytest.mark.road
def test_stages_one_by_one_and_again(write_recipe, tmp_path):
    recipe = write_recipe()
    for again in (False, True):
        for stage in ("train", "export", "verify", "package"):
            done = torchport(stage, recipe, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert ("unchanged" if again else "done ") in done.stdout
    build = tmp_path / "model_store" / ".build" / "tiny" / "1.0"
    names = {path.name for path in build.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("weights.pt", "training.json", "export.json", "signature.json", "parity.json"),
        *("parity.html", "measures.json", "evidence.npz"),
        *("main.pt", "main.onnx", "main.pt2", "assets"),
    }
    assert (tmp_path / "model_store" / "tiny-1.0.mar").is_file()


def test_infer_says_answer_provider_and_latency(store_option):
    done = torchport("infer", "linear", "--input", "[4.0]", "--repeat", 5, *store_option)
    assert done.returncode == 0
    answer, provider, latency = done.stdout.splitlines()
    assert answer.startswith("[14.")
    assert provider == "provider: CPUExecutionProvider"
    assert "p50" in latency
    assert "p99" in latency


def test_infer_takes_the_models_own_sample(store_option, tmp_path):
    sample = torchport("infer", "linear", "--repeat", 1, *store_option)
    (tmp_path / "four.json").write_text("[4.0]")
    file = torchport("infer", "linear", "--input", tmp_path / "four.json", "--repeat", 1, *store_option)
    assert sample.stdout.splitlines()[0] == file.stdout.splitlines()[0]


def test_infer_imports_no_torch(store_option):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "torchport", "infer", "linear", *map(str, store_option)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not any(name == "torch" or name.startswith("torch.") for name in imported)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["infer", "linear", "--device", "cuda:9"], 2, "device 'cuda:9' was asked for"),
        (["infer", "linear", "--device", "gpu"], 2, "auto, cpu, cuda or cuda:N"),
        (["infer", "linear", "--input", "{bad"], 2, "neither a file nor JSON"),
        (["infer", "linear", "--input", "null"], 2, "null is no request"),
        (["infer", "linear", "--input", "[1, 2]"], 2, "expected float32"),
        (["infer", "nothing"], 2, "not 'nothing'"),
        (["infer", "linear", "--version", "9"], 2, "has the versions 1.0"),
        (["train", "nothing"], 2, "no recipe 'nothing'"),
        (["train", "linear", "--weights", "nowhere.pt"], 2, "no weights file"),
        (["train", "linear", "--seed", "-1"], 2, "--seed"),
        (["inspect", "nothing.mar"], 2, "no archive nothing.mar"),
        (["query", "linear", "--data", "[4.0]", "--url", "http://127.0.0.1:9"], 2, "no server answers"),
        (["query", "linear", "--param", "k"], 2, "name=value"),
        (["nonsense"], 2, "nonsense"),
        (["check", "linear", "--backend", "pt2"], 2, "the archive carries onnxruntime, torchscript"),
    ],
)
def test_wrong_input_is_one_clear_message(store_option, arguments, code, reason):
    takes_store = arguments[0] not in ("inspect", "nonsense")
    done = torchport(*arguments, *(store_option if takes_store else ()))
    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_that_says_no_exits_1(built, store):
    recipe, _ = built(("np.array([[1, 2, 3]], np.float32)", "np.array([[1, 2, 4]], np.float32)"))
    done = torchport("verify", recipe.path, "--store", store.path)
    assert done.returncode == 1
    assert "differs from the recipe's tensor" in done.stderr
    assert torchport("package", recipe.path, "--store", store.path).returncode == 1
    assert not (store.path / "tiny-1.0.mar").exists()


def test_inspect_prints_contents_and_verdict(linear_archive, tmp_path):
    done = torchport("inspect", linear_archive)
    assert done.returncode == 0
    assert "main.onnx" in done.stdout
    assert "every hash holds" in done.stdout
    changed = tmp_path / "changed.mar"
    content = bytearray(linear_archive.read_bytes())
    content[content.index(b"class Regressor")] ^= 1
    changed.write_bytes(content)
    assert torchport("inspect", changed).returncode in (1, 2)


def test_list_shows_task_state_and_metric(store_option):
    done = torchport("list", *store_option)
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("linear"))
    assert "packaged" in line or "served" in line
    assert "heldout_mse" in line


def test_version_and_help():
    import torchport as library

    assert torchport("--version").stdout == f"torchport {library.__version__}\n"
    assert "restart" in torchport("torchserve", "-h").stdout


@pytest.mark.road
def test_init_writes_what_ships(store, tmp_path):
    done = torchport("init", "mine", "--handler", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"mine.py", "mine_handler.py"} == {path.name for path in tmp_path.iterdir()}
    run_stages(load_recipe(tmp_path / "mine.py"), store)
    assert torchport("init", "mine", cwd=tmp_path).returncode == 2
    for wrong in ("torch", "class", "1st", "a-b", "regressor", "é"):
        assert torchport("init", wrong, cwd=tmp_path).returncode == 2, wrong


def test_a_port_that_is_taken_is_named(store_option, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = torchport("torchserve", "start", "--port", port, "--run", tmp_path, *store_option)
    assert done.returncode == 2
    assert f"port {port} (inference) is taken" in done.stderr


def test_no_java_and_an_empty_store(store_option, tmp_path):
    done = torchport("torchserve", "start", "--run", tmp_path, *store_option, JAVA_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "holds no bin/java" in done.stderr
    done = torchport("torchserve", "start", "--run", tmp_path, "--store", tmp_path)
    assert done.returncode == 2
    assert "no archives in" in done.stderr


def test_what_does_not_run_can_be_stopped(tmp_path):
    done = torchport("torchserve", "stop", "--run", tmp_path)
    assert done.returncode == 0
    assert "no TorchServe started by torchport runs" in done.stdout
    assert torchport("torchserve", "status", "--run", tmp_path).returncode == 1


@pytest.mark.road
def test_a_list_with_a_recipe_that_fails_ends_with_1(write_recipe, tmp_path):
    path = write_recipe(("return nn.Linear(3, 2)", "return nn.Linear(4, 2)"))
    listed = tmp_path / "list.yaml"
    listed.write_text(f"- recipe: {path}\n")
    done = torchport("zoo", str(listed), "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "MISSED" in done.stdout
    assert "mat1 and mat2" in done.stderr
    for text, reason in (
        ("- recipes: x", "a list of entries"),
        ("- recipe: x\n  wieghts: y", "did you mean 'weights'"),
    ):
        listed.write_text(text)
        done = torchport("zoo", str(listed))
        assert done.returncode == 2
        assert reason in done.stderr
