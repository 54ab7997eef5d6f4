"""POST /reconstruct, for the page and for programs: what the codes keep of a picture, which is in the request itself.

Contract: {"picture": a data URL or base64} gives the facts of a `Reconstruction`, its picture and the grid of its codes
as colours, PNGs as data URLs.
What is wrong is {"detail": a sentence}: 422, and 429 where a visitor asks too often or too many wait. One picture is
worked off at a time, and those in line hold no thread.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from dalle_mini.pictures import data_url, from_base64
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.refusals import QueueFullError, RefusedError
from dalle_mini.web.limits import visitor_at


def reconstruct_route(pipeline: Pipeline) -> APIRouter:
    router, turn, here = APIRouter(), asyncio.Lock(), 0

    def answer(picture: str) -> dict[str, Any]:
        found = pipeline.reconstruct(from_base64(picture, pipeline.resolution))
        return found.facts() | {"picture": data_url(found.picture, "PNG"), "grid": data_url(found.grid(), "PNG")}

    @router.post("/reconstruct")
    async def reconstruct(request: Request, picture: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        nonlocal here
        try:
            if here >= pipeline.scheduler.capacity:
                raise QueueFullError(here, None)
            with pipeline.limits.admit(visitor_at(request.client.host if request.client else "")):
                here += 1
                try:
                    async with turn:
                        return await run_in_threadpool(answer, picture)
                finally:
                    here -= 1
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except RefusedError as error:
            raise HTTPException(429, str(error)) from None

    return router
