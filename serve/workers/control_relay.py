"""The supervisor's part in loading and unloading models: it asks the backend process for the workers."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fuseline.serve.errors import BackendLostError
from fuseline.serve.workers.error_text import text_from_error
from fuseline.serve.workers.supervised import SupervisedProcess

Message = dict[str, Any]


class _Question(NamedTuple):
    """What a worker has asked, and the backend has yet to answer."""

    asker: SupervisedProcess
    number: int
    """Number that the worker gave its question."""
    action: str
    name: str
    """Name of the model; empty if the question is for none."""


class ControlRelay:
    """Passes questions on to the backend process and its answers back, and remembers which models are to be loaded.

    So a backend process that is started again in the mode `explicit` loads what was loaded by request.
    """

    def __init__(self, backend: Callable[[], SupervisedProcess | None]) -> None:
        """`backend` returns the backend process; None: there is none, or it is not ready."""
        self._backend = backend
        self._numbers = itertools.count()
        self._questions: dict[int, _Question] = {}
        self.wanted: list[str] | None = None
        """Names of the models that are loaded now, or would be if there were a backend process; None: models
        come from a repository that is looked at, or no backend process was ready yet."""
        self.waiting: list[Any] = []
        """Index of a backend process that is not ready, as it can serve no model yet; empty: there is none."""

    def take(self, process: SupervisedProcess, message: Message) -> None:
        """Receive a message of the backend process, which is an answer, or of a worker, a question."""
        if process is self._backend():
            self._answer(message["number"], message)
        else:
            self._pass_on(process, message)

    def begin(self, names: Iterable[str] | None) -> None:
        """Learn, from a backend process that is ready, which models it has loaded, if it is the first; None: it follows
        the repository.
        """
        self.waiting = []
        if self.wanted is None and names is not None:
            self.wanted = list(names)

    def lose(self) -> None:
        """Answer what the backend process was asked: it has ended."""
        self.waiting = []
        for number in tuple(self._questions):
            self._answer(number, {"error": _lost()})

    def _pass_on(self, worker: SupervisedProcess, message: Message) -> None:
        its = {key: value for key, value in message.items() if key not in {"kind", "number"}}
        if (backend := self._backend()) is None and self.waiting and its["action"] == "index":
            worker.send_control(number=message["number"], error=None, entries=[] if its["ready"] else self.waiting)
            return
        if backend is None:
            worker.send_control(number=message["number"], error=_lost())
            return
        number = next(self._numbers)
        self._questions[number] = _Question(worker, message["number"], its["action"], its.get("name", ""))
        backend.send_control(number=number, **its)

    def _answer(self, number: int, answer: Message) -> None:
        if (question := self._questions.pop(number, None)) is None:
            return
        if answer["error"] is None:
            self._remember(question)
        its = {key: value for key, value in answer.items() if key not in {"kind", "number"}}
        # Dropped if the worker has ended.
        question.asker.send_control(number=question.number, **its)

    def _remember(self, question: _Question) -> None:
        if self.wanted is None:
            return
        if question.action == "load" and question.name not in self.wanted:
            self.wanted.append(question.name)
        elif question.action == "unload" and question.name in self.wanted:
            self.wanted.remove(question.name)


def _lost() -> str:
    return text_from_error(
        BackendLostError(
            "the process that has the models has ended and is being started again; ask for the index, and send the "
            "request again"
        )
    )
