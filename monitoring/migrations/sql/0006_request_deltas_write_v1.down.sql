DROP TRIGGER request_deltas_write ON request_logs;
DROP FUNCTION request_deltas_write_v1();
