DROP FUNCTION server_health(uuid);
