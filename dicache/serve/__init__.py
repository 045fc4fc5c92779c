"""A pipeline for many requests at once: an engine, and a server around it. Imported only when used; the server needs
`pip install 'dicache[serve]'`.
"""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.serve.engine import Engine as Engine
    from dicache.serve.http_server import app as app
    from dicache.serve.replicas import deployment as deployment

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.serve.http_server": ("app",),
        "dicache.serve.replicas": ("deployment",),
        "dicache.serve.engine": ("Engine",),
    },
)
