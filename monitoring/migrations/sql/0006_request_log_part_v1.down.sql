DROP FUNCTION request_log_part(uuid, timestamptz, timestamptz);
