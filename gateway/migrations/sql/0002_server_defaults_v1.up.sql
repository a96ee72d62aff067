-- Every server has a breaker, a pool and a queue: the rows with an empty name, which hold the
-- operator's settings. Called by: the trigger below, at each new server.
CREATE FUNCTION gateway_server_defaults_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO circuit_breakers (id, server_id) VALUES (gen_random_uuid(), NEW.id);
    INSERT INTO connection_pools (id, server_id, transport_type)
    VALUES (gen_random_uuid(), NEW.id, NEW.transport_type);
    INSERT INTO request_queues (id, server_id) VALUES (gen_random_uuid(), NEW.id);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION gateway_server_defaults_v1() IS
    'Gives a new server its circuit breaker and the settings of its pool and queue.';

CREATE TRIGGER gateway_server_defaults AFTER INSERT ON mcp_servers
    FOR EACH ROW EXECUTE FUNCTION gateway_server_defaults_v1();

-- Servers that are older than this migration.
INSERT INTO circuit_breakers (id, server_id) SELECT gen_random_uuid(), id FROM mcp_servers
    ON CONFLICT DO NOTHING;
INSERT INTO connection_pools (id, server_id, transport_type)
    SELECT gen_random_uuid(), id, transport_type FROM mcp_servers ON CONFLICT DO NOTHING;
INSERT INTO request_queues (id, server_id) SELECT gen_random_uuid(), id FROM mcp_servers
    ON CONFLICT DO NOTHING;
