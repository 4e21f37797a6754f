"""Addresses of servers: chosen when they answer, shown without what is secret in them."""

import os
import re

ANSWER_S = 5.0


def without_password(text: str) -> str:
    """``text`` with user and password of every address in it replaced by ``***``."""
    return re.sub(r"//[^@/\s]*@", "//***@", text)


def link_base(uri: str) -> str | None:
    """Address of the MLflow UI behind a tracking address, without a password; None for a store without a server."""
    return re.sub(r"//[^@/\s]*@", "//", uri).rstrip("/") if uri.startswith("http") else None


def choose_prefect() -> str:
    """The Prefect server of this process in words; the embedded one when ``PREFECT_API_URL`` does not answer.

    Call it before Prefect is imported: it reads its address then.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return "embedded (no PREFECT_API_URL)"
    import httpx

    try:
        if httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_S).status_code < 500:
            return without_password(url)
    except httpx.HTTPError:
        pass
    del os.environ["PREFECT_API_URL"]
    return f"embedded, because {without_password(url)} does not answer"
