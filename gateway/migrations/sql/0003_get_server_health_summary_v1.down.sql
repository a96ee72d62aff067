DROP FUNCTION get_server_health_summary();
