"""Purpose of use: why a caller asks. Pure.

Source: HL7 v3 ActReason, value set PurposeOfUse (2.16.840.1.113883.5.8), whose codes IHE XUA/IUA and the OASIS XSPA
profiles use.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import PurposeRefused
from gateway.rbac.decide import Decision

FIELD = "Purpose-Of-Use"

CODES = frozenset(
    """
    BIORCH BTG CAREMGT CLINTRCH CLINTRCHNPC CLINTRCHPC CLINTRL CLMATTCH COC COVAUTH COVERAGE DISASTER DONAT DSRCH
    ELIGDTRM ELIGVER ENROLLM ERTREAT ETREAT FAMRQT FRAUD GOV HACCRED HCOMPL HDECD HDIRECT HDM HLEGAL HMARKT HOPERAT
    HOUTCOMS HPAYMT HPRGRP HQUALIMP HRESCH HSYSADMIN HTEST LABELING MEMADMIN METAMGT MILCDM MILDCRG PATADMIN PATRQT
    PATSFTY PERFMSR POARCH POPHLTH PRECLINTRCH PUBHLTH PWATRNY RECORDMGT REMITADV SUPNWK SYSDEV THREAT TRAIN TRANSRCH
    TREAT
    """.split()  # noqa: SIM905 - as rbac.fhir
)


def decide_purpose(required: Sequence[str], asked: str | None, claimed: object, *, doubled: bool) -> Decision | str:
    """The purpose a request has, or the refusal of one that has none the route takes.

    Shapes: `asked` is the field, `claimed` the token's `purpose`; where both are there they must agree.
    """
    codes = {code for code in (asked, claimed) if code is not None}
    if doubled or len(codes) > 1:
        return _refused("The purpose of use is given twice, and not the same")
    code = codes.pop() if codes else None
    if isinstance(code, str) and code in required:
        return code
    return _refused(f"The route needs a purpose of use ({FIELD}): {', '.join(required)}")


def _refused(detail: str) -> Decision:
    return Decision(False, "purpose", error=PurposeRefused, detail=detail)
