"""Writes the table of TorchServe's options into docs/torchserve.md, between its two marks.

    python docs/make_torchserve_options.py

A test holds each line against what `torchport serve` does, and the page against this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "torchserve.md"
BEGIN, END = "<!-- options -->\n", "<!-- end of options -->\n"

SAME, DIFFERS, NONE, REFUSED = "as there", "differs", "no effect", "refused"
"""What becomes of an option. One without effect is accepted; the archive or the server works as without."""

_SEQUENCES = "the requests of a sequence would have to stay with one worker"
_JAVA = "it concerns Java"
_TIED = "workers speak over socket pairs, which have no port"
_AGE = "connections last as long as clients keep them"
_IPEX = "handlers look for the variable `TS_IPEX_ENABLE`: set it for the server"
_KEYSTORE = "`certificate_file` and `private_key_file` are PEM files"
_PROMETHEUS = "metrics are Prometheus', on `/metrics`"
_WORKFLOWS = "there are no workflows"


@dataclass(frozen=True)
class Option:
    """An option of TorchServe's: what becomes of it here, how or why, and a value to try it with."""

    name: str
    verdict: str
    note: str = ""
    example: str = ""


ARCHIVE: Sequence[Option] = (
    Option("minWorkers", DIFFERS, "at most `max_workers_of_archive`; the log says so", "2"),
    Option("maxWorkers", DIFFERS, "at most `max_workers_of_archive`; the log says so", "2"),
    Option("batchSize", SAME, "", "4"),
    Option("maxBatchDelay", DIFFERS, "shown, and never waited out", "50"),
    Option("responseTimeout", SAME, "", "30"),
    Option("startupTimeout", SAME, "", "30"),
    Option("deviceType", SAME, "", "cpu"),
    Option("deviceIds", SAME, "", "[1, 0]"),
    Option("parallelType", REFUSED, "one worker would have to be several processes", "tp"),
    Option("parallelLevel", NONE, "nothing without `parallelType`, as there", "2"),
    Option("torchrun", NONE, "nothing without `parallelType`, as there", "{nproc-per-node: 2}"),
    Option("maxRetryTimeoutInSec", DIFFERS, "shown; workers that fail are started again without end", "60"),
    Option("clientTimeoutInMills", SAME, "", "5000"),
    Option("jobQueueSize", SAME, "", "7"),
    Option("useJobTicket", NONE, "requests wait for a worker up to `jobQueueSize`", "true"),
    Option("useVenv", NONE, "requirements are installed for each model without one", "true"),
    Option("sequenceBatching", REFUSED, _SEQUENCES, "true"),
    Option("sequenceMaxIdleMSec", REFUSED, _SEQUENCES, "600"),
    Option("sequenceTimeoutMSec", REFUSED, _SEQUENCES, "600"),
    Option("maxSequenceJobQueueSize", REFUSED, _SEQUENCES, "4"),
    Option("maxNumSequence", REFUSED, _SEQUENCES, "4"),
    Option("continuousBatching", REFUSED, "one call of the handler gives the whole answer", "true"),
    Option("asyncCommunication", REFUSED, "a call of the handler answers its own batch", "true"),
)
"""Keys of an archive's `model-config.yaml`."""

