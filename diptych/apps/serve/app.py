"""Builds the HTTP application: its endpoints, the models that answer them, and their documentation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, get_type_hints

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.responses import HTMLResponse

from diptych import __version__, catalog
from diptych.apps.serve import requests as calls
from diptych.apps.serve import schemas
from diptych.apps.serve.admission import AdmissionMiddleware, Body
from diptych.apps.serve.compatible import add_compatible_routes
from diptych.apps.serve.errors import CODES, ApiError, add_handlers
from diptych.apps.serve.page import render
from diptych.apps.serve.reading import read_request, write_answer
from diptych.apps.serve.state import ServerState
from diptych.facts import Ability
from diptych.predict import PooledModel
from diptych.predict.queries import QueryError

log = logging.getLogger("diptych.apps.serve")
COMMON_ERRORS = ("no_key", "wrong_host", "failed")
MODEL_ERRORS = (
    *COMMON_ERRORS, "bad_json", "unknown_model", "slow_body", "body_too_large", "picture_too_large", "not_json",
    "bad_encoding", "bad_request", "bad_picture", "bad_text", "too_many", "not_trained", "refused", "busy", "stopping",
    "timed_out",
)  # fmt: skip


def build_app(
    state: ServerState,
    key: str | None = None,
    hosts: Sequence[str] | None = None,
    root_path: str = "",
    origins: Sequence[str] = (),
) -> AdmissionMiddleware:
    """Builds the ASGI application. Requests must send `key`. `hosts` are accepted Host headers; None accepts any.

    `root_path` is the prefix under which a proxy offers the server, as in /ai. It is taken off if the proxy leaves it.
    Web pages of `origins`, in lower case, may ask and read the answers; `*` stands for all of them.
    """
    app = FastAPI(
        title="diptych",
        version=__version__,
        description="Vision-language models over HTTP. Requests and answers are JSON objects. Pictures are sent in "
        'base64, never as a path or a URL. Every error is {"error": {"code", "message", "type", "param"}}.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    if root_path:
        app.servers = [{"url": root_path}]
    bearer = HTTPBearer(auto_error=False, description="The server's key, if it requires one.")
    app.include_router(_server_routes(state), dependencies=[Security(bearer)] if key else None)
    app.include_router(_model_routes(state), dependencies=[Security(bearer)] if key else None)
    add_handlers(app)
    paths = app.openapi()["paths"]
    page = render(app.openapi(), state.limits)

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    admission = AdmissionMiddleware(
        app, state.limits, state.metrics, state.batcher, paths, key, hosts, root_path, origins
    )
    app.state.admission = admission
    return admission


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's description of the statuses of error codes."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = CODES[code]
        entry = responses.setdefault(status, {"model": schemas.ErrorResponse, "description": ""})
        entry["description"] += ("; " if entry["description"] else "") + f"`{code}`: {meaning}"
    for status in (429, 503):
        if status in responses:
            responses[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return dict(sorted(responses.items(), key=lambda item: str(item[0])))


# --------------------------------------------------------------------------- the server itself


def _server_routes(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/v1/models", responses=documented(*COMMON_ERRORS))
    async def models() -> schemas.ModelsResponse:
        """Lists the models, the kinds of requests that each answers, and their evaluations."""
        models = [_served(model, state.able) for model in state.pool.models]
        index = None if state.index is None else str(state.index.search_method)
        data = [schemas.ListedModel(id=model.name) for model in state.pool.models]
        return schemas.ModelsResponse(models=models, index=index, data=data)

    @router.get("/v1/models/{name:path}", responses=documented(*COMMON_ERRORS, "unknown_model", "bad_request"))
    async def one_model(name: str) -> schemas.ListedModel:
        """Returns a model of the list in the form of OpenAI's API."""
        if name not in (model.name for model in state.pool.models):
            raise state.unknown_model(name)
        return schemas.ListedModel(id=name)

    unready: dict[int | str, dict[str, Any]] = {
        503: {"model": schemas.Health, "description": "The server is being stopped, or its models' thread has ended."}
    }

    @router.get("/healthz", responses=documented("wrong_host", "failed") | unready)
    async def healthz(request: Request, response: Response) -> schemas.Health:
        """Says whether the server is running and accepts new requests. Needs no key."""
        ready = state.batcher.alive and not request.app.state.admission.stopping
        response.status_code = 200 if ready else 503
        return schemas.Health(live=True, ready=ready)

    text: dict[int | str, dict[str, Any]] = {
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Prometheus' text format 0.0.4.",
        }
    }

    @router.get("/metrics", response_class=Response, responses=text | documented(*COMMON_ERRORS))
    async def metrics() -> Response:
        """Returns counters and timings for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _served(model: PooledModel, able: Mapping[str, tuple[str, ...]]) -> schemas.ServedModel:
    recipe = model.predictor.recipe
    return schemas.ServedModel(
        name=model.name,
        system=type(model.predictor.model).__name__.lower(),
        recipe=recipe.name,
        abilities=[ability for ability in able if model.name in able[ability]],
        best_for=[ability for ability in able if able[ability][:1] == (model.name,)],
        measured=_finite(model.measured),
        precision=model.predictor.precision,
    )


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None. The score of an empty split is NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------- models


def _route_class(state: ServerState) -> type[APIRoute]:
    """Returns a kind of route that reads bodies and writes answers on threads of their own.

    FastAPI would do both on the event loop, where everybody waits, and would make an error object for each wrong item.
    """

    class ModelRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            kind = get_type_hints(self.endpoint)["body"]

            async def handle(request: Request) -> Response:
                sent: Body = request.state.body
                body = await state.readers.run(lambda work: read_request(sent.take(), kind, state.limits))
                answer = await self.endpoint(body, request)
                content = await state.readers.run(lambda work: write_answer(answer))
                return Response(content, media_type="application/json")

            return handle

    return ModelRoute


def _model_routes(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"], route_class=_route_class(state))
    preparer = state.preparer

    @router.post("/embed", responses=documented(*MODEL_ERRORS))
    async def embed(body: schemas.EmbedRequest, request: Request) -> schemas.EmbedResponse:
        """Returns vectors of pictures and texts. The cosine of two vectors says how well they fit."""
        model = state.find("embed", body.model)
        inputs = await state.prepare(
            preparer.pictures_and_texts, model.predictor, body.pictures, body.texts, pictures=len(body.pictures)
        )
        pictures, texts = await state.submit(request, calls.Embed(model), inputs)
        return schemas.EmbedResponse(
            model=model.name, unknown_words=inputs.unknown_words, pictures=pictures, texts=texts
        )

    @router.post("/match", responses=documented(*MODEL_ERRORS))
    async def match(body: schemas.MatchRequest, request: Request) -> schemas.MatchResponse:
        """Returns the probability, by the fusion encoder, that each picture and each text belong together."""
        model = state.find("match", body.model)
        preparer.check_pairs(len(body.pictures), len(body.texts))
        inputs = await state.prepare(preparer.pictures_and_texts, model.predictor, body.pictures, body.texts)
        probabilities = await state.submit(request, calls.Match(model), inputs)
        return schemas.MatchResponse(model=model.name, unknown_words=inputs.unknown_words, probabilities=probabilities)

    @router.post("/search", responses=documented(*MODEL_ERRORS, "no_index"))
    async def search(body: schemas.SearchRequest, request: Request) -> schemas.SearchResponse:
        """Searches the server's index by a text or a picture."""
        return await _search(state, body, request)

    for ability in catalog.abilities().values():
        if ability.calls is None:
            _add_ability(router, state, ability)

    @router.post("/locate", responses=documented(*MODEL_ERRORS))
    async def locate(body: schemas.LocateRequest, request: Request) -> schemas.LocateResponse:
        """Locates in a picture what phrases name."""
        model = state.find("locate", body.model)
        preparer.check_proposals(body.proposals)
        size, inputs = await state.prepare(preparer.to_locate, model.predictor, body.picture, body.phrases)
        located = await state.submit(request, calls.Locate(model), inputs)
        results = await state.prepare(preparer.located, model.predictor, body, size, located)
        return schemas.LocateResponse(model=model.name, unknown_words=inputs.unknown_words, results=results)

    add_compatible_routes(router, state, documented(*MODEL_ERRORS))
    return router


