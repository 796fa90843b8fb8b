"""Whether a patient's consent lets a request pass: asked at each request, within its deadline, never remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Protocol

import gevent
import structlog

from gateway.config.check_consent import CONSENT_GROUP
from gateway.context import Principal
from gateway.errors import ConsentUnavailable, GatewayError
from gateway.portal.resource import claims_of
from gateway.rbac.consent import Hook, Question
from gateway.routing.model import Consent
from gateway.store.pipeline import StatementFailed

log = structlog.get_logger()


class Asking(Protocol):
    """Who is asked for a consent: Consents, or what stands in for it where a request is only explained."""

    def permits(self, consent: Consent, question: Question, principal: Principal, deadline_ns: int) -> bool:
        """Raises: ConsentUnavailable if there is no answer in time. Yields to the hub: until there is one."""


AskFunction = Callable[[str, Question, bytes, int], bool]


class Consents:
    """Asks hooks, and functions of the portal database."""

    def __init__(self, ask: AskFunction, hooks: Mapping[str, Hook]) -> None:
        """Shapes: `ask(function, question, claims, deadline_ns)`, see portal.consent; `hooks` by name."""
        self._ask = ask
        self._hooks = hooks

    def permits(self, consent: Consent, question: Question, principal: Principal, deadline_ns: int) -> bool:
        """Raises: ConsentUnavailable if there is no answer in time. Yields to the hub: until there is one."""
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise ConsentUnavailable()
        late = gevent.Timeout(left_s)
        late.start()
        try:
            if consent.function is not None:
                return self._ask(consent.function, question, claims_of(principal), deadline_ns)
            # SEC: only True itself permits, not whatever else is true of.
            return self._hooks[consent.hook or ""](question, deadline_ns) is True
        except gevent.Timeout as expired:
            if expired is not late:
                raise
            raise ConsentUnavailable() from None
        except (GatewayError, StatementFailed) as error:
            log.warning("consent.unavailable", hook=consent.name, error=type(error).__name__)
            raise ConsentUnavailable() from None
        except Exception as error:
            # SEC: what a hook says of its failure may be of a patient.
            log.error("consent.failed", hook=consent.name, error=type(error).__name__)
            raise ConsentUnavailable() from None
        finally:
            late.close()


def consent_hooks() -> dict[str, Hook]:
    """The hooks that installed distributions offer; of a class, an instance. Raises: what loading one raises."""
    loaded = {point.name: point.load() for point in metadata.entry_points(group=CONSENT_GROUP)}
    return {name: found() if isinstance(found, type) else found for name, found in loaded.items()}
