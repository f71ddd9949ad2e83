"""Several models fused: a white-box model again, so that anything that decodes one decodes them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pilotfish.decoding.bridge import PROMPT, Bridged, in_vocabulary
from pilotfish.decoding.fusion import Fusion, PromptFusion
from pilotfish.errors import ContextLengthError, InputError
from pilotfish.models.sessions import ArrayLogits
from pilotfish.protocols import Logits, LogProbs, Session, Tokenizer, WhiteBoxModel
from pilotfish.types import Request

__all__ = ["Fused", "FusedSession", "begin"]

View = Callable[[Request], Request]
Gate = Callable[[LogProbs], NDArray[np.bool_]]


def begin(target: WhiteBoxModel, request: Request) -> tuple[Session, list[int], int]:
    """A session of a model for a request, the tokens that it must read first, and how many may follow.

    Raises
    ------
    ContextLengthError
        When the prompt leaves no room in the model's window.
    InputError
        When there is no prompt.
    """
    session: Session
    if isinstance(target, Fused):
        session, prompt = target.begin(request)
    else:
        session, prompt = target.session(), target.tokenizer.encode_request(request)
    if not prompt:
        raise InputError("The prompt is empty, and the model needs a token to begin with: give some text.")
    room = target.window - len(prompt)
    if room < (request.max_tokens != 0):
        raise ContextLengthError(
            f"The prompt has {len(prompt)} tokens, but the window has {target.window}, reply included: shorten it."
        )
    return session, prompt, room if request.max_tokens is None else min(room, request.max_tokens)


class FusedSession:
    """The sessions of several models, read together.

    A gated session leaves the other models behind where the first is sure, and lets them catch up in one pass when
    they are needed again.

    Parameters
    ----------
    sessions : mapping of str to Session
        By role.
    fusion : Fusion
        Fuses what they expect.
    prompts : mapping of str to sequence of int
        What a role reads in the place of the first prompt.
    gate : callable, optional
        From the first role's log-probabilities to the places (n,) where the others are asked.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        fusion: Fusion,
        prompts: Mapping[str, Sequence[int]] | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.sessions = dict(sessions)
        self.fusion = fusion
        self.prompts = {role: list(tokens) for role, tokens in (prompts or {}).items()}
        self.gate = gate
        self._text: list[int] = []
        self._n_prompt = 0

    @property
    def n_tokens(self) -> int:
        """How many tokens it has read."""
        return len(self._text)

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> Logits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them."""
        main, *others = self.fusion.roles
        n_last = n_last or len(tokens)
        first = self.sessions[main].extend(tokens, n_last)
        if not self._text:
            self._n_prompt = len(tokens) - n_last + 1
        self._text.extend(tokens)
        own = first.log_probs()
        asked = np.ones(n_last, dtype=bool) if self.gate is None else self.gate(own)
        if not asked.any():
            return ArrayLogits(own)
        log_probs = {main: own} | {role: self._catch_up(role, n_last, own.shape[1]) for role in others}
        fused = self.fusion.fuse(log_probs)
        return ArrayLogits(fused if asked.all() else np.where(asked[:, None], fused, own))

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens."""
        self.sessions[self.fusion.roles[0]].rewind(n)
        del self._text[len(self._text) - n :]
        for role in self.fusion.roles[1:]:
            self.sessions[role].rewind(max(0, self.sessions[role].n_tokens - len(self._wanted(role))))

    def fork(self) -> FusedSession:
        """Copy the state."""
        sessions = {role: session.fork() for role, session in self.sessions.items()}
        twin = FusedSession(sessions, self.fusion, self.prompts, self.gate)
        twin._text, twin._n_prompt = list(self._text), self._n_prompt
        return twin

    def _wanted(self, role: str) -> list[int]:
        prompt = self.prompts.get(role)
        return self._text if prompt is None else [*prompt, *self._text[self._n_prompt :]]

    def _catch_up(self, role: str, n_last: int, n_vocabulary: int) -> LogProbs:
        session, wanted = self.sessions[role], self._wanted(role)
        # A gate may ask late for places that were read already: they are read again.
        session.rewind(max(0, session.n_tokens - (len(wanted) - n_last)))
        logs = session.extend(wanted[session.n_tokens :], n_last).log_probs()[:, :n_vocabulary]
        n_more = n_vocabulary - logs.shape[1]
        return np.pad(logs, ((0, 0), (0, n_more)), constant_values=-np.inf) if n_more else logs


