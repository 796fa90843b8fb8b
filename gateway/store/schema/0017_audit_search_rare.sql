-- Searches by what most events have in common: what is common is found by time, what is rare or not there by these.
-- PERF: `make audit-search`: a node, issuer or rule that no event has took a reading of the whole range.

SET LOCAL ROLE caregate_owner;

CREATE INDEX event_node ON audit.event (node, occurred_at) WHERE node <> '';
CREATE INDEX event_issuer ON audit.event (issuer, occurred_at) WHERE issuer <> '';
CREATE INDEX event_organisation ON audit.event (organisation, occurred_at) WHERE organisation <> '';
CREATE INDEX event_type ON audit.event (resource_type, occurred_at) WHERE resource_type <> '';
CREATE INDEX event_rule ON audit.event (rule, occurred_at) WHERE rule <> '' AND rule <> 'allowed';
CREATE INDEX event_phase ON audit.event (phase, occurred_at) WHERE phase <> 'outcome';
