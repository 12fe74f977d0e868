"""What a Python program calls; `fuseline` has its public names: `from fuseline import Client, AsyncClient`."""

from fuseline.serve.client.answers import Answer, ImageAnswer, Prediction, StreamAnswer
from fuseline.serve.client.async_client import AsyncClient
from fuseline.serve.client.client import DEFAULT_ADDRESS, Client
from fuseline.serve.client.requests import ImageLike

__all__ = [
    "DEFAULT_ADDRESS",
    "Answer",
    "AsyncClient",
    "Client",
    "ImageAnswer",
    "ImageLike",
    "Prediction",
    "StreamAnswer",
]