class Fused:
    """Several models that decode together.

    Parameters
    ----------
    fusion : Fusion
        How.
    models : mapping of str to WhiteBoxModel
        By role; one of another vocabulary than the first role's is bridged.
    views : mapping of str to callable
        What a role is asked in the place of the request, such as the same without its context.
    gate : float, optional
        Ask the further models only where the first gives its likeliest token less than this probability.

    Raises
    ------
    InputError
        When a role is missing, unknown or no white-box model.

    Examples
    --------
    >>> from pilotfish.decoding.fusion import Contrastive
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> large, small = NGramModel(4, "char").fit(texts), NGramModel(2, "char").fit(texts)
    >>> fused = Fused(Contrastive(), {"expert": large, "amateur": small})
    >>> session = fused.session()
    >>> fused.tokenizer.decode(session.extend(fused.tokenizer.encode("my c"), 1).best())
    'a'
    """

    def __init__(
        self,
        fusion: Fusion,
        models: Mapping[str, WhiteBoxModel],
        *,
        views: Mapping[str, View] | None = None,
        gate: float | None = None,
    ) -> None:
        if not hasattr(fusion, "roles"):
            raise InputError(f"fusion is {fusion!r}: give a fusion, such as Contrastive().")
        if set(models) != set(fusion.roles):
            raise InputError(
                f"fuse has the roles {', '.join(sorted(models)) or 'none'}: {type(fusion).__name__} needs "
                f"{', '.join(fusion.roles)}."
            )
        for role, model in models.items():
            if not hasattr(model, "session"):
                raise InputError(f"Role {role!r} has a {type(model).__name__}: give a white-box model.")
        if unknown := sorted(set(views or {}) - set(fusion.roles)):
            raise InputError(
                f"views has the role {unknown[0]!r}: {type(fusion).__name__} has {', '.join(fusion.roles)}."
            )
        if gate is not None and not 0 < gate <= 1:
            raise InputError(f"gate is {gate}: give a probability above 0 and at most 1.")
        self.fusion = fusion
        self.models = dict(models)
        self.views = dict(views or {})
        self.gate = gate
        self._fitted: dict[str, WhiteBoxModel] | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the first role."""
        return self.models[self.fusion.roles[0]].tokenizer

    @property
    def window(self) -> int:
        """The shortest of the models' windows."""
        return min(model.window for model in self.models.values())

    def first_layers(self, n_layers: int) -> WhiteBoxModel:
        """The first layers of the first role's model, which may draft for all.

        Raises
        ------
        InputError
            When it cannot be cut.
        """
        cut = getattr(self.models[self.fusion.roles[0]], "first_layers", None)
        if cut is None:
            raise InputError("The first role's model cannot stop at an early layer: give a TransformersModel.")
        made: WhiteBoxModel = cut(n_layers)
        return made

    def session(self) -> FusedSession:
        """Begin a text that every model reads as it is."""
        return self._session(self.fusion, {}, {})

    def begin(self, request: Request) -> tuple[FusedSession, list[int]]:
        """Begin a reply: every model reads the request, or its own view of it."""
        prompt = self.tokenizer.encode_request(self._seen(self.fusion.roles[0], request))
        prompts: dict[str, list[int]] = {}
        own: dict[str, list[int]] = {}
        for role in self.fusion.roles[1:]:
            model = self._parts()[role]
            if isinstance(model, Bridged):
                own[role] = model.model.tokenizer.encode_request(self._seen(role, request))
                prompts[role] = [PROMPT]
            elif role in self.views:
                prompts[role] = model.tokenizer.encode_request(self._seen(role, request))
        fusion = self.fusion
        if isinstance(fusion, PromptFusion):
            fusion = fusion.begin({role: self._asked(role, request) for role in fusion.roles})
        return self._session(fusion, prompts, own), prompt

    def _asked(self, role: str, request: Request) -> list[int]:
        """The messages that a role reads, in the first role's tokens whatever its own are."""
        return [
            token for message in self._seen(role, request).messages for token in self.tokenizer.encode(message.text)
        ]

    def _seen(self, role: str, request: Request) -> Request:
        return self.views[role](request) if role in self.views else request

    def _session(
        self, fusion: Fusion, prompts: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]
    ) -> FusedSession:
        sessions: dict[str, Session] = {
            role: model.session(own.get(role, ())) if isinstance(model, Bridged) else model.session()
            for role, model in self._parts().items()
        }
        least = None if self.gate is None else float(np.log(self.gate))
        gate: Gate | None = None if least is None else (lambda logs: logs.max(axis=1) < least)
        return FusedSession(sessions, fusion, prompts, gate)

    def _parts(self) -> dict[str, WhiteBoxModel]:
        if self._fitted is None:
            main = self.tokenizer
            self._fitted = {role: in_vocabulary(model, main) for role, model in self.models.items()}
        return self._fitted
