"""The text that `onward serve` prints when it is ready: models served and refused, and three requests to try."""

from collections.abc import Mapping

from flask import Flask

from onward.model.manifest import Feature
from onward.model.runner import StepModel
from onward.service.server.wsgi import engine_of
from onward.service.settings import Settings
from onward.service.store.opening import redact_uri


def text(settings: Settings, app: Flask, listening: str | tuple[str, int]) -> str:
    """The banner. listening: the name of the listening socket, which has the real port where the setting has 0."""
    engine = engine_of(app)
    bind = settings.bind
    if not isinstance(listening, str):
        host = bind.rpartition(":")[0]
        bind = f"{'127.0.0.1' if host in {'0.0.0.0', '[::]'} else host}:{listening[1]}"  # noqa: S104  (an address to try)
    lines = ["", f"Onward serves {settings.models} at {_url(bind)}, sessions in {redact_uri(settings.store)}", ""]
    for name, versions in sorted(engine.models.by_name.items()):
        lines.append(
            f"  {name} {', '.join(map(str, sorted(versions)))}: {versions[max(versions)].manifest.description}"
        )
    lines += [f"  REFUSED {error}" for error in engine.models.refused]
    if engine.models.by_name:
        lines += ["", "Try:", *(f"  {line}" for line in requests(bind, engine.models.by_name))]
    return "\n".join([*lines, ""])


def requests(bind: str, models: Mapping[str, Mapping[int, StepModel]]) -> list[str]:
    """Three curl commands that show that state is carried from request to request."""
    if not models:
        return []
    name = "pulse" if "pulse" in models else min(models)
    versions = models[name]
    model = versions[max(versions)]
    sample = model.manifest.parity.inputs[0]
    first, second = (
        ",".join(_value(number, feature, model) for number, feature in zip(row, model.manifest.features, strict=True))
        for row in (sample[0], sample[:2][-1])
    )
    session, json = f"{_url(bind)}/v1/sessions/demo", "-H 'Content-Type: application/json' -d"
    rolls = model.manifest.can_forecast and not model.manifest.future_covariates
    return [
        f"curl -s {_url(bind)}/v1/models/{name}/sessions/demo/steps {json} '{{\"inputs\": [[{first}]]}}'",
        f"curl -s {session}/steps {json} '{{\"inputs\": [[{second}]]}}'",
        f"curl -s {session}/forecast {json} '{{\"horizon\": 5}}'" if rolls else f"curl -s {session}",
    ]


def _value(number: float | None, feature: Feature, model: StepModel) -> str:
    """The value as a client writes it: a category that is a word is written as its index, which needs no quoting."""
    if number is None:
        return "null"
    if feature.kind == "category" and int(number) < len(feature.categories):
        category = feature.categories[int(number)]
        return str(category if isinstance(category, int) else int(number))
    return str(model.input_dtype.type(number)).removesuffix(".0")


def _url(bind: str) -> str:
    return (
        f"--unix-socket {bind.removeprefix('unix:')} http://localhost" if bind.startswith("unix:") else f"http://{bind}"
    )
