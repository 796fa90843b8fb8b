-- Who owns and who uses what. The gateway logs in as caregate_gateway, which owns nothing and cannot go around
-- row-level security; caregate_owner owns the schemas and cannot log in.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'caregate_owner') THEN
        CREATE ROLE caregate_owner NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'caregate_gateway') THEN
        CREATE ROLE caregate_gateway LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT;
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT caregate_owner TO %I', current_user);
    END IF;
    -- No temporary tables: they would come first in every search path.
    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    -- The last resort: every call sets its own, shorter one.
    EXECUTE format('ALTER ROLE caregate_gateway IN DATABASE %I SET statement_timeout = ''60s''', current_database());
    EXECUTE format('ALTER ROLE caregate_gateway IN DATABASE %I SET idle_in_transaction_session_timeout = ''30s''',
                   current_database());
    EXECUTE format('ALTER ROLE caregate_gateway IN DATABASE %I SET search_path = portal', current_database());
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA portal AUTHORIZATION caregate_owner;
CREATE SCHEMA audit AUTHORIZATION caregate_owner;
GRANT USAGE ON SCHEMA portal, audit TO caregate_gateway;
ALTER SCHEMA caregate OWNER TO caregate_owner;
GRANT USAGE ON SCHEMA caregate TO caregate_gateway;

SET LOCAL ROLE caregate_owner;

-- New functions are for those they are granted to, not for everybody.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The verified claims of the caller, set by the gateway in the same transaction as the call. Nobody set them: NULL, and
-- a policy that compares with NULL shows nothing.
CREATE FUNCTION caregate.claims() RETURNS jsonb
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('caregate.claims', true), '')::jsonb;

CREATE FUNCTION caregate.claim(name text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('caregate.claims', true), '')::jsonb ->> name;

-- The members of an array claim, or the one value of a string claim.
CREATE FUNCTION caregate.claim_members(name text) RETURNS text[]
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE jsonb_typeof(caregate.claims() -> name)
        WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(caregate.claims() -> name))
        WHEN 'string' THEN ARRAY[caregate.claims() ->> name]
        ELSE '{}'::text[]
    END;

GRANT EXECUTE ON FUNCTION caregate.claims(), caregate.claim(text), caregate.claim_members(text) TO caregate_gateway;
