-- Keys that the gateway makes for a role, and the end of keys, its own and the configuration's. The private half is
-- encrypted under a key that the database does not have, together with kid, role and algorithm: a row that somebody
-- else wrote opens for nobody. Operators add and retire; what is retired stays so.

SET LOCAL ROLE caregate_owner;

-- `sealed` is NULL for a key of the configuration, which has a row only once it is to retire. It verifies until
-- `retires_at`, or until it was ended.
CREATE TABLE caregate.signing_key (
    kid        text        PRIMARY KEY CHECK (length(kid) BETWEEN 1 AND 128),
    role       text        NOT NULL CHECK (role ~ '^[a-z][a-z0-9._-]{0,63}$'),
    alg        text        NOT NULL CHECK (alg ~ '^[A-Za-z0-9]{2,16}$' OR (alg = '' AND sealed IS NULL)),
    sealed     bytea       CHECK (octet_length(sealed) BETWEEN 32 AND 8192),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    signs_at   timestamptz NOT NULL DEFAULT 'epoch' CHECK (isfinite(signs_at)),
    retires_at timestamptz CHECK (isfinite(retires_at)),
    ended_at   timestamptz,
    author     text        NOT NULL CHECK (length(author) BETWEEN 1 AND 128),
    actor      text        NOT NULL DEFAULT session_user,
    revision   bigint      NOT NULL
);
CREATE INDEX signing_key_role ON caregate.signing_key (role);
CREATE INDEX signing_key_revision ON caregate.signing_key (revision);
CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON caregate.signing_key
    FOR EACH ROW EXECUTE FUNCTION caregate.next_token_revision();

-- For the owner too: a key that was to end by a moment does not end later, and one that has ended does not come back.
CREATE FUNCTION caregate.keep_key_ended() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF (OLD.retires_at IS NOT NULL AND (NEW.retires_at IS NULL OR NEW.retires_at > OLD.retires_at))
        OR (OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL) THEN
        RAISE EXCEPTION 'a key that ends does not end later' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keep_ended BEFORE UPDATE ON caregate.signing_key
    FOR EACH ROW EXECUTE FUNCTION caregate.keep_key_ended();

ALTER TABLE caregate.signing_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.signing_key FORCE ROW LEVEL SECURITY;
CREATE POLICY seen ON caregate.signing_key FOR SELECT USING (true);
CREATE POLICY added ON caregate.signing_key FOR INSERT TO caregate_operator WITH CHECK (true);
CREATE POLICY kept ON caregate.signing_key FOR UPDATE TO caregate_operator USING (true) WITH CHECK (true);

GRANT SELECT ON caregate.signing_key TO caregate_gateway;
GRANT SELECT, INSERT (kid, role, alg, sealed, signs_at, retires_at, ended_at, author), UPDATE (sealed, retires_at, ended_at)
    ON caregate.signing_key TO caregate_operator;

-- A login that is revoked ends: its session can give no new tokens. `unit` and `before` end those that began before.
CREATE FUNCTION caregate.end_revoked_sessions() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
BEGIN
    UPDATE caregate.session s SET ended_at = now(), ended_why = 'revoked'
    FROM caregate.account a
    WHERE a.id = s.account AND s.ended_at IS NULL
        AND (NEW.role = '' OR NEW.role = s.role)
        AND CASE NEW.kind
            WHEN 'session' THEN s.id = NEW.value
            WHEN 'subject' THEN a.subject = NEW.value AND s.started_at < NEW.before_at
            WHEN 'unit' THEN a.claims -> 'units' @> to_jsonb(NEW.value) AND s.started_at < NEW.before_at
            WHEN 'before' THEN s.started_at < NEW.before_at
            ELSE false END;
    RETURN NULL;
END
$$;
-- NOTE: which audience and issuer a role has, the database does not know; narrowed by those, sessions go on, and what
-- they give is judged by its own `iat`.
CREATE TRIGGER end_sessions AFTER INSERT ON caregate.revocation
    FOR EACH ROW WHEN (NEW.kind <> 'jti' AND NEW.issuer = '' AND NEW.audience = '')
    EXECUTE FUNCTION caregate.end_revoked_sessions();
