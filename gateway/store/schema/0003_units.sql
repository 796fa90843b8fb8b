-- Who may link: the public keys that units registered, the one-time codes that let them, and what became of each unit.
-- The gateway registers and retires keys and adds to the timeline; it can issue no code, and undo no revocation. That
-- is for the login role caregate_operator (`caregate unit`), which in turn sees no context key.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'caregate_operator') THEN
        CREATE ROLE caregate_operator LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT;
    END IF;
END
$$;

SET LOCAL ROLE caregate_owner;

GRANT USAGE ON SCHEMA caregate TO caregate_operator;

-- One number for all changes. Whoever changes holds its row until the end of the transaction, so numbers become visible
-- in their order: a worker that knows number N misses nothing by asking for what is above N.
CREATE TABLE caregate.unit_revision (
    sole   boolean PRIMARY KEY DEFAULT true CHECK (sole),
    number bigint  NOT NULL
);
INSERT INTO caregate.unit_revision (number) VALUES (1);

CREATE FUNCTION caregate.next_unit_revision() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
BEGIN
    UPDATE caregate.unit_revision SET number = number + 1 RETURNING number INTO NEW.revision;
    PERFORM pg_notify('caregate_units', '');
    RETURN NEW;
END
$$;

CREATE DOMAIN caregate.unit_id AS text CHECK (VALUE ~ '^[a-z0-9][a-z0-9-]{0,62}$');

-- Units that were ever revoked; one without a row is as the configuration says.
CREATE TABLE caregate.unit (
    unit       caregate.unit_id PRIMARY KEY,
    revoked_at timestamptz,
    reason     text             NOT NULL DEFAULT '' CHECK (length(reason) <= 500),
    revision   bigint           NOT NULL
);
CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON caregate.unit
    FOR EACH ROW EXECUTE FUNCTION caregate.next_unit_revision();

-- `kid` is the key's thumbprint (RFC 7638), so one key is one row and belongs to one unit.
CREATE TABLE caregate.unit_key (
    kid          text             PRIMARY KEY CHECK (length(kid) BETWEEN 1 AND 128),
    unit         caregate.unit_id NOT NULL,
    alg          text             NOT NULL CHECK (alg IN ('EdDSA', 'ES256', 'ES384', 'RS256', 'PS256')),
    public_key   text             NOT NULL CHECK (length(public_key) <= 4096),
    created_at   timestamptz      NOT NULL DEFAULT now(),
    retires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz,
    revision     bigint           NOT NULL
);
CREATE INDEX unit_key_unit ON caregate.unit_key (unit);
CREATE INDEX unit_key_revision ON caregate.unit_key (revision);
CREATE TRIGGER revision BEFORE INSERT OR UPDATE OF retires_at, revoked_at ON caregate.unit_key
    FOR EACH ROW EXECUTE FUNCTION caregate.next_unit_revision();

-- Keys of x-caregate-context, for units that have none in the configuration. The newest whose time has come signs.
CREATE TABLE caregate.unit_context (
    unit       caregate.unit_id NOT NULL,
    generation integer          NOT NULL,
    secret     text             NOT NULL CHECK (length(secret) BETWEEN 43 AND 128),
    from_at    timestamptz      NOT NULL,
    revision   bigint           NOT NULL,
    PRIMARY KEY (unit, generation)
);
CREATE TRIGGER revision BEFORE INSERT ON caregate.unit_context
    FOR EACH ROW EXECUTE FUNCTION caregate.next_unit_revision();

-- `digest` is the SHA-256 of the code, which has 130 random bits; the code itself is nowhere.
CREATE TABLE caregate.unit_code (
    digest     bytea            PRIMARY KEY CHECK (length(digest) = 32),
    unit       caregate.unit_id NOT NULL,
    issued_at  timestamptz      NOT NULL DEFAULT now(),
    expires_at timestamptz      NOT NULL,
    used_at    timestamptz,
    used_by    text
);
CREATE INDEX unit_code_unit ON caregate.unit_code (unit);

-- The timeline. Of one connection each kind is kept once, whoever reports it first.
CREATE TABLE caregate.unit_event (
    number      bigint           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    unit        caregate.unit_id NOT NULL,
    at          timestamptz      NOT NULL DEFAULT now(),
    recorded_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    kind        text             NOT NULL CHECK (kind IN ('up', 'down', 'code-issued', 'enrolled', 'key-rotated',
                                                          'context-rotated', 'key-revoked', 'revoked', 'enabled')),
    why         text             NOT NULL DEFAULT '' CHECK (length(why) <= 500),
    conn        text             NOT NULL DEFAULT '',
    kid         text             NOT NULL DEFAULT '',
    node        text             NOT NULL DEFAULT '',
    agent       text             NOT NULL DEFAULT '',
    actor       text             NOT NULL DEFAULT session_user
);
CREATE UNIQUE INDEX unit_event_once ON caregate.unit_event (conn, kind) WHERE conn <> '';
CREATE INDEX unit_event_unit ON caregate.unit_event (unit, at);

-- When a unit was last connected, and why it was not any more; `why` is empty while it is.
CREATE TABLE caregate.unit_presence (
    unit    caregate.unit_id PRIMARY KEY,
    seen_at timestamptz      NOT NULL,
    why     text             NOT NULL
);

GRANT SELECT ON caregate.unit_revision, caregate.unit, caregate.unit_key, caregate.unit_context, caregate.unit_presence
    TO caregate_gateway;
GRANT SELECT, UPDATE (used_at, used_by) ON caregate.unit_code TO caregate_gateway;
GRANT INSERT (kid, unit, alg, public_key) ON caregate.unit_key TO caregate_gateway;
GRANT UPDATE (retires_at, last_used_at) ON caregate.unit_key TO caregate_gateway;
GRANT INSERT (unit, generation, secret, from_at) ON caregate.unit_context TO caregate_gateway;
GRANT INSERT (unit, at, kind, why, conn, kid, node, agent) ON caregate.unit_event TO caregate_gateway;
GRANT INSERT, UPDATE ON caregate.unit_presence TO caregate_gateway;

GRANT SELECT ON caregate.unit_revision, caregate.unit, caregate.unit_key, caregate.unit_event, caregate.unit_presence
    TO caregate_operator;
GRANT INSERT (unit, revoked_at, reason), UPDATE (revoked_at, reason) ON caregate.unit TO caregate_operator;
GRANT UPDATE (revoked_at) ON caregate.unit_key TO caregate_operator;
GRANT INSERT (digest, unit, expires_at) ON caregate.unit_code TO caregate_operator;
GRANT INSERT (unit, at, kind, why, kid) ON caregate.unit_event TO caregate_operator;
