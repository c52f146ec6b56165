"""``gac serve``: one or several ensembles behind OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import configuration
from gac_core.config import EnsembleConfig
from gac_core.effective import default_weights
from gac_core.errors import ConfigError, listed, quote

if TYPE_CHECKING:
    from gac_core.server.catalog import Catalog
    from gac_core.server.settings import ServerSettings

DEFAULT_NAME = "ensemble"


Ensembles = Annotated[
    list[str],
    typer.Argument(
        help="YAML files, one ensemble each; NAME=FILE sets its name, else that of the file. Or models: folders, GGUF "
        "files or hub names, which are the members of one ensemble called 'ensemble'.",
    ),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on. Others than loopback need keys.")]
Port = Annotated[int, typer.Option(metavar="PORT", help="0: a free one.", min=0, max=65535)]
ApiKeys = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with one API key per line. Also: GAC_API_KEYS=KEY,KEY.")
]
Unauthenticated = Annotated[bool, typer.Option("--allow-unauthenticated", help="Listen on any address without keys.")]
MaxBody = Annotated[float, typer.Option(metavar="MIB", help="Largest body of a request, in MiB.", min=0.001)]
MaxTokens = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Longest answer, in tokens. Default: what the context leaves.", min=1),
]
MaxChoices = Annotated[int, typer.Option(metavar="N", help="Largest n of a request.", min=1, max=128)]
MaxDocuments = Annotated[int, typer.Option(metavar="N", help="Most documents of a request.", min=1, max=1024)]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", help="Seconds that a request may take, its time in the queue included; 0: no limit.", min=0
    ),
]
Drain = Annotated[
    float, typer.Option(metavar="SECONDS", help="Seconds that requests may go on after SIGTERM or SIGINT.", min=0)
]
Temperature = Annotated[float, typer.Option(metavar="T", help="That of requests that have none.", min=0)]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Log and trace prompts and answers.")]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning, error or critical.")]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Origin whose pages may call the server; may be repeated. Default: none."),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Name that clients without keys may use for this machine besides localhost; may be repeated.",
    ),
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="OpenTelemetry collector (gRPC), such as http://127.0.0.1:4317. Extra: otel."),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="auto, float32, bfloat16 or float16, for members that do not set their own."),
]


def serve(
    ensembles: Ensembles,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_keys: ApiKeys = None,
    allow_unauthenticated: Unauthenticated = False,
    max_body_mib: MaxBody = 4.0,
    max_tokens: MaxTokens = None,
    max_choices: MaxChoices = 16,
    max_documents: MaxDocuments = 64,
    request_timeout: Timeout = 600.0,
    drain_timeout: Drain = 30.0,
    temperature: Temperature = 1.0,
    log_prompts: LogPrompts = False,
    log_level: LogLevel = "info",
    cors_origin: CorsOrigin = None,
    allowed_host: AllowedHost = None,
    otlp_endpoint: OtlpEndpoint = None,
    dtype: Dtype = None,
) -> None:
    """Serve ensembles behind OpenAI's HTTP protocol. SIGTERM finishes running requests first."""
    with reported("serve"):
        try:
            from gac_core.server.access.auth import read_keys
            from gac_core.server.lifecycle.process import end_process
            from gac_core.server.lifecycle.process import serve as run
            from gac_core.server.settings import ServerSettings
            from gac_core.server.telemetry.logs import configure_logs
        except ImportError as error:
            raise ConfigError(f"an extra is missing: pip install 'gac-ensemble[server]' ({error})") from error
        configure_logs(log_level, log_prompts)
        configs = named_configurations(ensembles, dtype)
        settings = ServerSettings(
            host=host,
            port=port,
            api_keys=read_keys(api_keys),
            allow_unauthenticated=allow_unauthenticated,
            max_body_bytes=int(max_body_mib * 2**20),
            max_tokens=max_tokens,
            max_choices=max_choices,
            max_documents=max_documents,
            request_timeout=request_timeout or None,
            drain_timeout=drain_timeout,
            temperature=temperature,
            log_prompts=log_prompts,
            log_level=log_level,
            cors_origins=tuple(cors_origin or ()),
            allowed_hosts=tuple(allowed_host or ()),
            otlp_endpoint=otlp_endpoint,
        )
        status = run(configs, settings, lambda url, catalog: typer.echo(start_line(url, catalog, settings), err=True))
    end_process(status)


def named_configurations(arguments: Sequence[str], dtype: str | None = None) -> dict[str, EnsembleConfig]:
    """Returns the ensembles of the command's arguments by name.

    Args:
        arguments: YAML files, with or without ``NAME=`` before them; or names and folders of models.
        dtype: For members that do not set their own.

    Raises:
        ConfigError: A file is wrong, models and files are mixed, or two ensembles have the same name.
    """
    files = [argument for argument in arguments if argument.endswith((".yaml", ".yml"))]
    if not files:
        _check_models(arguments)
        return {DEFAULT_NAME: configuration(arguments, dtype)}
    models = [argument for argument in arguments if argument not in files]
    if models:
        raise ConfigError(
            f"give either YAML files, one per ensemble, or the models of one ensemble; {quote(models[0])} is no file "
            "that ends in .yaml"
        )
    configs: dict[str, EnsembleConfig] = {}
    for argument in files:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if not name or "/" in name or not name.isprintable():
            raise ConfigError(f"the name of an ensemble must be printable, without a slash, not {quote(name)}")
        if name in configs:
            raise ConfigError(f"two ensembles are called {quote(name)}; give NAME={path}")
        configs[name] = configuration([path], dtype)
    return configs


def _check_models(models: Sequence[str]) -> None:
    """Raises if a model is given with a name."""
    for model in models:
        name, equals, _ = model.partition("=")
        if equals and not Path(model).exists():
            raise ConfigError(
                f"{quote(model)}: only YAML files take NAME=; write the models into one ({name}={name}.yaml), or leave "
                f"{name}= out"
            )


def start_line(url: str, catalog: Catalog, settings: ServerSettings) -> str:
    """Returns what is shown once requests are accepted: the ensembles and the address."""
    described = "; ".join(_described(name, catalog) for name in catalog.ensembles)
    count = len(settings.api_keys)
    keys = f"{count} API key{'s' if count > 1 else ''}" if count else "no API key needed"
    return f"gac serve: {described}; listening on {url}/v1 ({keys})"


def _described(name: str, catalog: Catalog) -> str:
    ensemble = catalog.ensembles[name]
    config = ensemble.config
    weights = zip(config.names, default_weights(config), strict=True)
    members = listed(f"{member} {weight:g}" for member, weight in weights)
    source = f", weights by {config.weights}" if isinstance(config.weights, str) else ""
    threshold = "none" if config.threshold is None else f"{config.threshold:g}"
    return f"{name}: {members}{source} (gate {ensemble.gate}, threshold {threshold})"