def _add_ability(router: APIRouter, state: ServerState, ability: Ability) -> None:
    """Adds the endpoint of an ability that the head of a task has."""
    request_type, (response_type, to_item) = schemas.request_of(ability), schemas.response_of(ability)
    lists = [option.name for option in ability.options if option.kind == "texts"]

    async def endpoint(body: Any, request: Request) -> Any:
        model = state.find(ability.name, body.model)
        options = {option.name: getattr(body, option.name) for option in ability.options}
        for name in lists:
            options[name] = None if options[name] is None else tuple(options[name])
            state.preparer.check_texts(options[name] or (), name)
        pictures = {picture.field: getattr(body, picture.field) for picture in ability.pictures}
        field = "texts" if ability.text is None else ability.text.field
        texts = getattr(body, field, ())
        inputs = await state.prepare(state.preparer.texts_about, model.predictor, pictures, texts, field)
        results = await state.submit(request, calls.CallHead(model, ability.name, tuple(options.items())), inputs)
        return response_type.model_validate(
            {
                "model": model.name,
                "unknown_words": inputs.unknown_words,
                "results": [to_item(result) for result in results],
            }
        )

    endpoint.__annotations__ = {"body": request_type, "request": Request, "return": response_type}
    router.add_api_route(
        f"/{ability.name}", endpoint, methods=["POST"], name=ability.name, description=ability.description,
        responses=documented(*MODEL_ERRORS),
    )  # fmt: skip


