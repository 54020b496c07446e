"""Requests to an address that the user named, and to no other."""

from __future__ import annotations

from typing import Any
from urllib.request import BaseHandler, HTTPRedirectHandler, OpenerDirector, build_opener


class _Stays(HTTPRedirectHandler):
    """Follows no redirect: the answer is then an error with the redirect's code."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        """Refuse."""


def opener(*handlers: BaseHandler) -> OpenerDirector:
    """What opens a request, with further handlers of urllib, such as one that uses no proxy."""
    return build_opener(_Stays, *handlers)
