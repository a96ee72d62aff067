DROP FUNCTION get_request_performance_summary(integer);
