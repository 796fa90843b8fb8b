-- What the token service must not forget: tokens that were revoked, assertions that were used. The gateway adds to
-- both, and takes away only what time has made harmless: nobody who is logged in as it can undo a revocation.

SET LOCAL ROLE caregate_owner;

-- One number for all revocations, as for units: a worker that knows number N asks for what is above N.
CREATE TABLE caregate.token_revision (
    sole   boolean PRIMARY KEY DEFAULT true CHECK (sole),
    number bigint  NOT NULL
);
INSERT INTO caregate.token_revision (number) VALUES (1);

CREATE FUNCTION caregate.next_token_revision() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
BEGIN
    UPDATE caregate.token_revision SET number = number + 1 RETURNING number INTO NEW.revision;
    PERFORM pg_notify('caregate_tokens', '');
    RETURN NEW;
END
$$;

-- `until_at`: when the token has run out, leeway of the clocks included.
CREATE TABLE caregate.revoked_token (
    jti        text        PRIMARY KEY CHECK (length(jti) BETWEEN 1 AND 4096),
    until_at   timestamptz NOT NULL CHECK (isfinite(until_at)),
    revoked_at timestamptz NOT NULL DEFAULT now(),
    revoked_by text        NOT NULL CHECK (length(revoked_by) <= 64),
    revision   bigint      NOT NULL
);
CREATE INDEX revoked_token_revision ON caregate.revoked_token (revision);
CREATE INDEX revoked_token_until ON caregate.revoked_token (until_at);
CREATE TRIGGER revision BEFORE INSERT ON caregate.revoked_token
    FOR EACH ROW EXECUTE FUNCTION caregate.next_token_revision();

-- `digest` is the SHA-256 of client and jti.
CREATE TABLE caregate.used_assertion (
    digest   bytea       PRIMARY KEY CHECK (length(digest) = 32),
    until_at timestamptz NOT NULL CHECK (isfinite(until_at))
);
CREATE INDEX used_assertion_until ON caregate.used_assertion (until_at);

ALTER TABLE caregate.revoked_token ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.used_assertion ENABLE ROW LEVEL SECURITY;
CREATE POLICY seen ON caregate.revoked_token FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.revoked_token FOR INSERT TO caregate_gateway WITH CHECK (true);
CREATE POLICY over ON caregate.revoked_token FOR DELETE TO caregate_gateway
    USING (until_at < now() - interval '10 minutes');
CREATE POLICY seen ON caregate.used_assertion FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.used_assertion FOR INSERT TO caregate_gateway WITH CHECK (true);
CREATE POLICY over ON caregate.used_assertion FOR DELETE TO caregate_gateway
    USING (until_at < now() - interval '10 minutes');

GRANT SELECT ON caregate.token_revision, caregate.revoked_token TO caregate_gateway;
GRANT INSERT (jti, until_at, revoked_by), DELETE ON caregate.revoked_token TO caregate_gateway;
GRANT SELECT (until_at), INSERT (digest, until_at), DELETE ON caregate.used_assertion TO caregate_gateway;
