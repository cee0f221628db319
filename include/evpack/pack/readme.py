"""README.md of a pack: what it is, how far it goes, how to check it. For people: a verifier reads its verdict alone."""

from __future__ import annotations

from evpack.pack import layout
from evpack.pack.recheck import Recheck

_TEXT = """\
# Evidence pack: suite {suite}

Verdict: **{verdict}** ({text})

| | |
|---|---|
| evidence level | {level} |
| models | {models} |
| scenarios | {scenarios} |
| reports recomputed from their records | {reports} ({errors} of error injections) |
| reports that could not be read | {failed} |
| policy | tier {tier}, profile {profile} |
| signer | {signer} |

## Check it

    evpack verify --strict --trusted-key <public key of the signer> <this directory>
    sha256sum --check {checksums}        (digests only, run inside this directory)
    evpack inspect <this directory>             (what it says, without recomputing)

Exit codes of `evpack verify`: 0 all holds and the signer is trusted, 3 missing, 4 format, 5 signature, 6 integrity,
7 the reports or the verdict do not follow from the records, 8 all holds but no trusted key was given,
or nothing was recomputed.
Get the signer's public key or fingerprint from the people who made this pack, never from the pack itself.

## What it shows, and what it does not

- Metric, interval, gates, outcomes and verdict follow from the per-window losses in the records.json files; the
  verifier computes them again under its own limits.
- Findings of guards follow from the figures of matrices and modules beside each report; they are computed again too.
- The losses and figures themselves, digests of tensors, what loading a model said and elements that are not finite
  outside matrices are attested by the signer. They cannot be recomputed here: weights and token ids are not packed.
- PASS means that every expectation of the scenario list held on these windows. It says nothing about other text,
  other tasks or the safety of a model.
{caveat}{moved}"""

_CAPPED = "- The profile caps the evidence level at {cap}: the sample is small, so the metric is marked unstable.\n"


def readme(result: Recheck, signer: str | None) -> bytes:
    """The bytes of README.md; equal inputs give equal bytes."""
    campaign = result.campaign
    plan, policy, cap = campaign.plan, campaign.policy, campaign.policy.evidence_cap
    text = _TEXT.format(
        suite=plan.suite,
        text=campaign.at(layout.VERDICT_TEXT),
        verdict=result.verdict,
        level=result.level,
        models=", ".join(model.id for model in plan.models),
        scenarios=len(plan.scenarios),
        reports=result.reports,
        errors=result.error_injection_reports,
        failed=result.failed_reports,
        tier=policy.tier,
        profile=policy.profile,
        signer=signer or "none: not signed",
        checksums=layout.CHECKSUMS,
        caveat=_CAPPED.format(cap=cap) if cap != "high" else "",
        moved="".join(f"- {change.text()}. Windows and seeds stayed the same.\n" for change in plan.lane_changes),
    )
    return text.encode("utf-8")
