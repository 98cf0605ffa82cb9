"""Sites of `server_memory` that train nothing: each answers with an update of its own, one site after another.

They speak through the hospital's own connection, so the centre cannot tell them from hospitals. Their own memory is
not what is measured.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedward_client.connection import tls_context
from fedward_client.flower_adapter import FleetConnection, Incoming, WireLimits, open_fleet
from fedward_common import __version__
from fedward_common.certificates import load_node_key
from fedward_common.flower_adapter import assume_identity
from fedward_common.models import ParameterSpec, parameter_spec
from fedward_common.study import Study
from fedward_common.wire import Enrolment, Update, write_enrolment, write_update

__all__ = ["Sites"]

_PATIENTS = 100


class Sites:
    """Answers in the name of every site until it is told to stop.

    Args:
        study: the contract.
        address: the SuperLink's public one.
        ca: PEM file of its authority.
        keys: each site's key file.
        stock: answer Flower's FedAvg, which sends and takes float32 arrays.
    """

    def __init__(self, study: Study, address: str, ca: Path, keys: Mapping[str, Path], *, stock: bool) -> None:
        self._study, self._spec = study, parameter_spec(study)
        self._address, self._ca, self._keys = address, ca, dict(keys)
        self._stock = stock
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sites", daemon=True)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answer in a thread inside the ``with``.

        Raises:
            RuntimeError: a site failed.
        """
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
        if self._error is not None:
            msg = "a site failed"
            raise RuntimeError(msg) from self._error

    @property
    def failed(self) -> bool:
        """Whether a site has failed, so that nobody needs to wait for it."""
        return self._error is not None

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                tls = tls_context(self._ca)
                limits = WireLimits(message_bytes=1 << 40, objects=1 << 20)
                connections = [
                    stack.enter_context(
                        open_fleet(self._address, tls, load_node_key(path), self._stop, limits=limits, wait_s=0.0)
                    )
                    for path in self._keys.values()
                ]
                while not self._stop.wait(0.02):
                    for number, (site, connection) in enumerate(zip(self._keys, connections, strict=True), start=1):
                        self._serve(number, site, connection)
        except BaseException as error:  # noqa: BLE001  (told to the thread that waits)
            self._error = None if self._stop.is_set() else error

    def _serve(self, number: int, site: str, connection: FleetConnection) -> None:
        incoming = connection.receive()
        if incoming is None:
            return
        head = incoming.head.metadata
        assume_identity(run=head.run_id, node=connection.node_id)
        connection.fetch(incoming)
        connection.reply(Message(self._content(number, site, incoming), reply_to=incoming.head), 0.0)

    def _content(self, number: int, site: str, incoming: Incoming) -> RecordDict:
        head = incoming.head.metadata
        if self._stock:
            arrays = ArrayRecord({name: Array(array) for name, array in _floats(self._spec, number).items()})
            return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": _PATIENTS})})
        if head.message_type.startswith("query"):
            return write_enrolment(Enrolment(site, self._study.digest, _PATIENTS, __version__))
        values = np.arange(self._spec.size, dtype=np.int64)
        values %= 1 << 16
        values += number
        return write_update(Update(site, self._study.digest, int(head.group_id), _PATIENTS, 0, values, {}))


def _floats(spec: ParameterSpec, number: int) -> dict[str, npt.NDArray[np.float32]]:
    vector: npt.NDArray[np.float32] = np.arange(spec.size, dtype=np.float32)
    vector *= 1e-9
    vector += number
    return spec.split(vector)
