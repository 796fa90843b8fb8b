-- Emergency access: what a person gave himself, and what a reviewer said of it. The gateway adds cases, ends them and writes
-- reviews, each once; nothing of a case is changed or taken away.

SET LOCAL ROLE caregate_owner;

CREATE TABLE caregate.break_glass (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    issuer          text        NOT NULL CHECK (length(issuer) BETWEEN 1 AND 1024),
    subject         text        NOT NULL CHECK (length(subject) BETWEEN 1 AND 256),
    audience        text        NOT NULL CHECK (length(audience) <= 64),
    role            text        NOT NULL CHECK (length(role) <= 64),
    organisation    text        NOT NULL DEFAULT '' CHECK (length(organisation) <= 256),
    unit            text        NOT NULL CHECK (length(unit) BETWEEN 1 AND 63),
    patient         text        NOT NULL CHECK (length(patient) BETWEEN 1 AND 256),
    reason          text        NOT NULL CHECK (length(reason) BETWEEN 10 AND 500),
    started_at      timestamptz NOT NULL DEFAULT now(),
    until_at        timestamptz NOT NULL,
    ended_at        timestamptz,
    reviewed_at     timestamptz,
    verdict         text        NOT NULL DEFAULT '' CHECK (verdict IN ('', 'justified', 'unjustified')),
    comment         text        NOT NULL DEFAULT '' CHECK (length(comment) <= 500),
    reviewer_issuer text        NOT NULL DEFAULT '',
    reviewer        text        NOT NULL DEFAULT '' CHECK (length(reviewer) <= 256),
    notified_at     timestamptz,
    notice_at       timestamptz NOT NULL DEFAULT now(),
    notice_tries    integer     NOT NULL DEFAULT 0,
    CHECK (until_at > started_at AND until_at <= started_at + interval '4 hours'),
    CHECK ((reviewed_at IS NULL) = (verdict = '')),
    CHECK (reviewed_at IS NULL OR (reviewer_issuer, reviewer) <> (issuer, subject))
);
CREATE INDEX break_glass_holder ON caregate.break_glass (issuer, subject, until_at);
CREATE INDEX break_glass_unreviewed ON caregate.break_glass (started_at, id) WHERE reviewed_at IS NULL;
CREATE INDEX break_glass_unnotified ON caregate.break_glass (notice_at) WHERE notified_at IS NULL;

ALTER TABLE caregate.break_glass ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.break_glass FORCE ROW LEVEL SECURITY;
CREATE POLICY seen ON caregate.break_glass FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.break_glass FOR INSERT TO caregate_gateway WITH CHECK (started_at = now());
CREATE POLICY ended ON caregate.break_glass FOR UPDATE TO caregate_gateway USING (true) WITH CHECK (true);

-- What has happened to a case stays: it ends once, is reviewed once, notified once.
CREATE FUNCTION caregate.break_glass_once() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
        OR (OLD.reviewed_at IS NOT NULL AND (NEW.reviewed_at, NEW.verdict, NEW.comment, NEW.reviewer)
            IS DISTINCT FROM (OLD.reviewed_at, OLD.verdict, OLD.comment, OLD.reviewer))
        OR (OLD.notified_at IS NOT NULL AND NEW.notified_at IS DISTINCT FROM OLD.notified_at)
    THEN
        RAISE EXCEPTION 'a case of breaking the glass is written once' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER once BEFORE UPDATE ON caregate.break_glass FOR EACH ROW EXECUTE FUNCTION caregate.break_glass_once();

GRANT SELECT, INSERT (issuer, subject, audience, role, organisation, unit, patient, reason, until_at),
    UPDATE (ended_at, reviewed_at, verdict, comment, reviewer_issuer, reviewer, notified_at, notice_at, notice_tries)
    ON caregate.break_glass TO caregate_gateway;
