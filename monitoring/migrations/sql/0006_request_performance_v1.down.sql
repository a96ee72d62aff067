DROP FUNCTION request_performance(uuid, integer);
