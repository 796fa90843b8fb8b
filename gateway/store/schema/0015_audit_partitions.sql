-- The trail by months: what is past its time is removed a month at once. Months are made ahead by the gateway, which owns
-- none of them; what no month takes (a clock that is far off) lands in event_other and is moved when its month is made.

SET LOCAL ROLE caregate_owner;

CREATE FUNCTION audit.make_month(month date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
DECLARE
    first timestamptz := date_trunc('month', month::timestamp) AT TIME ZONE 'UTC';
    next  timestamptz := (date_trunc('month', month::timestamp) + interval '1 month') AT TIME ZONE 'UTC';
    name  text := 'event_' || to_char(month, 'YYYY_MM');
BEGIN
    PERFORM pg_advisory_xact_lock(223178465, 10);
    IF to_regclass('audit.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE audit.%I (LIKE audit.event INCLUDING DEFAULTS)', name);
    EXECUTE format('WITH moved AS (DELETE FROM audit.event_other WHERE occurred_at >= %L AND occurred_at < %L RETURNING *) '
                   'INSERT INTO audit.%I SELECT * FROM moved', first, next, name);
    EXECUTE format('ALTER TABLE audit.event ATTACH PARTITION audit.%I FOR VALUES FROM (%L) TO (%L)', name, first, next);
    RETURN true;
END
$$;

-- This month and so many after it; how many were made. Nobody makes more than two years of them.
CREATE FUNCTION audit.make_months(ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '2s'
AS $$
DECLARE
    made integer := 0;
BEGIN
    FOR n IN 0 .. least(greatest(ahead, 0), 24) LOOP
        IF audit.make_month(((now() AT TIME ZONE 'UTC') + n * interval '1 month')::date) THEN
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;
GRANT EXECUTE ON FUNCTION audit.make_months(integer) TO caregate_gateway;

-- What is there already goes into its months.
DO $$
DECLARE
    month date;
BEGIN
    FOR month IN SELECT DISTINCT date_trunc('month', occurred_at AT TIME ZONE 'UTC')::date FROM audit.event_other LOOP
        PERFORM audit.make_month(month);
    END LOOP;
    PERFORM audit.make_months(3);
END
$$;

-- Legal hold: a month that has an event a hold is about is not removed. An empty patient or unit stands for all; the
-- patient is as the events have it.
CREATE TABLE audit.hold (
    name        text        PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    patients    text[]      NOT NULL DEFAULT '{}',
    unit        text        NOT NULL DEFAULT '',
    from_at     timestamptz NOT NULL DEFAULT '-infinity',
    to_at       timestamptz NOT NULL DEFAULT 'infinity',
    reason      text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    made_by     text        NOT NULL DEFAULT session_user,
    made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at timestamptz,
    released_by text
);

-- What was removed, when and why: signed, so that a gap of the chains that no act explains is one that somebody made.
CREATE TABLE audit.removal (
    number      bigint      PRIMARY KEY CHECK (number >= 1),
    act         text        NOT NULL,
    signature   text        NOT NULL,
    actor       text        NOT NULL DEFAULT session_user,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON audit.hold, audit.removal TO caregate_auditor;
