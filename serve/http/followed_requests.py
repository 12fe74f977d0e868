"""Requests over HTTP that the page follows."""

from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.serve.feed.followed import FollowedRequest, followed_key
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.http.call_of_scope import REQUEST_ID, TRACE


def followed(app: ASGIApp, source: FeedSource) -> ASGIApp:
    """Return `app`, of whose requests those are told to `source` in full that ask for it by their id."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if source.is_watched and (key := followed_key(scope.get(REQUEST_ID, ""))) is not None:
            scope[TRACE] = FollowedRequest(source, scope[REQUEST_ID], key, scope.get(TRACE))
        await app(scope, receive, send)

    return application
