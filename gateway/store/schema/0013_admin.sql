-- What the Admin API needs beside the command line: codes that can be listed and called back, who is behind a change,
-- and what the trail says of one request. All of it is for caregate_operator, which still sees no digest of a code, no
-- context key, and of the trail no patient, no resource and no address.

SET LOCAL ROLE caregate_owner;

-- `retry` names the request that issued the code: repeated, it calls back the one whose answer was lost.
ALTER TABLE caregate.unit_code
    ADD COLUMN number       bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN issued_by    text   NOT NULL DEFAULT '' CHECK (length(issued_by) <= 128),
    ADD COLUMN cancelled_at timestamptz,
    ADD COLUMN retry        bytea  CHECK (length(retry) = 32);
CREATE UNIQUE INDEX unit_code_number ON caregate.unit_code (number);
CREATE INDEX unit_code_retry ON caregate.unit_code (retry) WHERE retry IS NOT NULL;

-- `author` is whom the operator's login acted for; `actor` is the login.
ALTER TABLE caregate.unit_event
    ADD COLUMN author text NOT NULL DEFAULT '' CHECK (length(author) <= 128),
    DROP CONSTRAINT unit_event_kind_check,
    ADD CONSTRAINT unit_event_kind_check CHECK (kind IN ('up', 'down', 'code-issued', 'code-cancelled', 'enrolled',
        'key-rotated', 'context-rotated', 'key-revoked', 'revoked', 'enabled'));

GRANT SELECT (number, unit, issued_at, expires_at, used_at, used_by, issued_by, cancelled_at, retry),
    INSERT (issued_by, retry), UPDATE (cancelled_at, expires_at) ON caregate.unit_code TO caregate_operator;
GRANT INSERT (author) ON caregate.unit_event TO caregate_operator;

GRANT USAGE ON SCHEMA audit TO caregate_operator;
GRANT SELECT (occurred_at, kind, phase, request_id, outcome, rule, status, method, unit, route, action, phi, purpose,
    issuer, subject, role, audience, client, token_id, delivery, duration_us, node, config_version)
    ON audit.event TO caregate_operator;
