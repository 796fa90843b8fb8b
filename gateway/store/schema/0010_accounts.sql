-- Who logs in at the gateway, and what a login gave: accounts, sessions, refresh tokens, authorization codes, proxies.
-- Accounts and proxies are kept under caregate_operator (`caregate account`); the gateway reads them, and adds sessions
-- and what belongs to them. What has ended stays ended: no login of the gateway's can begin it again.

SET LOCAL ROLE caregate_owner;

-- `password`: every hash has the same cost, so that checking one takes as long for every account, and for none.
-- `totp`: the secret, encrypted under a key that the database does not have; `totp_step`: the last one that was used.
CREATE TABLE caregate.account (
    id          text        PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{22}$'),
    login       text        NOT NULL UNIQUE CHECK (login ~ '^[a-z0-9][a-z0-9._@+-]{0,127}$'),
    subject     text        NOT NULL CHECK (length(subject) BETWEEN 1 AND 256),
    role        text        NOT NULL CHECK (role ~ '^[a-z][a-z0-9._-]{0,63}$'),
    claims      jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(claims) = 'object' AND pg_column_size(claims) < 8192),
    password    text        NOT NULL CHECK (password ~ '^\$argon2id\$v=19\$m=65536,t=3,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$'),
    totp        bytea       CHECK (octet_length(totp) BETWEEN 29 AND 256),
    totp_step   bigint      NOT NULL DEFAULT 0,
    disabled_at timestamptz,
    reason      text        NOT NULL DEFAULT '' CHECK (length(reason) <= 500),
    created_at  timestamptz NOT NULL DEFAULT now(),
    actor       text        NOT NULL DEFAULT session_user,
    UNIQUE (role, subject)
);

-- One login and all that follows from it: a family of refresh tokens, and the access tokens they gave, with its id as sid.
-- `proof_key` is the thumbprint of the key (RFC 9449) that its refresh tokens are bound to, or empty.
CREATE TABLE caregate.session (
    id         text        PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{22}$'),
    account    text        NOT NULL REFERENCES caregate.account ON DELETE CASCADE,
    client     text        NOT NULL CHECK (length(client) BETWEEN 1 AND 64),
    role       text        NOT NULL,
    issuer     text        NOT NULL,
    audience   text        NOT NULL,
    scope      text        NOT NULL DEFAULT '' CHECK (length(scope) <= 4096),
    methods    text[]      NOT NULL,
    proof_key  text        NOT NULL DEFAULT '' CHECK (length(proof_key) <= 64),
    started_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz NOT NULL DEFAULT now(),
    ends_at    timestamptz NOT NULL CHECK (isfinite(ends_at)),
    ended_at   timestamptz,
    ended_why  text        NOT NULL DEFAULT '' CHECK (length(ended_why) <= 64)
);
CREATE INDEX session_account ON caregate.session (account);
CREATE INDEX session_ends ON caregate.session (ends_at);

-- `digest` is the SHA-256 of the token. A used one says who used it (the SHA-256 of the client's proof) and keeps its
-- successor for seconds, encrypted under a key that only the used token gives.
CREATE TABLE caregate.refresh_token (
    digest           bytea       PRIMARY KEY CHECK (octet_length(digest) = 32),
    session          text        NOT NULL REFERENCES caregate.session ON DELETE CASCADE,
    issued_at        timestamptz NOT NULL DEFAULT now(),
    until_at         timestamptz NOT NULL CHECK (isfinite(until_at)),
    used_at          timestamptz,
    used_by          bytea       CHECK (octet_length(used_by) = 32),
    successor        bytea       CHECK (octet_length(successor) <= 256),
    successor_digest bytea       CHECK (octet_length(successor_digest) = 32),
    repeated_at      timestamptz
);
CREATE INDEX refresh_token_session ON caregate.refresh_token (session);
CREATE INDEX refresh_token_successor ON caregate.refresh_token (used_at) WHERE successor IS NOT NULL;

CREATE TABLE caregate.authorization_code (
    digest       bytea       PRIMARY KEY CHECK (octet_length(digest) = 32),
    client       text        NOT NULL,
    redirect_uri text        NOT NULL CHECK (length(redirect_uri) <= 2048),
    challenge    text        NOT NULL CHECK (length(challenge) = 43),
    proof_key    text        NOT NULL DEFAULT '' CHECK (length(proof_key) <= 64),
    account      text        NOT NULL REFERENCES caregate.account ON DELETE CASCADE,
    scope        text        NOT NULL DEFAULT '' CHECK (length(scope) <= 4096),
    methods      text[]      NOT NULL,
    issued_at    timestamptz NOT NULL DEFAULT now(),
    until_at     timestamptz NOT NULL CHECK (isfinite(until_at)),
    used_at      timestamptz,
    session      text        REFERENCES caregate.session ON DELETE CASCADE
);
CREATE INDEX authorization_code_until ON caregate.authorization_code (until_at);
CREATE INDEX authorization_code_session ON caregate.authorization_code (session);

-- Who may act for which patient, with what the account's own role may do and nothing more.
CREATE TABLE caregate.proxy (
    account    text        NOT NULL REFERENCES caregate.account ON DELETE CASCADE,
    patient    text        NOT NULL CHECK (length(patient) BETWEEN 1 AND 256),
    subject    text        NOT NULL CHECK (length(subject) BETWEEN 1 AND 256),
    until_at   timestamptz,
    reason     text        NOT NULL DEFAULT '' CHECK (length(reason) <= 500),
    created_at timestamptz NOT NULL DEFAULT now(),
    actor      text        NOT NULL DEFAULT session_user,
    PRIMARY KEY (account, patient)
);

-- A code of a second factor is for one use, also for two workers at the same moment.
CREATE FUNCTION caregate.keep_account() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF NEW.totp_step < OLD.totp_step THEN
        RAISE EXCEPTION 'a used code stays used' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keep BEFORE UPDATE ON caregate.account FOR EACH ROW EXECUTE FUNCTION caregate.keep_account();

-- The sessions of an account end when it is disabled, and when its password, second factor, role or claims change.
CREATE FUNCTION caregate.end_sessions() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    UPDATE caregate.session SET ended_at = now(), ended_why = 'account-changed'
    WHERE account = NEW.id AND ended_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER end_sessions AFTER UPDATE OF disabled_at, password, totp, role, subject, claims ON caregate.account
    FOR EACH ROW WHEN (
        (OLD.disabled_at, OLD.password, OLD.totp, OLD.role, OLD.subject, OLD.claims)
        IS DISTINCT FROM (NEW.disabled_at, NEW.password, NEW.totp, NEW.role, NEW.subject, NEW.claims))
    EXECUTE FUNCTION caregate.end_sessions();

-- The access tokens of a session end with it, in every worker; where a wider revocation ended it, by that one.
CREATE FUNCTION caregate.revoke_session() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    INSERT INTO caregate.revocation (kind, value, before_at, until_at, author, reason)
    VALUES ('session', NEW.id, now(), now() + interval '2 days', 'token service', NEW.ended_why);
    RETURN NULL;
END
$$;
CREATE TRIGGER revoke AFTER UPDATE OF ended_at ON caregate.session
    FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND NEW.ended_why <> 'revocation')
    EXECUTE FUNCTION caregate.revoke_session();