async def _search(state: ServerState, body: schemas.SearchRequest, request: Request) -> schemas.SearchResponse:
    if state.index is None or state.index_of is None:
        raise ApiError("no_index", "this server has no index to search: start it with --index PLACE")
    model = state.index_of
    if not state.index.counts.get(body.of):
        raise ApiError("refused", f"the index holds no {body.of}s")
    if body.rerank and (body.text is None) == (body.of == "picture"):
        raise ApiError(
            "refused",
            "re-ranking matches pictures with texts: a search by text takes of=picture, one by picture of=text",
        )
    if body.rerank and (reason := model.predictor.missing("match")):
        raise ApiError("not_trained", reason)
    texts = [] if body.text is None else [body.text]
    pictures = [] if body.picture is None else [body.picture]
    inputs = await state.prepare(
        state.preparer.pictures_and_texts, model.predictor, pictures, texts, "picture", "text", pictures=len(pictures)
    )
    try:
        results = await state.batcher.submit(
            calls.Search(state.index, body.of, body.rerank),
            calls.SearchInputs(inputs.pictures, inputs.texts, k=body.k, min_match=body.min_match),
            request.state.expected,
        )
    except QueryError as error:
        raise ApiError("refused", str(error)) from error
    except ValueError as error:  # the request was checked, so this concerns the index and may name its files
        raise RuntimeError("the index could not be searched") from error
    hits = [
        schemas.FoundItem(id=hit.id, kind=hit.kind, text=hit.text, similarity=hit.similarity, match=hit.match)
        for hit in results.hits
    ]
    return schemas.SearchResponse(
        model=model.name,
        hits=hits,
        min_match=results.min_match.least,
        best_match=results.best_match,
        calibrated=results.min_match.calibrated,
        searched=results.searched,
        how=results.search_method,
        unknown_words=results.unknown_words,
        notes=list(results.notes),
    )
