-- Reading the trail from the gateway: a login of its own, which sees through one view what its transaction was told to
-- be allowed to see. The login that writes still reads nothing.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'caregate_audit_reader') THEN
        CREATE ROLE caregate_audit_reader LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT;
    END IF;
END
$$;

SET LOCAL ROLE caregate_owner;

-- The second lock of searches: nobody said what may be seen, nothing is. Settings of the transaction, as the claims are.
-- NOTE: row-level security on the table itself would refuse COPY, which is how events arrive.
CREATE VIEW audit.visible AS
SELECT chain, sequence, occurred_at, kind, phase, duration_us, request_id, outcome, rule, status, method, trace, delivery,
       unit, agent, patient, resource_id, client_address, route, action, resource_type, phi, purpose, issuer, subject,
       role, audience, organisation, client, token_id, node, config_version, canonical
FROM audit.event
WHERE (SELECT current_setting('caregate.audit_scope', true)) = 'all'
   OR unit = ANY ((SELECT nullif(current_setting('caregate.audit_units', true), ''))::text[])
   OR patient = ANY ((SELECT nullif(current_setting('caregate.audit_patients', true), ''))::text[]);

GRANT USAGE ON SCHEMA audit TO caregate_audit_reader;
GRANT SELECT ON audit.visible TO caregate_audit_reader;

-- What is searched for, newest first. Values that nearly all events have are found by time alone.
DROP INDEX audit.event_occurred_at_idx, audit.event_subject_occurred_at_idx, audit.event_patient_occurred_at_idx,
           audit.event_request_id_idx;
CREATE INDEX event_time ON audit.event (occurred_at);
CREATE INDEX event_patient ON audit.event (patient, occurred_at) WHERE patient <> '';
CREATE INDEX event_subject ON audit.event (subject, occurred_at) WHERE subject <> '';
CREATE INDEX event_unit ON audit.event (unit, occurred_at) WHERE unit <> '';
CREATE INDEX event_route ON audit.event (route, occurred_at) WHERE route <> '';
CREATE INDEX event_role ON audit.event (role, occurred_at) WHERE role <> '';
CREATE INDEX event_client ON audit.event (client, occurred_at) WHERE client <> '';
CREATE INDEX event_address ON audit.event (client_address, occurred_at) WHERE client_address <> '';
CREATE INDEX event_purpose ON audit.event (purpose, occurred_at) WHERE purpose <> '';
CREATE INDEX event_resource ON audit.event (resource_id, occurred_at) WHERE resource_id <> '';
CREATE INDEX event_action ON audit.event (action, occurred_at) WHERE action <> '' AND action <> 'R';
CREATE INDEX event_outcome ON audit.event (outcome, occurred_at)
    WHERE outcome <> 'allowed' AND outcome <> 'pending' AND outcome <> 'complete';
CREATE INDEX event_kind ON audit.event (kind, occurred_at) WHERE kind <> 'access';
CREATE INDEX event_request ON audit.event (request_id) WHERE request_id <> '';
