"""PEARL (Liu et al., arXiv 2408.11850): a draft model that writes in a process of its own while the
target verifies, so that neither waits for the other.

*Post-verify*: while a chain is verified, the model writes on behind it. If all of it is accepted
and the target's next token is the first of what was written meanwhile, the rest of that is the next
chain. *Pre-verify*: where nothing is left to verify, the target goes on alone by one token while
the model writes; if its first token is the target's, what follows it is the next chain.

Neither is a mode here: a draft is what stands ready behind the committed text, maybe nothing, and
the process is told the text. How long a draft is follows from how fast the two are. No coin is
tossed twice, for none is tossed: whatever was drafted, the target chooses by the noise of the
position, which the process knows too.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Protocol
from weakref import finalize

import torch
from torch import Tensor

from jakiro.drafters.ahead import Ahead, Begin, Follow, Guess, Keep, Message, Told
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import DrafterFailed
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import chain, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

_END_S = 5.0
"""How long the process may take to end before it is killed."""


class Link(Protocol):
    """The way to the one that writes ahead."""

    def send(self, message: Message) -> None:
        """Tell it. Raises ``DrafterFailed``."""

    def guesses(self) -> dict[int, Guess]:
        """The last it said of every row, at once. Raises ``DrafterFailed``."""


@dataclass
class _Mail:
    """What has come from the process, apart from the ``Helper``, so that the thread that reads it
    does not keep that alive."""

    guesses: dict[int, Guess] = field(default_factory=dict)
    ended: str = ""

    def read(self, line: Connection) -> None:
        """Until the other side ends."""
        with suppress(EOFError, OSError):
            while True:
                found = pickle.loads(line.recv_bytes())
                if isinstance(found, str):
                    self.ended = found
                    return
                self.guesses = found
        self.ended = "it ended without a word"


class Helper:
    """An ``Ahead`` in a process of its own, with ``num_threads`` threads, which ends when this
    object, or the process that made it, does. An interrupt from the keyboard does not reach it.

    Raises ``DrafterFailed`` unless it starts.
    """

    def __init__(self, model: Target, vocab_size: int, num_threads: int = 1) -> None:
        self._line, theirs = Pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        command = f"from jakiro.drafters.pearl import work; work({theirs.fileno()}, {num_threads})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        theirs.close()
        self._mail = _Mail()
        self.close = finalize(self, _end, self._line, self._process)
        try:
            self._line.send_bytes(pickle.dumps((*_parts(model), vocab_size)))
            self._mail.guesses = _checked(pickle.loads(self._line.recv_bytes()))
        except (EOFError, OSError) as error:
            raise DrafterFailed(
                "the process that drafts did not start; see what it said"
            ) from error
        Thread(target=self._mail.read, args=(self._line,), daemon=True).start()

    def send(self, message: Message) -> None:
        self.guesses()
        try:
            self._line.send_bytes(pickle.dumps(message))
        except OSError as error:
            raise DrafterFailed("the process that drafts has ended; ask again") from error

    def guesses(self) -> dict[int, Guess]:
        return _checked(self._mail.ended or self._mail.guesses)


def _parts(model: Target) -> tuple[type, Any, dict[str, Tensor]]:
    """What ``_joined`` makes the same model of; the hooks of a model in use do not travel."""
    return type(model.model), model.config, model.model.state_dict()


def _joined(kind: type, config: Any, weights: dict[str, Tensor]) -> Target:
    model = kind(config)
    model.load_state_dict(weights, assign=True)
    device = next(iter(weights.values())).device
    return Target(model.to(device).eval().requires_grad_(False))


def _checked(found: dict[int, Guess] | str) -> dict[int, Guess]:
    if isinstance(found, str):
        raise DrafterFailed(
            f"the process that drafts failed: {found}. The next request starts another; if it "
            "fails again, use the draft model without it"
        )
    return found


def _end(line: Connection, process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        line.send_bytes(pickle.dumps(None))
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def work(place: int, num_threads: int) -> None:
    """What the process does: read the model from the open file ``place``, then be an ``Ahead``
    until told to end, or the other side is gone."""
    line = Connection(place)
    torch.set_num_threads(num_threads)
    try:
        *parts, vocab_size = pickle.loads(line.recv_bytes())
        ahead = Ahead(_joined(*parts), vocab_size)
        line.send_bytes(pickle.dumps({}))
        with torch.inference_mode():
            while True:
                while not ahead.is_busy or line.poll():
                    message = pickle.loads(line.recv_bytes())
                    if message is None:
                        return
                    ahead.tell(message)
                line.send_bytes(pickle.dumps(ahead.step()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        line.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))


@dataclass
class _Row:
    key: int
    text: list[int]
    """Committed, the root of the next tree not included."""
    num_told: int = 0


class Pearl(Drafter):
    """Chains of what ``model`` has written ahead, at most as deep as the plan.

    ``start`` makes the ``Link`` to one that does; it is called when the first row begins, and again
    after a failure: the new one is told of all rows.
    """

    name = "pearl"
    plan = TreePlan.chain(8)

    def __init__(
        self, model: Target, target: Target, start: Callable[[Target, int], Link] = Helper
    ) -> None:
        self.num_parameters = model.num_parameters
        self._start = partial(start, model, target.vocab_size)
        self._link: Link | None = None
        self._keys = count()
        self._rows: list[_Row] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self._connect()
        row = _Row(next(self._keys), list(ids))
        self._tell(row)
        self._rows.append(row)

    def draft(self, request: DraftRequest) -> TokenTree:
        self._connect()
        assert self._link is not None
        limit = min(request.plan.depth, request.plan.budget)
        try:
            found = self._link.guesses()
        except DrafterFailed:
            self._link = None
            raise
        chains, told = [], []
        roots = zip(self._rows, request.roots.tolist(), request.depth_caps, strict=True)
        for row, root, cap in roots:
            text = [*row.text, root]
            ready = _behind(found.get(row.key), text)[: min(cap, limit)]
            # Behind the chain one for the target's own next token, then the next chain.
            reach = len(text) + min(cap, len(ready) + 1 + limit)
            told.append(Told(row.num_told, text[row.num_told :], reach))
            row.num_told = len(row.text)
            chains.append(chain([root, *ready]))
        self._send(Follow(told, request.noise))
        return stack(chains, request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, tokens, path in zip(self._rows, tree.tokens.tolist(), verdict.paths, strict=True):
            row.text += [tokens[node] for node in path]

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        if self._link is not None:
            self._send(Keep([row.key for row in self._rows]))

    def _connect(self) -> None:
        """Start one that writes ahead of all rows, unless there is one."""
        if self._link is None:
            self._link = self._start()
            for row in self._rows:
                self._tell(row)

    def _tell(self, row: _Row) -> None:
        """Tell it of a row it does not know."""
        self._send(Begin(row.key, list(row.text)))
        row.num_told = len(row.text)

    def _send(self, message: Message) -> None:
        assert self._link is not None, "there is one to tell"
        try:
            self._link.send(message)
        except DrafterFailed:
            self._link = None
            # Rows that leave because of a failure have nothing more to lose.
            if not isinstance(message, Keep):
                raise


def _behind(guess: Guess | None, text: list[int]) -> list[int]:
    """What ``guess`` says comes after ``text``; nothing, if it took the text for another."""
    if guess is None:
        return []
    known = len(text) - guess.start
    return guess.tokens[known:] if guess.tokens[:known] == text[guess.start :] else []
