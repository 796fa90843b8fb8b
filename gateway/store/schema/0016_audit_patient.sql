-- What joins the trail's pseudonyms to patients. A row that is gone cannot be made again: its name was random.
-- `lookup` is an HMAC of the patient's id, `sealed` the id encrypted; the database has neither key.

SET LOCAL ROLE caregate_owner;

CREATE TABLE audit.patient (
    name    text        PRIMARY KEY CHECK (name ~ '^p\.[0-9a-f]{32}$'),
    lookup  bytea       NOT NULL CHECK (length(lookup) = 32),
    sealed  bytea       NOT NULL CHECK (length(sealed) <= 2048),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX patient_lookup ON audit.patient (lookup, made_at);

-- Names whose rows were erased, so that workers use them no more, and nobody brings one back.
CREATE TABLE audit.erased_patient (
    number    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text        NOT NULL UNIQUE,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_by text        NOT NULL DEFAULT session_user
);

GRANT INSERT (name, lookup, sealed), SELECT (name, lookup, made_at) ON audit.patient TO caregate_gateway;
GRANT SELECT (number, name) ON audit.erased_patient TO caregate_gateway;
GRANT SELECT ON audit.patient TO caregate_audit_reader, caregate_auditor;

-- Refusals at units of one's own are few among many accesses.
CREATE INDEX event_unit_refused ON audit.event (unit, occurred_at)
    WHERE unit <> '' AND outcome <> 'allowed' AND outcome <> 'pending' AND outcome <> 'complete';
