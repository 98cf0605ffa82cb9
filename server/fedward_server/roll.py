"""The roll call: who takes part, who may be asked again later, and who said no."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from flwr.app import Message

from fedward_common.errors import RefusalCode, RejectedReply
from fedward_common.study import Study
from fedward_common.wire import Enrolment, read_enrolment, refusing_site
from fedward_server.replies import NO_REPLY, reason_of, refusal_code, refused_for_good

__all__ = ["NOT_CONNECTED", "RollCall", "Roster", "may_come", "read_answer"]

Roster = Mapping[int, str]
"""Site names by node."""

NOT_CONNECTED = "not_connected"


def read_answer(
    study: Study, roster: Roster | None, node: int, reply: Message, seated: Iterable[Enrolment]
) -> Enrolment:
    """Return what a node says to the roll call.

    Args:
        study: the contract.
        roster: site names by node; None: nodes have no keys.
        node: who was asked.
        reply: its answer.
        seated: the enrolments of other nodes.

    Raises:
        RejectedReply: it refuses, or speaks for a site that it may not speak for.
    """
    refusal = reason_of(reply)
    if refusal:
        check = "refused"
        raise RejectedReply(check, refusal)
    enrolment = read_enrolment(reply.content)
    check = "enrolment"
    if roster is not None and roster[node] != enrolment.site:
        raise RejectedReply(check, f"{check}: the node enrols under another site's name")
    if enrolment.site not in study.sites or enrolment.digest != study.digest:
        raise RejectedReply(check, f"{check}: not a site of this study")
    if enrolment.site in map(attrgetter("site"), seated):
        raise RejectedReply(check, f"{check}: a second node under one name")
    return enrolment


@dataclass
class RollCall:
    """The first roll call of a run.

    A node without a place in the roster can only speak for itself: what it says in the name of a site that enrolled
    from another node counts as said by ``node N``.

    Args:
        study: the contract.
        roster: site names by node; None: nodes have no keys.
        nodes: who was asked.
    """

    study: Study
    roster: Roster | None
    nodes: Iterable[int]
    enrolments: dict[int, Enrolment] = field(default_factory=dict)
    _rejected: list[tuple[int, str, RejectedReply]] = field(default_factory=list)

    def take(self, node: int, reply: Message) -> None:
        """Note what a node says."""
        try:
            self.enrolments[node] = read_answer(self.study, self.roster, node, reply, self.enrolments.values())
        except RejectedReply as error:
            self._rejected.append((node, self._name(node, reply), error))

    def outcome(self) -> tuple[dict[str, str], set[str]]:
        """Return why each site that is not seated is out, and the sites among them that may be asked again later."""
        excluded: dict[str, str] = {}
        enrolled = {e.site for e in self.enrolments.values()}
        away: set[str] = set()
        if self.roster is not None:
            answered = set(self.enrolments) | {node for node, _, _ in self._rejected}
            excluded |= {self.roster[node]: NO_REPLY for node in self.nodes if node not in answered}
        for node, name, error in self._rejected:
            excluded[f"node {node}" if name in enrolled else name] = str(error)
            if may_come(error) and name not in enrolled:
                away.add(name)
        for site in set(self.study.sites) - enrolled:
            if excluded.setdefault(site, NOT_CONNECTED) in {NOT_CONNECTED, NO_REPLY}:
                away.add(site)
        return excluded, away & set(self.study.sites)

    def _name(self, node: int, reply: Message) -> str:
        """Return the site behind a node, for a report: the roster's word, else its own if the study knows it."""
        if self.roster is not None:
            return self.roster[node]
        claimed = "" if reply.has_error() else refusing_site(reply.content)
        return claimed if claimed in self.study.sites else f"node {node}"


def may_come(error: RejectedReply) -> bool:
    """Return whether a site that said this to a roll call may say yes to a later one."""
    if error.check != "refused":
        return False
    return not refused_for_good(error) or refusal_code(error) == RefusalCode.AWAITING_APPROVAL
