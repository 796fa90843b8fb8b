-- The configuration document as numbered versions: who put what in force, when and why. Rows are added and never
-- changed. The gateway may add the first one, which it imports from its file; what follows is for caregate_operator.

SET LOCAL ROLE caregate_owner;

CREATE TABLE caregate.config_version (
    number   bigint      PRIMARY KEY CHECK (number >= 1),
    digest   text        NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    document text        NOT NULL CHECK (octet_length(document) <= 4194304),
    author   text        NOT NULL CHECK (length(author) BETWEEN 1 AND 128),
    reason   text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    actor    text        NOT NULL DEFAULT session_user,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Numbers have no gap. Of two who add the same one, the second waits for the first and finds its number taken.
CREATE FUNCTION caregate.follow_config_version() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF NEW.number > 1 AND NOT EXISTS (SELECT FROM caregate.config_version WHERE number = NEW.number - 1) THEN
        RAISE EXCEPTION 'version % does not follow the newest one', NEW.number USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER follow BEFORE INSERT ON caregate.config_version
    FOR EACH ROW EXECUTE FUNCTION caregate.follow_config_version();

CREATE FUNCTION caregate.tell_config_version() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    PERFORM pg_notify('caregate_config', NEW.number::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER tell AFTER INSERT ON caregate.config_version
    FOR EACH ROW EXECUTE FUNCTION caregate.tell_config_version();

-- For the owner too: what was in force stays to be read.
CREATE FUNCTION caregate.refuse_config_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION 'versions of the configuration are added, not changed' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE OR TRUNCATE ON caregate.config_version
    FOR EACH STATEMENT EXECUTE FUNCTION caregate.refuse_config_change();

ALTER TABLE caregate.config_version ENABLE ROW LEVEL SECURITY;
ALTER TABLE caregate.config_version FORCE ROW LEVEL SECURITY;
CREATE POLICY read ON caregate.config_version FOR SELECT USING (true);
CREATE POLICY import ON caregate.config_version FOR INSERT TO caregate_gateway WITH CHECK (number = 1);
CREATE POLICY apply ON caregate.config_version FOR INSERT TO caregate_operator WITH CHECK (true);

GRANT SELECT, INSERT (number, digest, document, author, reason) ON caregate.config_version
    TO caregate_gateway, caregate_operator;