ALTER TABLE caregate.account ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.session ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.refresh_token ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.authorization_code ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.proxy ENABLE ROW LEVEL SECURITY;

CREATE POLICY seen ON caregate.account FOR SELECT TO caregate_gateway, caregate_operator USING (true);
CREATE POLICY stepped ON caregate.account FOR UPDATE TO caregate_gateway USING (disabled_at IS NULL);
CREATE POLICY kept ON caregate.account FOR UPDATE TO caregate_operator USING (true);
CREATE POLICY added ON caregate.account FOR INSERT TO caregate_operator WITH CHECK (true);

CREATE POLICY seen ON caregate.session FOR SELECT TO caregate_gateway, caregate_operator USING (true);
CREATE POLICY added ON caregate.session FOR INSERT TO caregate_gateway WITH CHECK (ended_at IS NULL);
-- USING: one that has ended is not changed any more.
CREATE POLICY lived ON caregate.session FOR UPDATE TO caregate_gateway, caregate_operator
    USING (ended_at IS NULL) WITH CHECK (true);
CREATE POLICY over ON caregate.session FOR DELETE TO caregate_gateway
    USING (least(ends_at, ended_at) < now() - interval '1 day');

CREATE POLICY seen ON caregate.refresh_token FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.refresh_token FOR INSERT TO caregate_gateway WITH CHECK (used_at IS NULL);
-- WITH CHECK: a change uses it, or keeps it used.
CREATE POLICY used ON caregate.refresh_token FOR UPDATE TO caregate_gateway
    USING (true) WITH CHECK (used_at IS NOT NULL);

CREATE POLICY seen ON caregate.authorization_code FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.authorization_code FOR INSERT TO caregate_gateway WITH CHECK (used_at IS NULL);
CREATE POLICY used ON caregate.authorization_code FOR UPDATE TO caregate_gateway
    USING (true) WITH CHECK (used_at IS NOT NULL);
CREATE POLICY over ON caregate.authorization_code FOR DELETE TO caregate_gateway
    USING (session IS NULL AND until_at < now() - interval '10 minutes');

CREATE POLICY seen ON caregate.proxy FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY kept ON caregate.proxy TO caregate_operator USING (true) WITH CHECK (true);

GRANT SELECT, UPDATE (totp_step) ON caregate.account TO caregate_gateway;
GRANT SELECT (id, login, subject, role, claims, disabled_at, reason, created_at, actor) ON caregate.account
    TO caregate_operator;
GRANT INSERT (id, login, subject, role, claims, password),
    UPDATE (role, subject, claims, password, totp, disabled_at, reason) ON caregate.account TO caregate_operator;
GRANT SELECT, DELETE, INSERT (id, account, client, role, issuer, audience, scope, methods, proof_key, started_at, ends_at),
    UPDATE (used_at, ended_at, ended_why) ON caregate.session TO caregate_gateway;
GRANT SELECT, UPDATE (ended_at, ended_why) ON caregate.session TO caregate_operator;
GRANT SELECT, INSERT (digest, session, until_at),
    UPDATE (used_at, used_by, successor, successor_digest, repeated_at) ON caregate.refresh_token TO caregate_gateway;
GRANT SELECT, DELETE, INSERT (digest, client, redirect_uri, challenge, proof_key, account, scope, methods, until_at),
    UPDATE (used_at, session) ON caregate.authorization_code TO caregate_gateway;
GRANT SELECT ON caregate.proxy TO caregate_gateway;
GRANT SELECT, DELETE, INSERT (account, patient, subject, until_at, reason),
    UPDATE (subject, until_at, reason) ON caregate.proxy TO caregate_operator;
