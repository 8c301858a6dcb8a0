"""The application: what can be asked over HTTP, of which models, and what its page says about that."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.security import HTTPBearer
from starlette.responses import HTMLResponse

from diptych import __version__, catalog
from diptych.apps.serve import requests as asking
from diptych.apps.serve import schemas
from diptych.apps.serve.batching import Batcher
from diptych.apps.serve.errors import CODES, ApiError, add_handlers
from diptych.apps.serve.gate import Gate
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.measures import Measures
from diptych.apps.serve.page import render
from diptych.apps.serve.preparing import Preparing
from diptych.apps.serve.requests import Ask, Given
from diptych.facts import Ability
from diptych.predict import ModelPool, PooledModel

log = logging.getLogger("diptych.apps.serve")
Value = TypeVar("Value")
PREPARERS = 2
"""Threads that decode pictures and draw heat maps: each holds one picture of full size at a time."""
BY_ALL = ("no_key", "wrong_host", "failed")
BY_WORK = (
    *BY_ALL, "bad_json", "unknown_model", "slow_body", "body_too_large", "picture_too_large", "not_json",
    "bad_request", "bad_picture", "bad_text", "too_many", "not_trained", "refused", "busy", "stopping", "timed_out",
)  # fmt: skip


@dataclass(eq=False)
class ServerState:
    """What a server has: models, an index, limits, and the threads that work."""

    pool: ModelPool
    limits: Limits = field(default_factory=Limits)
    index: Any = None
    """A `diptych.apps.index.Index`, or None."""
    index_of: PooledModel | None = None
    """The model whose vectors it holds."""

    def __post_init__(self) -> None:
        self.measures = Measures()
        self.batcher = Batcher(self.limits, self.measures)
        self.preparers = ThreadPoolExecutor(PREPARERS, "diptych-prepare")
        self.preparing = Preparing(self.limits)
        self.able = self.pool.abilities()
        names = [None, *(one.name for one in self.pool.models)]
        self._found = {(ability, name): self._find(ability, name) for ability in self.able for name in names}

    def find(self, ability: str, name: str | None) -> PooledModel:
        """The model to ask. Raises ApiError."""
        found = self._found.get((ability, name))
        if found is None:
            known = ", ".join(one.name for one in self.pool.models)
            raise ApiError("unknown_model", f"no model '{name}' here. There are: {known}")
        if isinstance(found, str):
            raise ApiError("not_trained", found)
        return found

    def _find(self, ability: str, name: str | None) -> PooledModel | str:
        """The model, or why there is none: what to train takes a while to find out."""
        try:
            return self.pool.find(ability, name)
        except ValueError as error:
            return str(error)

    async def prepare(self, call: Callable[..., Value], *arguments: Any) -> Value:
        """Off the event loop, which must not wait for a picture."""
        return await asyncio.get_running_loop().run_in_executor(self.preparers, call, *arguments)

    async def ask(self, request: Request, ask: Ask, given: Given) -> Any:
        """What the model says. Raises ApiError for what it cannot be asked."""
        try:
            return await self.batcher.ask(ask, given, request.state.coming)
        except ValueError as error:
            raise ApiError("refused", str(error)) from None

    def close(self, seconds: float = 5.0) -> None:
        self.batcher.close(seconds)
        self.preparers.shutdown(wait=False, cancel_futures=True)


def build_app(state: ServerState, key: str | None = None, hosts: Sequence[str] | None = None) -> Gate:
    """The ASGI application. `key`: what requests must bring. `hosts`: names that a Host header may give; None: any."""
    app = FastAPI(
        title="diptych",
        version=__version__,
        description="Vision-language models over HTTP: one JSON object in, one out. Pictures travel in base64, never "
        'as a path or an address. Every error is {"error": {"code", "message"}}.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    bearer = HTTPBearer(auto_error=False, description="The server's key, where it has one.")
    app.include_router(_about(state), dependencies=[Security(bearer)] if key else None)
    app.include_router(_work(state), dependencies=[Security(bearer)] if key else None)
    add_handlers(app)
    paths = list(app.openapi()["paths"])
    page = render(app.openapi(), state.limits)

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    gate = Gate(app, state.limits, state.measures, state.batcher, paths, key, hosts)

    app.state.gate = gate
    return gate


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: each status with the codes that come with it."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = CODES[code]
        entry = found.setdefault(status, {"model": schemas.ErrorResponse, "description": ""})
        entry["description"] += ("; " if entry["description"] else "") + f"`{code}`: {meaning}"
    for status in (429, 503):
        if status in found:
            found[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


# --------------------------------------------------------------------------- the server itself


def _about(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/v1/models", responses=documented(*BY_ALL))
    async def models() -> schemas.ModelsResponse:
        """The models, what each can be asked, and how well it did where that was measured."""
        found = [_served(one, state.able) for one in state.pool.models]
        return schemas.ModelsResponse(models=found, index=None if state.index is None else str(state.index.how))

    unready: dict[int | str, dict[str, Any]] = {
        503: {"model": schemas.Health, "description": "It is being stopped, or its models' thread has ended."}
    }

    @router.get("/healthz", responses=documented("wrong_host", "failed") | unready)
    async def healthz(request: Request, response: Response) -> schemas.Health:
        """Whether the server is there, and takes new work. Needs no key."""
        ready = state.batcher.alive and not request.app.state.gate.stopping
        response.status_code = 200 if ready else 503
        return schemas.Health(live=True, ready=ready)

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text format 0.0.4."}
    }

    @router.get("/metrics", response_class=Response, responses=text | documented(*BY_ALL))
    async def metrics() -> Response:
        """Counters and times for Prometheus."""
        return Response(state.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _served(one: PooledModel, able: Mapping[str, tuple[str, ...]]) -> schemas.ServedModel:
    recipe = one.predictor.recipe
    return schemas.ServedModel(
        name=one.name,
        system=type(one.predictor.model).__name__.lower(),
        recipe=recipe.name,
        abilities=[ability for ability in able if one.name in able[ability]],
        best_for=[ability for ability in able if able[ability][:1] == (one.name,)],
        measured=_finite(one.measured),
    )


def _finite(value: Any) -> Any:
    """With null for what JSON has no number for: a measure of nothing is NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------- what models are asked


