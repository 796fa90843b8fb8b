-- The trail of accesses. The gateway may add to it and nothing else.

SET LOCAL ROLE caregate_owner;

CREATE TABLE audit.event (
    event_id       uuid PRIMARY KEY,
    occurred_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration_us    bigint      NOT NULL,
    node           text        NOT NULL,
    request_id     text        NOT NULL,
    phase          text        NOT NULL CHECK (phase IN ('intent', 'outcome')),
    outcome        text        NOT NULL CHECK (outcome IN ('pending', 'allowed', 'refused', 'failed')),
    rule           text        NOT NULL,
    status         integer     NOT NULL,
    method         text        NOT NULL,
    route          text        NOT NULL,
    action         text        NOT NULL CHECK (action IN ('C', 'R', 'U', 'D', 'E')),
    phi            boolean     NOT NULL,
    patient        text        NOT NULL,
    unit           text        NOT NULL,
    issuer         text        NOT NULL,
    subject        text        NOT NULL,
    role           text        NOT NULL,
    audience       text        NOT NULL,
    organisation   text        NOT NULL,
    client         text        NOT NULL,
    token_id       text        NOT NULL,
    client_address text        NOT NULL,
    purpose        text        NOT NULL,
    delivery       text        NOT NULL,
    config_version bigint      NOT NULL
);

CREATE INDEX event_occurred_at ON audit.event USING brin (occurred_at);
CREATE INDEX event_patient ON audit.event (patient, occurred_at) WHERE patient <> '';

GRANT INSERT ON audit.event TO caregate_gateway;
