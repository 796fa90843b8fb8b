-- The trail as hash chains: every column but `recorded_at`, which is the database's own, is derived from `canonical`.
-- The gateway may add to it and nothing else. Rows of before stay in audit.event_unchained.

SET LOCAL ROLE caregate_owner;

ALTER TABLE audit.event RENAME TO event_unchained;
ALTER TABLE audit.event_unchained RENAME CONSTRAINT event_pkey TO event_unchained_pkey;
ALTER INDEX audit.event_occurred_at RENAME TO event_unchained_occurred_at;
ALTER INDEX audit.event_patient RENAME TO event_unchained_patient;
REVOKE INSERT ON audit.event_unchained FROM caregate_gateway;

CREATE TABLE audit.event (
    chain          text        NOT NULL,
    sequence       bigint      NOT NULL,
    occurred_at    timestamptz NOT NULL,
    kind           text        NOT NULL,
    phase          text        NOT NULL,
    duration_us    bigint      NOT NULL,
    request_id     text        NOT NULL,
    outcome        text        NOT NULL,
    rule           text        NOT NULL,
    status         integer     NOT NULL,
    method         text        NOT NULL,
    trace          text        NOT NULL,
    delivery       text        NOT NULL,
    unit           text        NOT NULL,
    agent          text        NOT NULL,
    patient        text        NOT NULL,
    resource_id    text        NOT NULL,
    client_address text        NOT NULL,
    route          text        NOT NULL,
    action         text        NOT NULL,
    resource_type  text        NOT NULL,
    phi            boolean     NOT NULL,
    purpose        text        NOT NULL,
    issuer         text        NOT NULL,
    subject        text        NOT NULL,
    role           text        NOT NULL,
    audience       text        NOT NULL,
    organisation   text        NOT NULL,
    client         text        NOT NULL,
    token_id       text        NOT NULL,
    node           text        NOT NULL,
    config_version bigint      NOT NULL,
    hash           bytea       NOT NULL,
    canonical      text        NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain, sequence, occurred_at)
) PARTITION BY RANGE (occurred_at);

CREATE TABLE audit.event_other PARTITION OF audit.event DEFAULT;

CREATE INDEX ON audit.event USING brin (occurred_at);
CREATE INDEX ON audit.event (patient, occurred_at) WHERE patient <> '';
CREATE INDEX ON audit.event (subject, occurred_at) WHERE subject <> '';
CREATE INDEX ON audit.event (request_id);

GRANT INSERT ON audit.event TO caregate_gateway;
