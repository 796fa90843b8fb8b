-- How many requests of a span of time were begun and never ended: the gateway may ask for the number, and sees no event.

SET LOCAL ROLE caregate_owner;

-- PERF: each intent is one look into an index, of the months from `since` on alone.
CREATE FUNCTION audit.count_unfinished(since timestamptz, until timestamptz) RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog
AS $$
BEGIN
    RETURN (SELECT count(*) FROM audit.event i
        WHERE i.phase = 'intent' AND i.occurred_at >= since AND i.occurred_at < until AND i.request_id <> ''
        AND NOT EXISTS (SELECT FROM audit.event o WHERE o.request_id = i.request_id AND o.request_id <> ''
            AND o.phase = 'outcome' AND o.kind = i.kind AND o.occurred_at >= since - interval '1 minute'));
END
$$;
GRANT EXECUTE ON FUNCTION audit.count_unfinished(timestamptz, timestamptz) TO caregate_gateway;