CONFIGURATION: Sequence[Option] = (
    Option("inference_address", DIFFERS, "no Unix sockets; strangers need tokens", "http://127.0.0.1:1"),
    Option("management_address", DIFFERS, "no Unix sockets; strangers need tokens", "http://127.0.0.1:1"),
    Option("metrics_address", DIFFERS, "no Unix sockets; strangers need tokens", "http://127.0.0.1:1"),
    Option("grpc_inference_address", SAME, "", "127.0.0.2"),
    Option("grpc_management_address", SAME, "", "127.0.0.2"),
    Option("grpc_inference_port", SAME, "", "7000"),
    Option("grpc_management_port", SAME, "", "7000"),
    Option("grpc_inference_max_connection_age_ms", NONE, _AGE, "1000"),
    Option("grpc_management_max_connection_age_ms", NONE, _AGE, "1000"),
    Option("grpc_inference_max_connection_age_grace_ms", NONE, _AGE, "1000"),
    Option("grpc_management_max_connection_age_grace_ms", NONE, _AGE, "1000"),
    Option("enable_grpc_ssl", SAME, "", "true"),
    Option("keystore", NONE, _KEYSTORE, "keys.p12"),
    Option("keystore_pass", NONE, _KEYSTORE, "changeit"),
    Option("keystore_type", NONE, _KEYSTORE, "PKCS12"),
    Option("certificate_file", DIFFERS, "needed for `https://`: none is made up", "cert.pem"),
    Option("private_key_file", DIFFERS, "needed for `https://`: none is made up", "key.pem"),
    Option("cors_allowed_origin", SAME, "", "https://example.org"),
    Option("cors_allowed_methods", SAME, "", "GET, POST"),
    Option("cors_allowed_headers", SAME, "", "X-Mine"),
    Option("model_store", DIFFERS, "links lead out of it only to `archive_roots`", "store"),
    Option("load_models", DIFFERS, "names of models, too; the default is `all`", "a=a.mar,b=b.mar"),
    Option("models", SAME, "", '{"a": {"1.0": {"minWorkers": 2}}}'),
    Option("model_snapshot", SAME, "", '{"models": {}}'),
    Option("allowed_urls", DIFFERS, "archives come from the store alone", "file:///a"),
    Option("use_env_allowed_urls", SAME, "`archive_roots`, too", "true"),
    Option(
        "install_py_dep_per_model",
        DIFFERS,
        "more than an index's packages: `install_py_dep_from_anywhere`",
        "true",
    ),
    Option("default_service_handler", SAME, "", "image_classifier"),
    Option("service_envelope", SAME, "", "json"),
    Option("default_workers_per_model", DIFFERS, "0: as many as the model and the machine bear", "2"),
    Option("default_response_timeout", SAME, "", "60"),
    Option("default_startup_timeout", SAME, "", "60"),
    Option("unregister_model_timeout", SAME, "", "60"),
    Option("job_queue_size", SAME, "", "5"),
    Option("number_of_gpu", SAME, "", "1"),
    Option("max_request_size", SAME, "", "1000"),
    Option("max_response_size", SAME, "", "1000"),
    Option("limit_max_image_pixels", SAME, "", "false"),
    Option("decode_input_request", SAME, "", "false"),
    Option("blacklist_env_vars", SAME, "", ".*PASSWORD.*"),
    Option("enable_metrics_api", SAME, "", "false"),
    Option("disable_system_metrics", SAME, "", "true"),
    Option("metrics_mode", NONE, _PROMETHEUS, "log"),
    Option(
        "metrics_config", DIFFERS, "its `model_metrics` count; the others are always there", "metrics.yaml"
    ),
    Option("model_metrics_auto_detect", NONE, "handlers' metrics are always shown", "true"),
    Option("system_metrics_cmd", NONE, "the server reads them itself", "mine.py"),
    Option("metric_time_interval", NONE, "they are read when they are asked for", "10"),
    Option("enable_model_api", SAME, "", "true"),
    Option("disable_token_authorization", DIFFERS, "on loopback addresses tokens are off anyway", "true"),
    Option("token_expiration_min", SAME, "", "5"),
    Option("enable_envvars_config", SAME, "", "true"),
    Option("ts_open_inference_protocol", NONE, "`/v2` is always there", "true"),
    Option("ts_header_key_sequence_id", NONE, _SEQUENCES, "id"),
    Option("ts_header_key_sequence_start", NONE, _SEQUENCES, "start"),
    Option("ts_header_key_sequence_end", NONE, _SEQUENCES, "end"),
    Option("workflow_store", NONE, _WORKFLOWS, "flows"),
    Option("plugins_path", NONE, "plugins are Java's", "plugins"),
    Option("cpp_log_config", NONE, "handlers are in Python", "log.yaml"),
    Option("ipex_enable", NONE, _IPEX, "true"),
    Option("ipex_gpu_enable", NONE, _IPEX.replace("IPEX", "IPEX_GPU"), "true"),
    Option("cpu_launcher_enable", NONE, "workers get their cores from the server", "true"),
    Option("cpu_launcher_args", NONE, "workers get their cores from the server", "--ncore 1"),
    Option("debug", NONE, "the server starts every worker, and its time limits hold", "true"),
    Option("async_logging", NONE, "it concerns Java's log", "true"),
    Option("number_of_netty_threads", NONE, _JAVA, "4"),
    Option("netty_client_threads", NONE, _JAVA, "4"),
    Option("prefer_direct_buffer", NONE, _JAVA, "true"),
    Option("use_native_io", NONE, _JAVA, "false"),
    Option("io_ratio", NONE, _JAVA, "20"),
    Option("vmargs", NONE, _JAVA, "-Xmx1g"),
    Option("initial_worker_port", NONE, _TIED, "9500"),
    Option("initial_distribution_port", NONE, _TIED, "29600"),
    Option("model_server_home", NONE, "there is none to find", "/opt/ts"),
    Option("version", NONE, "TorchServe's own note", "0.12.0"),
    Option("tsConfigFile", NONE, "TorchServe's own note", "config.properties"),
    Option("python", NONE, "workers run the server's Python", "python3"),
)
"""Keys of `config.properties`."""

