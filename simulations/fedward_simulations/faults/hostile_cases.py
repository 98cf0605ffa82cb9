"""Hostile bundles and messages that somebody thought of, each with the code that a site must answer with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward_common.errors import RefusalCode
from fedward_common.signing import public_text
from fedward_common.study_file import Signature
from fedward_common.wire import PROTOCOL
from fedward_simulations.faults import flower_adapter as wire
from fedward_simulations.faults import hostile_makers as of
from fedward_simulations.faults.attack import AUTHOR, STUDY, Case, Make
from fedward_simulations.faults.superlink import FOREIGN_RUN, Raw
from fedward_simulations.faults.target import COHORT, NODE, hostile_study

__all__ = ["CASES", "ODD", "OUTAGES"]

_STRANGER: Final = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
_OTHER: Final = hostile_study(seed=2)
_SIGNED: Final = {"require_signature": True}
_C: Final = RefusalCode

_BUNDLES: Final[Mapping[str, Case]] = {
    "foreign_code_in_the_bundle": Case(_C.BUNDLE_NOT_PINNED, of.told(run_id=FOREIGN_RUN)),
    "bundle_of_foreign_code_under_the_pinned_digest": Case(
        _C.BUNDLE_NOT_PINNED, of.told(run_id=FOREIGN_RUN), prepare=of.lied_about_bundle
    ),
    "bundle_that_is_empty": Case(
        _C.BUNDLE_NOT_PINNED, of.told(run_id=99), prepare=lambda t: t.superlink.raw.update({"get-fab": Raw(b"")})
    ),
}

_ORDER: Final[Mapping[str, Case]] = {
    "replayed_round": Case(_C.ROUND_REPLAYED, lambda t: t.task(1, moved=1.0), prepare=of.trained(1)),
    "stale_round": Case(_C.ROUND_REPLAYED, lambda t: t.task(2), prepare=of.trained(1, 3)),
    "round_beyond_the_study": Case(_C.ROUND_OUT_OF_RANGE, of.headed(round=10_001), prepare=of.trained()),
    "round_below_zero": Case(_C.ROUND_OUT_OF_RANGE, of.headed(round=-1), prepare=of.trained()),
    "round_of_64_bits": Case(_C.ROUND_OUT_OF_RANGE, of.headed(round=(1 << 63) - 1), prepare=of.trained()),
    "round_before_the_roll_call": Case(_C.BUDGET_EXCEEDED, lambda t: t.task(1)),
}

_ROUTES: Final[Mapping[str, Case]] = {
    "wrong_sender": Case(_C.MESSAGE_INVALID, of.told(src_node_id=2)),
    "sender_is_the_site_itself": Case(_C.MESSAGE_INVALID, of.told(src_node_id=NODE)),
    "wrong_receiver": Case(_C.MESSAGE_INVALID, of.told(dst_node_id=NODE + 1)),
    "type_evaluate": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.told(message_type="evaluate")),
    "type_with_an_action": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.told(message_type="train.shell")),
    "type_of_flower_s_own": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.told(message_type="reconnect")),
    "type_that_flower_does_not_know": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.told(message_type="shell")),
    "announcement_without_metadata": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.headless),
    "type_that_is_empty": Case(_C.MESSAGE_TYPE_NOT_ALLOWED, of.told(message_type="")),
}

_SIGNATURES: Final[Mapping[str, Case]] = {
    "unsigned": Case(_C.STUDY_UNSIGNED, of.signed(), _SIGNED),
    "signature_of_another_key": Case(_C.SIGNER_UNKNOWN, of.signed(of.signature(_STRANGER)), _SIGNED),
    "signature_of_other_bytes": Case(_C.SIGNATURE_INVALID, of.signed(of.signature(AUTHOR, _OTHER)), _SIGNED),
    "signature_of_another_key_under_the_trusted_name": Case(
        _C.SIGNATURE_INVALID,
        of.signed(Signature(public_text(AUTHOR.public_key()), of.signature(_STRANGER).signature)),
        _SIGNED,
    ),
    "signature_that_is_none": Case(
        _C.SIGNATURE_INVALID, of.signed(Signature(public_text(AUTHOR.public_key()), "x")), _SIGNED
    ),
    "signature_of_other_bytes_where_none_is_asked_for": Case(
        _C.SIGNATURE_INVALID, of.signed(of.signature(AUTHOR, _OTHER))
    ),
    "signature_without_a_key": Case(_C.MESSAGE_INVALID, of.called(signatures=["no-blank"]), _SIGNED),
    "signatures_by_the_dozen": Case(_C.MESSAGE_INVALID, of.called(signatures=["k s"] * 12), _SIGNED),
    "signatures_as_numbers": Case(_C.MESSAGE_INVALID, of.called(signatures=[1, 2]), _SIGNED),
    "signature_as_one_text": Case(_C.MESSAGE_INVALID, of.called(signatures="k s"), _SIGNED),
    "signature_of_a_megabyte": Case(_C.MESSAGE_INVALID, of.called(signatures=["k " + "s" * (1 << 19)]), _SIGNED),
}

_STUDIES: Final[Mapping[str, Case]] = {
    "study_changed_by_one_byte": Case(_C.AWAITING_APPROVAL, of.written(lambda s: s.replace("0.5", "0.6", 1))),
    "study_described_otherwise": Case(_C.AWAITING_APPROVAL, of.asking(description="Approved by the ethics board.")),
    "study_under_another_seed": Case(_C.AWAITING_APPROVAL, of.asking(seed=2)),
    "site_not_named": Case(_C.SITE_NOT_NAMED, of.asking(sites=["east", "south"])),
    "study_that_is_no_json": Case(_C.STUDY_INVALID, of.written(lambda _: "besieged")),
    "study_cut_short": Case(_C.STUDY_INVALID, of.written(lambda s: s[:-1])),
    "study_with_text_behind_it": Case(_C.STUDY_INVALID, of.written(lambda s: s + "}")),
    "study_that_is_a_list": Case(_C.STUDY_INVALID, of.written(lambda s: f"[{s}]")),
    "study_that_is_a_number": Case(_C.STUDY_INVALID, of.written(lambda _: "17")),
    "study_that_is_null": Case(_C.STUDY_INVALID, of.written(lambda _: "null")),
    "study_of_200000_brackets": Case(_C.STUDY_INVALID, of.written(lambda _: "[" * 200_000)),
    "study_nested_900_deep": Case(_C.STUDY_INVALID, of.written(lambda _: '{"a":' * 900 + "1" + "}" * 900)),
    "study_with_a_number_of_5000_digits": Case(
        _C.STUDY_INVALID, of.written(lambda s: s.replace('"seed":1', '"seed":1' + "0" * 5000))
    ),
    "study_with_an_infinite_epsilon": Case(
        _C.STUDY_INVALID, of.written(lambda s: s.replace('"epsilon":4.0', '"epsilon":1e999'))
    ),
    "study_with_nan": Case(_C.STUDY_INVALID, of.written(lambda s: s.replace('"epsilon":4.0', '"epsilon":NaN'))),
    "study_with_half_a_surrogate_pair": Case(_C.STUDY_INVALID, of.with_value(["description"], "\ud800")),
    "study_with_an_unknown_key": Case(_C.STUDY_INVALID, of.with_value(["code"], "import os")),
    "study_with_an_unknown_key_inside": Case(_C.STUDY_INVALID, of.with_value(["privacy", "unit_test"], value=True)),
    "study_of_another_schema_version": Case(_C.STUDY_INVALID, of.with_value(["schema_version"], 2)),
    "study_whose_rounds_are_a_text": Case(_C.STUDY_INVALID, of.with_value(["training", "rounds"], "10000 rounds")),
    "study_whose_strategy_is_a_path": Case(
        _C.STUDY_INVALID, of.with_value(["aggregation"], {"rule": "flower", "_target_": "os.system"})
    ),
    "study_whose_site_is_a_path": Case(_C.STUDY_INVALID, of.with_value(["sites"], ["../north", "south"])),
    "study_beyond_a_mebibyte": Case(_C.MESSAGE_INVALID, of.written(lambda s: s + " " * (1 << 20))),
    "study_as_bytes": Case(_C.MESSAGE_INVALID, of.written(lambda s: s.encode())),
    "study_missing": Case(_C.MESSAGE_INVALID, of.called(study=None)),
    "study_as_a_list_of_texts": Case(_C.MESSAGE_INVALID, of.called(study=["a", "b"])),
    "study_that_is_no_utf_8": Case(
        _C.MESSAGE_INVALID, of.forged(0, lambda b: b.replace(b"besieged", b"besieg\xff\xfe"))
    ),
}

_HEADERS: Final[Mapping[str, Case]] = {
    "protocol_of_the_past": Case(_C.PROTOCOL_MISMATCH, of.called(protocol=PROTOCOL - 1)),
    "protocol_of_the_future": Case(_C.PROTOCOL_MISMATCH, of.called(protocol=PROTOCOL + 1)),
    "protocol_as_text": Case(_C.MESSAGE_INVALID, of.called(protocol=str(PROTOCOL))),
    "protocol_as_a_fraction": Case(_C.MESSAGE_INVALID, of.called(protocol=float(PROTOCOL))),
    "protocol_as_a_truth_value": Case(_C.MESSAGE_INVALID, of.called(protocol=True)),
    "protocol_as_a_list": Case(_C.MESSAGE_INVALID, of.called(protocol=[PROTOCOL])),
    "protocol_missing": Case(_C.MESSAGE_INVALID, of.called(protocol=None)),
    "round_as_text": Case(_C.MESSAGE_INVALID, of.headed(round="1")),
    "round_as_a_fraction": Case(_C.MESSAGE_INVALID, of.headed(round=1.0)),
    "round_as_a_truth_value": Case(_C.MESSAGE_INVALID, of.headed(round=True)),
    "round_as_bytes": Case(_C.MESSAGE_INVALID, of.headed(round=b"1")),
    "round_missing": Case(_C.MESSAGE_INVALID, of.headed(round=None)),
    "unknown_key_in_the_header": Case(_C.MESSAGE_INVALID, of.headed(callback="https://elsewhere.example/")),
    "model_beside_a_roll_call": Case(_C.MESSAGE_INVALID, lambda t: of.header(t.task(), round=0)),
    "no_records_at_all": Case(_C.MESSAGE_INVALID, lambda _: RecordDict()),
    "header_under_another_name": Case(
        _C.MESSAGE_INVALID, lambda t: RecordDict({"Fedward": t.task().config_records["fedward"]})
    ),
    "header_of_arrays": Case(
        _C.MESSAGE_INVALID, lambda _: RecordDict({"fedward": ArrayRecord({"round": Array(np.ones(1))})})
    ),
    "header_of_metrics": Case(
        _C.MESSAGE_INVALID, lambda _: RecordDict({"fedward": MetricRecord({"protocol": PROTOCOL, "round": 0})})
    ),
    "header_that_is_empty": Case(_C.MESSAGE_INVALID, lambda _: RecordDict({"fedward": ConfigRecord()})),
    "further_record": Case(_C.MESSAGE_INVALID, of.beside(extra=ConfigRecord({"a": 1}))),
    "further_record_of_arrays": Case(_C.MESSAGE_INVALID, of.beside(weights=ArrayRecord({"w": Array(np.ones(9))}))),
    "further_record_of_metrics": Case(_C.MESSAGE_INVALID, of.beside(loss=MetricRecord({"loss": 0.1}))),
    "part_of_a_model_that_has_none": Case(_C.MESSAGE_INVALID, of.beside(**{"part-1": ConfigRecord({"vector": b"1"})})),
}

_MODELS: Final[Mapping[str, Case]] = {
    "model_missing": Case(_C.MODEL_MISMATCH, of.headed(vector=None)),
    "model_too_short": Case(_C.MODEL_MISMATCH, of.vector(lambda raw: raw[:-4])),
    "model_too_long": Case(_C.MODEL_MISMATCH, of.vector(lambda raw: raw + bytes(4))),
    "model_of_no_whole_number_of_entries": Case(_C.MODEL_MISMATCH, of.vector(lambda raw: raw[:-1])),
    "model_as_text": Case(_C.MODEL_MISMATCH, of.vector(lambda _: "weights")),
    "model_as_a_list": Case(_C.MODEL_MISMATCH, of.vector(lambda raw: [0.0] * (len(raw) // 4))),
    "model_of_doubles": Case(_C.MODEL_MISMATCH, of.vector(lambda raw: bytes(2 * len(raw)), dtype="<f8")),
    "model_of_another_byte_order": Case(_C.MODEL_MISMATCH, of.headed(dtype=">f4")),
    "model_of_objects": Case(_C.MODEL_MISMATCH, of.headed(dtype="|O")),
    "model_of_no_declared_type": Case(_C.MODEL_MISMATCH, of.headed(dtype=None)),
    "model_of_another_length": Case(_C.MODEL_MISMATCH, of.headed(length=3)),
    "model_of_a_length_below_zero": Case(_C.MODEL_MISMATCH, of.headed(length=-1)),
    "model_of_a_length_as_text": Case(_C.MODEL_MISMATCH, of.headed(length="5")),
    "model_with_nan": Case(_C.MODEL_MISMATCH, of.vector(of.numbers(float("nan")))),
    "model_with_infinity": Case(_C.MODEL_MISMATCH, of.vector(of.numbers(0.0, float("inf")))),
    "model_with_negative_infinity": Case(_C.MODEL_MISMATCH, of.vector(of.numbers(0.0, float("-inf")))),
}

_PLAIN: Final = STUDY.contract() | {"privacy": {"mechanism": "none"}}
_SILENT: Final = STUDY.contract() | {"privacy": None}
_KRUM: Final = {"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum", "options": {}}


_PRIVACY: Final[Mapping[str, Case]] = {
    "epsilon_above_the_policy": Case(_C.POLICY_LIMIT, of.asking(privacy={"epsilon": 9.0})),
    "delta_above_the_policy": Case(_C.POLICY_LIMIT, of.asking(privacy={"delta": 0.005})),
    "noise_below_the_policy": Case(_C.POLICY_LIMIT, of.asking(privacy={"noise_multiplier": 0.1})),
    "noise_left_to_the_centre": Case(_C.POLICY_LIMIT, of.asking(privacy={"noise_multiplier": None})),
    "clip_above_the_policy": Case(_C.POLICY_LIMIT, of.asking(privacy={"clip_norm": 11.0})),
    "rate_above_the_policy": Case(
        _C.POLICY_LIMIT, of.asking(training={"sampling_rate": 0.9}), {"max_sampling_rate": 0.5}
    ),
    "rounds_above_the_policy": Case(_C.POLICY_LIMIT, lambda t: t.roll_call(), {"max_rounds": 9_999}),
    "steps_above_the_policy": Case(_C.POLICY_LIMIT, of.asking(training={"local_steps": 1001})),
    "quorum_below_the_policy": Case(_C.POLICY_LIMIT, lambda t: t.roll_call(), {"min_sites": 3}),
    "model_above_the_policy": Case(_C.POLICY_LIMIT, lambda t: t.roll_call(), {"max_parameters": 2}),
    "tensor_that_is_not_on_the_list": Case(_C.POLICY_LIMIT, lambda t: t.roll_call(), {"allowed_tensors": ("*.bias",)}),
    "rule_that_sees_single_updates": Case(_C.POLICY_LIMIT, of.looser(STUDY.contract() | {"aggregation": _KRUM})),
    "no_secure_aggregation": Case(
        _C.SECURE_AGGREGATION_REQUIRED, lambda t: t.roll_call(), {"require_secure_aggregation": True}
    ),
    "privacy_none": Case(_C.PRIVACY_REQUIRED, of.looser(_PLAIN)),
    "no_privacy_section": Case(_C.NO_PRIVACY_SECTION, of.looser(_SILENT)),
    "epsilon_that_the_noise_does_not_keep": Case(
        _C.BUDGET_EXCEEDED, lambda t: t.roll_call(), study=hostile_study(privacy={"epsilon": 0.05})
    ),
    "more_than_is_left_of_the_lifetime": Case(
        _C.BUDGET_EXCEEDED, lambda t: t.roll_call(), {"max_epsilon_lifetime": 0.05}
    ),
    "limit_tightened_in_the_middle_of_the_study": Case(
        _C.POLICY_LIMIT, lambda t: t.task(2), {"max_epsilon_per_study": 1.0}, prepare=of.trained(1)
    ),
    "cohort_below_the_policy": Case(_C.COHORT_TOO_SMALL, lambda t: t.roll_call(), {"min_patients": 33}),
    "study_that_is_not_on_the_list": Case(_C.STUDY_NOT_ALLOWED, lambda t: t.roll_call(), {"studies": ("another",)}),
    "cohort_that_is_for_another_study": Case(
        _C.COHORT_NOT_ALLOWED, lambda t: t.roll_call(), {"cohort_studies": {COHORT: ("another",)}}
    ),
    "outside_hours": Case(_C.OUTSIDE_HOURS, lambda t: t.roll_call(), {"hours": of.closed_soon()}),
    "task_outside_hours": Case(_C.OUTSIDE_HOURS, lambda t: t.task(), {"hours": of.closed_soon()}, prepare=of.trained()),
}

_APPROVALS: Final[Mapping[str, Case]] = {
    "never_approved": Case(_C.AWAITING_APPROVAL, lambda t: t.roll_call(), approved=False),
    "task_never_approved": Case(_C.AWAITING_APPROVAL, lambda t: t.task(), approved=False),
    "approval_withdrawn": Case(_C.AWAITING_APPROVAL, lambda t: t.roll_call(), prepare=of.decided("withdrawn")),
    "approval_withdrawn_in_the_middle": Case(
        _C.AWAITING_APPROVAL, lambda t: t.task(2), prepare=of.first(of.trained(1), of.decided("withdrawn"))
    ),
    "approval_denied": Case(_C.AWAITING_APPROVAL, lambda t: t.roll_call(), prepare=of.decided("denied")),
    "approval_expired": Case(
        _C.AWAITING_APPROVAL, lambda t: t.roll_call(), prepare=of.decided("approved", days_ago=400), approved=False
    ),
    "approval_of_one_where_two_are_needed": Case(
        _C.AWAITING_APPROVAL, lambda t: t.roll_call(), {"approvals_needed": 2}
    ),
    "approval_of_a_cohort_that_is_not_registered": Case(
        _C.COHORT_MISSING, lambda t: t.roll_call(), prepare=of.decided("approved", cohort="another"), approved=False
    ),
    "cohort_changed_since_the_approval": Case(_C.AWAITING_APPROVAL, lambda t: t.roll_call(), prepare=of.rewritten),
    "cohort_changed_in_the_middle": Case(
        _C.AWAITING_APPROVAL, lambda t: t.task(2), prepare=of.first(of.trained(1), of.rewritten)
    ),
    "cohort_gone": Case(
        _C.COHORT_MISSING, lambda t: t.roll_call(), prepare=lambda t: (t.home / f"{COHORT}.csv").unlink()
    ),
}

_OBJECTS: Final[Mapping[str, Case]] = {
    "more_bytes_than_allowed": Case(_C.MESSAGE_TOO_LARGE, of.beside(a=ConfigRecord({"a": bytes(9 << 20)}))),
    "more_objects_than_allowed": Case(
        _C.MESSAGE_TOO_LARGE, of.treed(lambda t: (t[0], ((t[1][0][0], tuple((f"{n:064x}", ()) for n in range(5000))),)))
    ),
    "objects_nested_60_deep": Case(_C.MESSAGE_INVALID, of.treed(of.deep)),
    "object_of_another_digest": Case(_C.MESSAGE_INVALID, of.swapped),
    "object_that_is_missing": Case(_C.MESSAGE_INVALID, of.emptied),
    "message_without_content": Case(_C.MESSAGE_INVALID, of.treed(lambda t: (t[0], ()))),
    "message_with_two_contents": Case(_C.MESSAGE_INVALID, of.treed(lambda t: (t[0], (t[1][0], t[1][0])))),
    "content_that_is_a_record": Case(_C.MESSAGE_INVALID, of.treed(lambda t: (t[0], t[1][0][1]))),
    "content_that_is_the_message": Case(_C.MESSAGE_INVALID, of.treed(lambda t: (t[0], ((t[0], ()),)))),
    "identifier_that_is_a_path": Case(_C.MESSAGE_INVALID, of.treed(lambda t: (t[0], (("../../site.yaml", ()),)))),
    "identifier_that_is_empty": Case(_C.MESSAGE_INVALID, of.treed(lambda _: ("", (("", ()),)))),
    "records_that_are_no_records": Case(_C.MESSAGE_INVALID, of.forged(1, lambda _: b"RecordDict  2\x00[]")),
    "records_of_another_class": Case(
        _C.MESSAGE_INVALID, of.forged(1, lambda b: b.replace(b"RecordDict", b"ArrayChunk"))
    ),
    "records_of_no_class": Case(_C.MESSAGE_INVALID, of.forged(1, lambda b: b.replace(b"RecordDict", b"os.system!"))),
    "records_without_a_head": Case(_C.MESSAGE_INVALID, of.forged(1, lambda _: b"")),
    "record_cut_short": Case(_C.MESSAGE_INVALID, of.forged(0, lambda b: b[: len(b) // 2])),
    "record_of_zeros": Case(_C.MESSAGE_INVALID, of.forged(0, lambda b: bytes(len(b)))),
    "tree_that_is_missing": Case(_C.MESSAGE_INVALID, of.treed(lambda _: None)),
}

CASES: Final[Mapping[str, Case]] = {
    **_BUNDLES, **_ORDER, **_ROUTES, **_SIGNATURES, **_STUDIES, **_HEADERS, **_MODELS, **_PRIVACY, **_APPROVALS,
    **_OBJECTS,
}  # fmt: skip
"""Every attack by its name."""


ODD: Final[Mapping[str, Make]] = {
    "identifier_of_the_message_that_is_a_path": of.told(message_id="../../../etc/passwd"),
    "identifier_of_the_message_that_is_empty": of.told(message_id=""),
    "identifier_of_the_message_of_a_megabyte": of.told(message_id="x" * (1 << 20)),
    "group_of_a_megabyte": of.told(group_id="x" * (1 << 20)),
    "answer_to_another_message": of.told(reply_to_message_id="f" * 64),
    "run_zero": of.told(run_id=0),
    "run_of_64_bits": of.told(run_id=(1 << 64) - 1),
    "time_that_is_no_number": of.told(ttl=float("nan"), created_at=float("nan")),
    "time_without_end": of.told(ttl=float("inf"), created_at=float("inf")),
    "time_below_zero": of.told(ttl=-1e300, created_at=-1e300),
    "task_of_somebody_else": of.told(src_task_id=(1 << 64) - 1, dst_task_id=0),
    "records_within_the_announcement": of.inlined(wire.inline_content(RecordDict({"a": ConfigRecord({"a": 1})}))),
    "broken_records_within_the_announcement": of.inlined(wire.BROKEN_INLINE),
}
"""Announcements about an honest task that no honest SuperLink makes: the site may refuse them or do what they say, and
answers each once."""

OUTAGES: Final[Mapping[str, tuple[str, Raw]]] = {
    "announcement_that_is_garbage": ("pull-messages", Raw(b"\xff" * 64)),
    "announcement_of_other_bytes": ("pull-messages", Raw(b"\x12\x03abc")),
    "announcement_of_text_that_is_no_utf_8": ("pull-messages", Raw(b"\x12\x06\x0a\x04\x12\x02\xff\xfe\x1a\x00")),
    "announcement_of_a_tree_5000_deep": ("pull-messages", Raw(wire.deep_announcement(5000))),
    "announcement_that_is_a_redirect": (
        "pull-messages",
        Raw(status=302, headers={"location": "https://elsewhere.example/"}),
    ),
    "announcement_that_is_packed": ("pull-messages", Raw(b"x", headers={"content-encoding": "gzip"})),
    "announcement_of_a_gigabyte": ("pull-messages", Raw(b"", headers={"content-length": str(1 << 30)})),
    "announcement_not_found": ("pull-messages", Raw(status=404)),
    "announcement_failed": ("pull-messages", Raw(status=500)),
    "bell_that_is_no_number": ("pull-messages", Raw(headers={"fedward-seen": "-1; DROP"})),
    "object_that_is_garbage": ("pull-object", Raw(b"\xff" * 64)),
    "object_that_is_a_redirect": ("pull-object", Raw(status=302, headers={"location": "https://elsewhere.example/"})),
    "object_failed": ("pull-object", Raw(status=500)),
    "run_that_is_garbage": ("get-run", Raw(b"\xff" * 64)),
    "bundle_that_is_garbage": ("get-fab", Raw(b"\xff" * 64)),
    "bundle_failed": ("get-fab", Raw(status=500)),
    "confirmation_failed": ("confirm-message-received", Raw(status=500)),
    "receipt_that_is_garbage": ("push-messages", Raw(b"\xff" * 64)),
    "receipt_failed": ("push-messages", Raw(status=500)),
    "receipt_of_an_object_that_is_garbage": ("push-object", Raw(b"\xff" * 64)),
    "receipt_of_an_object_that_was_not_stored": ("push-object", Raw(b"")),
}
"""Answers of the SuperLink that are none, by the call that they answer: the site goes on, and answers what follows."""
