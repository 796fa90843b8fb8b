-- What is revoked by session, subject, unit or moment gets no new tokens by an old refresh token either, narrowed by
-- issuer and audience too, which a session has since it says for whom its tokens are.

SET LOCAL ROLE caregate_owner;

DROP TRIGGER end_sessions ON caregate.revocation;

-- As whoever revokes, who may end sessions, and add the revocation of each.
CREATE OR REPLACE FUNCTION caregate.end_revoked_sessions() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF NEW.kind = 'session' THEN
        UPDATE caregate.session SET ended_at = now(), ended_why = 'revocation'
        WHERE id = NEW.value AND ended_at IS NULL;
    ELSIF NEW.kind IN ('subject', 'unit', 'before') THEN
        -- A token may be issued at this moment: of few sessions each is revoked itself, too.
        UPDATE caregate.session s SET ended_at = now(),
            ended_why = CASE NEW.kind WHEN 'before' THEN 'revocation' ELSE 'revoked ' || NEW.kind END
        FROM caregate.account a
        WHERE a.id = s.account AND s.ended_at IS NULL AND s.started_at < NEW.before_at
            AND NEW.issuer IN ('', s.issuer) AND NEW.audience IN ('', s.audience) AND NEW.role IN ('', s.role)
            AND (NEW.kind = 'before'
                OR (NEW.kind = 'subject' AND a.subject = NEW.value)
                OR (NEW.kind = 'unit' AND (a.claims -> 'units' ? NEW.value OR a.claims ->> 'units' = NEW.value)));
    END IF;
    RETURN NEW;
END
$$;
-- Before the revision is taken, which others wait for who hold a session: `end_sessions` comes before `revision`.
CREATE TRIGGER end_sessions BEFORE INSERT ON caregate.revocation
    FOR EACH ROW EXECUTE FUNCTION caregate.end_revoked_sessions();