COMMAND_LINE: Sequence[Option] = (
    Option("--version", DIFFERS, "`torchport --version`"),
    Option("--start", NONE, "the server starts without it"),
    Option("--stop", REFUSED, "SIGTERM ends the server"),
    Option("--ts-config", SAME, "`./config.properties` unless given", "x.properties"),
    Option("--model-store", SAME, "missing: exit code 1", "store"),
    Option("--workflow-store", NONE, _WORKFLOWS, "flows"),
    Option("--models", DIFFERS, "by spaces or commas; names of models, too; before a snapshot", "a=a.mar"),
    Option("--log-config", NONE, "`--log-format` and `--access-log` say how the log is", "log4j2.xml"),
    Option("--cpp-log-config", NONE, "handlers are in Python", "log.yaml"),
    Option("--foreground", SAME, "always so"),
    Option("--no-config-snapshots", SAME),
    Option("--ncs", SAME),
    Option("--plugins-path", NONE, "plugins are Java's", "plugins"),
    Option("--ppath", NONE, "plugins are Java's", "plugins"),
    Option("--disable-token-auth", DIFFERS, "beyond loopback `--insecure`, too"),
    Option("--dt", DIFFERS, "beyond loopback `--insecure`, too"),
    Option("--enable-model-api", SAME),
)
"""Options of `torchserve`."""

ENVIRONMENT: Sequence[Option] = (
    Option("TS_CONFIG_FILE", SAME, "before `--ts-config`"),
    Option("TS_KEY", SAME, "of any key above, with `enable_envvars_config=true`; before the command line"),
    Option("PYTHONPATH", SAME),
    Option("CUDA_VISIBLE_DEVICES", SAME),
    Option("CUDA_DEVICE_ORDER", SAME),
    Option("JAVA_HOME", NONE, "there is no Java"),
    Option("TEMP", NONE, "archives are unpacked in `--run`"),
    Option("LOG_LOCATION", NONE, "the log goes to stderr"),
    Option("METRICS_LOCATION", NONE, _PROMETHEUS),
    Option("SM_TELEMETRY_LOG", NONE, "there is no telemetry"),
    Option("TS_MODEL_SERVER_HOME", NONE, "there is none to find"),
    Option("TS_OPEN_INFERENCE_PROTOCOL", NONE, "`/v2` is always there"),
)
"""Variables of the environment."""

TABLES: Mapping[str, Sequence[Option]] = {
    "`model-config.yaml`": ARCHIVE,
    "`config.properties`": CONFIGURATION,
    "command line": COMMAND_LINE,
    "environment": ENVIRONMENT,
}


def tables() -> str:
    """The tables as Markdown."""
    parts = []
    for title, options in TABLES.items():
        lines = [f"| {title} | | |", "|---|---|---|"]
        lines += [f"| `{each.name}` | {each.verdict} | {each.note} |" for each in options]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def page_with(text: str, inserted: str) -> str:
    """The page with what is between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{inserted}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
