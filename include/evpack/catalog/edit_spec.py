"""The grammar of edit specs and their resolution against tuned parameters.

``type:param[:param2]:scope[@modifier]``, e.g. ``quant_rtn:8:all``, ``quant_rtn:4:32:ffn``,
``magnitude_prune:0.5:all``, ``lowrank_svd:32:ffn@layer=15``, ``fp8_quant:clean:ffn``. Pure text: which tensors
a scope means is the checkpoint's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from evpack.errors import BadInput
from evpack.rundir import is_id

EditType = Literal["quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"]
ScopeKind = Literal["ffn", "attn", "all"]
Version = Literal["clean", "stress"]

EDIT_TYPES: tuple[EditType, ...] = get_args(EditType)
SCOPE_KINDS: tuple[ScopeKind, ...] = get_args(ScopeKind)
CLEAN = "clean"
"""Stands where the parameters would: they come from the tuned file."""

DEFAULT_GROUP_SIZE = 128
"""Columns per scale when a spec names none (the reference harness's default)."""
MAX_BITS = 16
"""More bits than this round nothing in any weight format that is stored."""
FP8_FORMATS = ("e4m3", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fn", "e5m2fnuz")

_MODIFIER = re.compile(r"(?:(layer|layers)=)?(\d{1,6})", re.ASCII)
_ALIASES = {"bitwidth": "bits", "prune_level": "sparsity"}
"""Names some tuned files use for our names."""


class EditSpecError(BadInput):
    """A spec or a tuned entry that cannot be resolved.

    Args:
        reason: code of the reference, e.g. ``invalid_quant_params``; part of the message.
        what: what is wrong, with the value.
        mend: how to mend it.
        status: ``invalid`` or, when a tuned entry is absent, ``missing``.
    """

    def __init__(self, reason: str, what: str, mend: str, status: str = "invalid") -> None:
        super().__init__(f"{what} [{reason}]", mend)
        self.reason = reason
        self.status = status


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scope(_Part):
    """Which part of a transformer block is meant, in which blocks."""

    kind: ScopeKind
    layers: tuple[int, ...] = ()
    """Exact block indices of ``@layer=N``."""
    below: int | None = None
    """``@layers=N``: all block indices smaller than N."""

    def admits(self, layer: int) -> bool:
        """Whether a block is in the scope. Without a modifier every block is."""
        if not self.layers and self.below is None:
            return True
        return layer in self.layers or (self.below is not None and layer < self.below)


class EditParameters(_Part):
    """The numbers of an edit; only those of its type are set."""

    bits: int | None = None
    group_size: int | None = None
    """Columns per scale; 0 or at least the row length means one scale per row."""
    format: str | None = None
    scale: Literal["none", "tensor", "channel"] = "none"
    sparsity: float | None = None
    rank: int | None = None


class EditSpec(_Part):
    """A parsed spec. A clean one carries no parameters."""

    text: str
    edit_type: EditType
    clean: bool
    scope: str
    parameters: EditParameters = EditParameters()


class ResolvedEdit(EditParameters):
    """An edit with nothing left open: what a kernel needs and what the declaration of a variant comes from."""

    spec: str
    """The spec as the manifest writes it."""
    edit_type: EditType
    scope: str
    """ffn, attn or all, with its layer modifier (``ffn@layer=15``)."""
    status: str = "selected"
    """The tuned entry's, ``missing`` where there is none. Only plans that were made to calibrate hold others than
    ``selected`` (`plan.preflight.check_selected`)."""
    reason: str = ""
    edit_dir_name: str = ""


def parse_scope(text: str, where: str = "edit") -> Scope:
    """Parse ``ffn``, ``all@layers=4`` or ``attn@layer=0,layer=5`` (also ``layer=0,5``); modifiers add up.

    Args:
        text: the scope.
        where: whose scope it is, for the message.

    Raises:
        EditSpecError: invalid_scope.
    """
    kind, at, modifiers = text.partition("@")
    mend = f"use one of {', '.join(SCOPE_KINDS)}, with @layer=N, @layers=N or a comma list behind it"
    if kind not in SCOPE_KINDS:
        raise EditSpecError("invalid_scope", f"{where}: scope {text!r} is not known", mend)
    layers: list[int] = []
    limits: list[int] = []
    key = None
    for part in modifiers.split(",") if at else ():
        match = _MODIFIER.fullmatch(part)
        key = (match[1] or key) if match else None
        if match is None or key is None or (key == "layers" and match[1] is None):
            raise EditSpecError("invalid_scope", f"{where}: scope {text!r}: {part!r} is not a layer modifier", mend)
        (layers if key == "layer" else limits).append(int(match[2]))
    return Scope(kind=kind, layers=tuple(sorted(set(layers))), below=max(limits, default=None))


def parse_edit_spec(text: str) -> EditSpec:
    """Parse a spec.

    Raises:
        EditSpecError: invalid_edit_type, invalid_edit_spec, invalid_scope or the code of the type's parameters.
    """
    name, *fields = text.split(":")
    edit_type = next((known for known in EDIT_TYPES if known == name), None)
    if edit_type is None:
        raise EditSpecError(
            "invalid_edit_type", f"edit spec {text!r}: unknown edit {name!r}", f"use one of {', '.join(EDIT_TYPES)}"
        )
    most = 3 if edit_type == "quant_rtn" else 2
    if not 2 <= len(fields) <= most:
        form = "<bits>[:<group size>]" if edit_type == "quant_rtn" else "<parameter>"
        raise EditSpecError(
            "invalid_edit_spec",
            f"edit spec {text!r} has {len(fields) + 1} parts",
            f"write {edit_type}:{form}:<scope> or {edit_type}:{CLEAN}:<scope>",
        )
    *values, scope = fields
    parse_scope(scope, f"edit spec {text!r}")
    if values == [CLEAN]:
        return EditSpec(text=text, edit_type=edit_type, clean=True, scope=scope)
    keys = {
        "quant_rtn": ("bits", "group_size"),
        "fp8_quant": ("format",),
        "magnitude_prune": ("sparsity",),
        "lowrank_svd": ("rank",),
    }[edit_type]
    parameters = _parameters(edit_type, dict(zip(keys, values, strict=False)), f"edit spec {text!r}")
    return EditSpec(text=text, edit_type=edit_type, clean=False, scope=scope, parameters=parameters)


def resolve_edit(
    spec: EditSpec, tuned: Mapping[str, Any] | None = None, *, version: Version | None = None
) -> ResolvedEdit:
    """Settle every parameter of an edit.

    Args:
        spec: a parsed spec.
        tuned: the tuned entry of this model and edit type; read for clean specs only. Its scope wins over the
            spec's, its status ``skipped`` is carried over.
        version: suffix of the directory name; by default clean or stress as the spec says.

    Raises:
        EditSpecError: status ``missing`` when a clean spec has no entry, else the code of what is wrong in it.
    """
    if not spec.clean:
        return _resolved(spec, spec.scope, spec.parameters, version or "stress", "", "")
    what = f"tuned parameters for {spec.text!r}"
    mend = "correct the entry in the tuned parameters file (PACK_TUNED_EDIT_PARAMS_FILE)"
    if tuned is None:
        raise EditSpecError("missing_tuned_edit_params", f"{what}: no entry", mend, status="missing")
    status, reason = str(tuned.get("status", "missing")), str(tuned.get("reason", ""))
    if status == "skipped":
        return ResolvedEdit(spec=spec.text, edit_type=spec.edit_type, scope=spec.scope, status="skipped", reason=reason)
    if status != "selected":
        kind = "missing" if status == "missing" else "invalid"
        raise EditSpecError(
            f"{kind}_tuned_edit_params",
            f"{what}: status is {status!r} ({reason or 'no reason given'})",
            mend,
            status=kind,
        )
    scope = tuned.get("scope", spec.scope)
    if not isinstance(scope, str):
        raise EditSpecError("invalid_scope", f"{what}: scope {scope!r} is not text", mend)
    parse_scope(scope, what)
    parameters = _parameters(spec.edit_type, tuned, what)
    directory = tuned.get("edit_dir_name") or ""
    if directory and not (isinstance(directory, str) and is_id(directory)):
        raise EditSpecError("invalid_tuned_edit_params", f"{what}: edit_dir_name {directory!r} is no file name", mend)
    return _resolved(spec, scope, parameters, version or "clean", directory, reason)


def _resolved(
    spec: EditSpec, scope: str, parameters: EditParameters, version: Version, directory: str, reason: str
) -> ResolvedEdit:
    return ResolvedEdit(
        spec=spec.text,
        edit_type=spec.edit_type,
        scope=scope,
        reason=reason,
        edit_dir_name=directory or _directory_name(spec.edit_type, parameters, version),
        **parameters.model_dump(),
    )


def _directory_name(edit_type: EditType, parameters: EditParameters, version: Version) -> str:
    match edit_type:
        case "quant_rtn":
            return f"quant_{parameters.bits}bit_{version}"
        case "fp8_quant":
            return f"fp8_{parameters.format}_{version}"
        case "magnitude_prune":
            return f"prune_{round(100 * (parameters.sparsity or 0.0))}pct_{version}"
        case "lowrank_svd":
            return f"svd_rank{parameters.rank}_{version}"


def _parameters(edit_type: EditType, values: Mapping[str, Any], where: str) -> EditParameters:
    """Check the parameters of a type, given as text (spec) or as JSON numbers (tuned entry)."""
    for alias, meant in _ALIASES.items():
        if alias in values and values[alias] != values.get(meant, values[alias]):
            raise EditSpecError(
                "invalid_tuned_edit_params",
                f"{where}: {meant} {values[meant]!r} and {alias} {values[alias]!r} mean the same and differ",
                f"keep one of them, {meant}",
            )
    given = {_ALIASES.get(key, key): value for key, value in values.items()}
    match edit_type:
        case "quant_rtn":
            bits = _integer(given.get("bits"), 1, MAX_BITS)
            group = _integer(given.get("group_size", DEFAULT_GROUP_SIZE), 0)
            if bits is None or group is None:
                raise EditSpecError(
                    "invalid_quant_params",
                    f"{where}: bits {given.get('bits')!r}, group size {given.get('group_size', DEFAULT_GROUP_SIZE)!r}",
                    f"give whole numbers: bits 1 to {MAX_BITS}, group size 1 or more (0: one scale per row)",
                )
            return EditParameters(bits=bits, group_size=group)
        case "fp8_quant":
            name, scale = given.get("format"), given.get("scale", "none")
            if name not in FP8_FORMATS or scale not in ("none", "tensor", "channel"):
                raise EditSpecError(
                    "invalid_fp_format",
                    f"{where}: format {name!r}, scale {scale!r}",
                    f"use one of {', '.join(FP8_FORMATS)}; scale none, tensor or channel",
                )
            return EditParameters(format=name, scale=scale)
        case "magnitude_prune":
            sparsity = _fraction(given.get("sparsity"))
            if sparsity is None:
                raise EditSpecError(
                    "invalid_prune_sparsity",
                    f"{where}: sparsity {given.get('sparsity')!r}",
                    "give the fraction of weights to remove: above 0, at most 1",
                )
            return EditParameters(sparsity=sparsity)
        case "lowrank_svd":
            rank = _integer(given.get("rank"), 1)
            if rank is None:
                raise EditSpecError(
                    "invalid_lowrank_rank", f"{where}: rank {given.get('rank')!r}", "give a whole number of 1 or more"
                )
            return EditParameters(rank=rank)


def _integer(value: object, least: int, most: int = 10**9) -> int | None:
    """The whole number, or None when it is none or out of range."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value <= most else None


def _fraction(value: object) -> float | None:
    """The number in (0, 1], or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and 0.0 < number <= 1.0 else None