def _work(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"])
    prepare = state.preparing

    @router.post("/embed", responses=documented(*BY_WORK))
    async def embed(asked: schemas.EmbedRequest, request: Request) -> schemas.EmbedResponse:
        """Vectors of pictures and texts; the cosine of two says how well they fit."""
        model = state.find("embed", asked.model)
        given = await state.prepare(prepare.listed, model.predictor, asked.pictures, asked.texts)
        pictures, texts = await state.ask(request, asking.Embed(model), given)
        return schemas.EmbedResponse(model=model.name, pictures=pictures, texts=texts)

    @router.post("/match", responses=documented(*BY_WORK))
    async def match(asked: schemas.MatchRequest, request: Request) -> schemas.MatchResponse:
        """Whether texts fit pictures, by the fusion encoder: every picture with every text."""
        model = state.find("match", asked.model)
        prepare.check_pairs(len(asked.pictures), len(asked.texts))
        given = await state.prepare(prepare.listed, model.predictor, asked.pictures, asked.texts)
        found = await state.ask(request, asking.Match(model), given)
        return schemas.MatchResponse(model=model.name, probabilities=found)

    @router.post("/search", responses=documented(*BY_WORK, "no_index"))
    async def search(asked: schemas.SearchRequest, request: Request) -> schemas.SearchResponse:
        """What in the server's index is most like a text or a picture."""
        return await _search(state, asked, request)

    for ability in catalog.abilities().values():
        if ability.calls is None:
            _add_ability(router, state, ability)

    @router.post("/locate", responses=documented(*BY_WORK))
    async def locate(asked: schemas.LocateRequest, request: Request) -> schemas.LocateResponse:
        """Where in a picture is what phrases name."""
        model = state.find("locate", asked.model)
        prepare.check_proposals(asked.proposals)
        size, given = await state.prepare(prepare.to_locate, model.predictor, asked.picture, asked.phrases)
        found = await state.ask(request, asking.Locate(model), given)
        results = await state.prepare(prepare.located, model.predictor, asked, size, found)
        return schemas.LocateResponse(model=model.name, results=results)

    return router


def _add_ability(router: APIRouter, state: ServerState, ability: Ability) -> None:
    """The endpoint of an ability that the head of a task has."""
    asked_for, (told, written) = schemas.request_of(ability), schemas.response_of(ability)
    lists = [option.name for option in ability.options if option.kind == "texts"]

    async def endpoint(asked: Any, request: Request) -> Any:
        model = state.find(ability.name, asked.model)
        options = {option.name: getattr(asked, option.name) for option in ability.options}
        for name in lists:
            options[name] = None if options[name] is None else tuple(options[name])
            state.preparing.check_texts(options[name] or (), name)
        pictures = {picture.field: getattr(asked, picture.field) for picture in ability.pictures}
        texts = getattr(asked, ability.text.field) if ability.text is not None else ()
        given = await state.prepare(state.preparing.about, model.predictor, pictures, texts)
        found = await state.ask(request, asking.AskHead(model, ability.name, tuple(options.items())), given)
        return told.model_validate({"model": model.name, "results": [written(one) for one in found]})

    endpoint.__annotations__ = {"asked": asked_for, "request": Request, "return": told}
    router.add_api_route(
        f"/{ability.name}", endpoint, methods=["POST"], name=ability.name, description=ability.description,
        responses=documented(*BY_WORK),
    )  # fmt: skip


async def _search(state: ServerState, asked: schemas.SearchRequest, request: Request) -> schemas.SearchResponse:
    if state.index is None or state.index_of is None:
        raise ApiError("no_index", "this server has nothing to search: start it with --index PLACE")
    model = state.index_of
    if not state.index.counts.get(asked.of):
        raise ApiError("refused", f"the index holds no {asked.of}s")
    if asked.rerank and (asked.text is None) == (asked.of == "picture"):
        raise ApiError("refused", "re-ranking judges pictures with texts: by text it takes of=picture, else of=text")
    if asked.rerank and (why := model.predictor.missing("match")):
        raise ApiError("not_trained", why)
    texts = [] if asked.text is None else [asked.text]
    pictures = [] if asked.picture is None else [asked.picture]
    given = await state.prepare(state.preparing.listed, model.predictor, pictures, texts, "picture", "text")
    try:
        found = await state.batcher.ask(
            asking.Search(state.index, asked.k, asked.of, asked.rerank), given, request.state.coming
        )
    except ValueError as error:  # what a client can do wrong was checked: this is the index, and may name its files
        raise RuntimeError("the index could not be searched") from error
    hits = [
        schemas.FoundItem(id=hit.id, kind=hit.kind, text=hit.text, similarity=hit.similarity, match=hit.match)
        for hit in found.hits
    ]
    return schemas.SearchResponse(
        model=model.name, hits=hits, searched=found.searched, how=found.how, unknown_words=list(found.unknown_words)
    )
