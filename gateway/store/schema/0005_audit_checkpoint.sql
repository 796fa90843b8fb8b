-- Signed checkpoints of the chains: what a copy outside the database is compared with. The role of those who read and
-- verify the trail; logins are made members of it.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'caregate_auditor') THEN
        CREATE ROLE caregate_auditor NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
    END IF;
END
$$;

SET LOCAL ROLE caregate_owner;

CREATE TABLE audit.checkpoint (
    source      text        NOT NULL,
    number      bigint      NOT NULL,
    checkpoint  text        NOT NULL,
    signature   text        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, number)
);

GRANT INSERT ON audit.checkpoint TO caregate_gateway;
GRANT USAGE ON SCHEMA audit TO caregate_auditor;
GRANT SELECT ON audit.event, audit.event_unchained, audit.checkpoint TO caregate_auditor;
