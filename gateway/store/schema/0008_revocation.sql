-- Revocations by more than a token's id: session, subject, unit, or the moment before which everything was issued. Gateway
-- and operator add; nobody takes away what has not run out. What they did is noted in the audit trail by a worker.

SET LOCAL ROLE caregate_owner;

-- `before_at` counts for subject, unit and before: tokens issued from then on are good. `issuer`, `audience` and `role`
-- narrow these; '' is any. `until_at`: when every token that it covers has run out.
CREATE TABLE caregate.revocation (
    number    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind      text        NOT NULL CHECK (kind IN ('jti', 'session', 'subject', 'unit', 'before')),
    value     text        NOT NULL CHECK (length(value) <= 4096 AND (value = '') = (kind = 'before')),
    issuer    text        NOT NULL DEFAULT '' CHECK (length(issuer) <= 1024),
    audience  text        NOT NULL DEFAULT '' CHECK (length(audience) <= 64),
    role      text        NOT NULL DEFAULT '' CHECK (length(role) <= 64),
    before_at timestamptz NOT NULL CHECK (isfinite(before_at)),
    until_at  timestamptz NOT NULL CHECK (isfinite(until_at)),
    author    text        NOT NULL CHECK (length(author) BETWEEN 1 AND 128),
    reason    text        NOT NULL CHECK (length(reason) <= 500),
    actor     text        NOT NULL DEFAULT session_user,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    revision  bigint      NOT NULL,
    CHECK (kind IN ('subject', 'unit', 'before') OR issuer || audience || role = '')
);
CREATE INDEX revocation_revision ON caregate.revocation (revision);
CREATE INDEX revocation_until ON caregate.revocation (until_at);
CREATE TRIGGER revision BEFORE INSERT ON caregate.revocation
    FOR EACH ROW EXECUTE FUNCTION caregate.next_token_revision();

-- Changes of who may get in, on their way into the audit trail: the worker that writes the event marks the row.
CREATE TABLE caregate.access_change (
    number   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text        NOT NULL CHECK (kind ~ '^[a-z][a-z.-]{0,31}$'),
    outcome  text        NOT NULL CHECK (outcome ~ '^[a-z][a-z-]{0,31}$'),
    detail   jsonb       NOT NULL CHECK (jsonb_typeof(detail) = 'object' AND octet_length(detail::text) <= 8192),
    author   text        NOT NULL CHECK (length(author) BETWEEN 1 AND 128),
    reason   text        NOT NULL CHECK (length(reason) <= 500),
    actor    text        NOT NULL DEFAULT session_user,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    noted_at timestamptz
);
CREATE INDEX access_change_unnoted ON caregate.access_change (number) WHERE noted_at IS NULL;

ALTER TABLE caregate.revocation ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.revocation FORCE ROW LEVEL SECURITY;
CREATE POLICY seen ON caregate.revocation FOR SELECT USING (true);
CREATE POLICY added ON caregate.revocation FOR INSERT TO caregate_gateway, caregate_operator WITH CHECK (true);
CREATE POLICY over ON caregate.revocation FOR DELETE TO caregate_gateway
    USING (until_at < now() - interval '10 minutes');

GRANT SELECT, INSERT (kind, value, issuer, audience, role, before_at, until_at, author, reason) ON caregate.revocation
    TO caregate_gateway, caregate_operator;
GRANT DELETE ON caregate.revocation TO caregate_gateway;

ALTER TABLE caregate.access_change ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.access_change FORCE ROW LEVEL SECURITY;
CREATE POLICY seen ON caregate.access_change FOR SELECT TO caregate_gateway USING (true);
CREATE POLICY added ON caregate.access_change FOR INSERT TO caregate_gateway, caregate_operator WITH CHECK (true);
CREATE POLICY noted ON caregate.access_change FOR UPDATE TO caregate_gateway
    USING (noted_at IS NULL) WITH CHECK (noted_at IS NOT NULL);
CREATE POLICY over ON caregate.access_change FOR DELETE TO caregate_gateway
    USING (noted_at < now() - interval '1 day');

GRANT INSERT (kind, outcome, detail, author, reason) ON caregate.access_change TO caregate_gateway, caregate_operator;
GRANT SELECT, UPDATE (noted_at), DELETE ON caregate.access_change TO caregate_gateway;
