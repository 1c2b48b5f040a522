"""The routes: an application over a scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response

import jakiro
from jakiro.engine.scheduler import Scheduler
from jakiro.serve import errors, site
from jakiro.serve.answers import (
    ERRORS,
    ChatAnswer,
    Health,
    Model,
    Models,
    Text,
    TextAnswer,
    TokenList,
    Version,
)
from jakiro.serve.errors import ApiError
from jakiro.serve.forms import ChatForm, Form, Head, TextForm
from jakiro.serve.gate import Gate
from jakiro.serve.job import Job
from jakiro.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampled,
    TokenizeRequest,
)
from jakiro.serve.service import Service
from jakiro.serve.settings import Settings
from jakiro.serve.stream import EventStream, events, whole
from jakiro.serve.tokens import Tokens


def create_app(scheduler: Scheduler, settings: Settings) -> FastAPI:
    """The application. Whoever runs it closes ``scheduler``; when the application ends, what is
    left of it is ended. Raises ``ConfigError``."""
    service = Service(scheduler, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(scheduler.close)

    app = FastAPI(
        title="jakiro",
        version=jakiro.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    app.add_middleware(Gate, settings=settings)
    errors.install(app)
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, service)
    site.install(app)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    assert service.engine.tokenizer is not None
    tokens = Tokens(service.engine.tokenizer)
    chat_form, text_form = ChatForm(tokens), TextForm(tokens)

    async def answer(request: Request, asked: Sampled, job: Job, form: Form) -> Any:
        head = Head(job.job_id, job.created, service.settings.model_name, service.fingerprint)
        if asked.stream:
            return EventStream(job, events(job, asked, form, head, tokens))
        return await whole(request, job, form, asked, head)

    @app.post("/v1/chat/completions", response_model=ChatAnswer)
    async def chat(asked: ChatRequest, request: Request) -> Any:
        """Answer a conversation."""
        return await answer(request, asked, await service.chat(asked), chat_form)

    @app.post("/v1/completions", response_model=TextAnswer)
    async def complete(asked: CompletionRequest, request: Request) -> Any:
        """Go on with one or more texts."""
        return await answer(request, asked, await service.complete(asked), text_form)


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> TokenList:
        """The token ids of a text or a conversation."""
        service.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if asked.messages is not None:
            ids = await service.encode_conversation(asked.messages, asked.tools or ())
        else:
            ids = await service.encode(asked.prompt or "", asked.add_special_tokens)
        return TokenList(tokens=ids, count=len(ids), max_model_len=service.max_model_len)

    @app.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> Text:
        """The text of token ids."""
        service.check_model(asked.model)
        return Text(prompt=await service.decode(asked.tokens))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Models:
        """What is served: one model."""
        return Models(data=[_model(service)])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """One model by name."""
        service.check_model(name)
        return _model(service)

    @app.get("/health")
    async def health() -> Health:
        """200 while requests are taken, 503 after."""
        if not service.scheduler.is_open:
            raise errors.shutting_down()
        return Health()

    @app.get("/version")
    async def version() -> Version:
        """The version of the package."""
        return Version(version=jakiro.__version__)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _model(service: Service) -> Model:
    return Model(
        id=service.settings.model_name,
        created=service.created,
        max_model_len=service.max_model_len,
    )
