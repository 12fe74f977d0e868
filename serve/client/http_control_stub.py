"""The model control of the Open Inference Protocol over HTTP.

It is apart from `HttpStub`, which every client imports: a process that uses Triton's client too can't have the messages
of this protocol twice.
"""

import json
from urllib.parse import quote

from google.protobuf.json_format import ParseDict, ParseError

from fuseline.protos.open_inference_pb2 import (
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
)
from fuseline.serve.client.http_stub import HttpStub
from fuseline.serve.errors import InputError


class HttpControlStub(HttpStub):
    """Stands in for gRPC's stub where models are listed, loaded and unloaded."""

    def RepositoryIndex(  # noqa: N802
        self, request: RepositoryIndexRequest, timeout: float | None
    ) -> RepositoryIndexResponse:
        """List the versions that are known of each model."""
        body = json.dumps({"ready": request.ready}).encode()
        answer = self.call("POST", "/v2/repository/index", body, {}, timeout)
        try:
            return ParseDict({"models": json.loads(answer)}, RepositoryIndexResponse(), ignore_unknown_fields=True)
        except (ValueError, ParseError) as error:
            raise InputError(f"what {self.address} answers is no index of models") from error

    def RepositoryModelLoad(  # noqa: N802
        self, request: RepositoryModelLoadRequest, timeout: float | None
    ) -> RepositoryModelLoadResponse:
        """Load a model, or what its folder has now."""
        self.call("POST", f"/v2/repository/models/{quote(request.model_name, safe='')}/load", b"", {}, timeout)
        return RepositoryModelLoadResponse()

    def RepositoryModelUnload(  # noqa: N802
        self, request: RepositoryModelUnloadRequest, timeout: float | None
    ) -> RepositoryModelUnloadResponse:
        """Unload a model."""
        self.call("POST", f"/v2/repository/models/{quote(request.model_name, safe='')}/unload", b"", {}, timeout)
        return RepositoryModelUnloadResponse()
