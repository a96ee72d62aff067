DROP TRIGGER gateway_server_defaults ON mcp_servers;
DROP FUNCTION gateway_server_defaults_v1();
